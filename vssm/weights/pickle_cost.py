"""What a pickle asks of its reader, counted without building anything.

torch's reader of plain weights runs no code of a file, but does all the work that the file asks for: millions of empty
dictionaries, or the hash of a tuple that refers to itself twice at each of fifty levels.
"""

from vssm.weights.errors import CheckpointError

__all__ = ["MAX_BYTES", "MAX_OPERATIONS", "MAX_WORK", "check_pickle"]

# A network's weights take some 100 kB and 30,000 operations, with an optimizer three times as much; logs that detectors
# keep beside them some 20 MB, most of it in few long strings.
MAX_BYTES = 64 << 20
MAX_OPERATIONS = 1_500_000
MAX_WORK = 10 * MAX_OPERATIONS

# The operations that torch's reader knows (torch/_weights_only_unpickler.py), in groups of the same effect on its
# stack, each with the bytes of its argument. At any other it stops.
_LENGTHS = {b"X": 4, b"U": 1, b"\x8a": 1}  # a length in so many bytes, then as many bytes
_CONSTANTS = {b"N": 0, b"\x88": 0, b"\x89": 0, b")": 0, b"J": 4, b"K": 1, b"M": 2, b"G": 8}
_COLLECTIONS = (b"]", b"}", b"\x8f")
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}  # of so many values
_PUTS, _GETS = {b"q": 1, b"r": 4}, {b"h": 1, b"j": 4}
_INTO = {b"a": 1, b"s": 2}  # APPEND, SETITEM: so many values go into what is below them
_ALL_INTO = (b"e", b"u")  # APPENDS, SETITEMS: what is above the mark
_CALLS = (b"R", b"\x81")  # REDUCE, NEWOBJ: a function and its arguments become a result
_BUILD, _PERSISTENT, _MARK, _TUPLE, _GLOBAL, _PROTO, _STOP = b"b", b"Q", b"(", b"t", b"c", b"\x80", b"."

_CONSTANT = 0  # the index of the weight that all constants share


def check_pickle(data: bytes, at: int, origin: str) -> int | None:
    """Follows the pickle that begins at `at`, and returns where it ends; None where torch's reader will stop.

    Every value has a weight: itself and all that it refers to, counted as often as it does, for that is how often its
    hash visits them. Raises CheckpointError for more than MAX_OPERATIONS or MAX_WORK, and for a pickle without an end.
    """
    weights = [1]  # of all values, which `stack` and `memo` refer to by index, for lists and dictionaries grow
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[bytes, int] = {}
    work = 0
    try:
        for _ in range(MAX_OPERATIONS):
            code = data[at : at + 1]
            at += 1
            if code in _CONSTANTS:
                stack.append(_CONSTANT)
                at += _CONSTANTS[code]
            elif code in _GETS:
                stack.append(memo[_number(data, at, _GETS[code])])
                at += _GETS[code]
            elif code in _PUTS:
                memo[_number(data, at, _PUTS[code])] = stack[-1]
                at += _PUTS[code]
            elif code in _LENGTHS:
                size = _LENGTHS[code]
                stack.append(_CONSTANT)
                at += size + int.from_bytes(data[at : at + size], "little")
            elif code == _GLOBAL:
                stack.append(_CONSTANT)
                at = data.index(b"\n", data.index(b"\n", at) + 1) + 1
            elif code in _COLLECTIONS:
                stack.append(len(weights))
                weights.append(1)
            elif code == _MARK:
                marks.append(len(stack))
            elif code == _TUPLE or code in _TUPLES:
                begin = marks.pop() if code == _TUPLE else len(stack) - _TUPLES[code]
                weight = 1 + sum(weights[value] for value in stack[begin:])
                stack[begin:] = [len(weights)]
                weights.append(weight)
                work = max(work, weight)
            elif code in _INTO or code in _ALL_INTO or code == _BUILD:
                begin = marks.pop() if code in _ALL_INTO else len(stack) - _INTO.get(code, 1)
                weight = sum(weights[value] for value in stack[begin:])
                del stack[begin:]
                if stack[-1] == _CONSTANT:
                    return None  # nothing goes into a constant
                weights[stack[-1]] += weight
                work += weight
            elif code in _CALLS:
                weight = weights[stack.pop()] + weights[stack.pop()]
                stack.append(len(weights))
                weights.append(weight)
                work += weight
            elif code == _PERSISTENT:
                work += weights[stack[-1]]
            elif code == _PROTO:
                at += 1
            elif code == _STOP:
                return at
            elif code:
                return None
            else:
                raise IndexError
            if work > MAX_WORK:
                break
    except (IndexError, KeyError, ValueError):
        if len(data) < MAX_BYTES:
            raise CheckpointError(
                f"{origin} is truncated or no checkpoint (its pickle is broken at byte {at}); download it again"
            ) from None
    raise CheckpointError(
        f"{origin} is refused: reading what is beside its tensors would take more than {MAX_OPERATIONS} steps or "
        f"{MAX_BYTES} bytes. If you trust its source, save its state dict alone and load that"
    )


def _number(data: bytes, at: int, size: int) -> bytes:
    """The key of a memo entry, whichever of the two lengths it is written in."""
    return data[at : at + size].rstrip(b"\0")

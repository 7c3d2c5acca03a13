"""The compiled CPU core: found, checked and loaded here and nowhere else.

The core is a plain C library in vssm/lib (sources in csrc/, built by hatch_build.py at install time). Every kernel
is a function `vssm_<name>(const Args*)` that returns 0; `call` runs one. Its threads are torch's own: the address of
`torch_parallel_for`, part of torch's stable C interface, is handed to the core when it is loaded.
"""

import contextlib
import ctypes
import hashlib
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

ABI = 6  # VSSM_ABI of csrc/core.h

ISAS = ("avx512", "avx2", "baseline", "neon", "generic")  # of csrc/core.h

_PACKAGE = Path(__file__).resolve().parents[1]
_NAME = {"darwin": "libvssm_core.dylib", "win32": "vssm_core.dll"}.get(sys.platform, "libvssm_core.so")
_STATUS = {1: "out of memory", 2: "arguments outside what the kernel supports"}

_library: ctypes.CDLL | None
_reason: str | None
_isa = ""  # plain Python values, so that torch.compile can trace a choice without calling into the library
_functions: dict[str, Callable[[bytes], int]] = {}
_layouts: dict[tuple[str, int], struct.Struct] = {}

Field = int | float | Tensor | None
ABSENT = (None, 0)  # a struct Tensor that is not there
ACTIVATIONS = {"gelu": 0, "silu": 1, "relu": 2, "none": 3}  # enum of csrc/kernels/activation.h
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def available() -> bool:
    """Whether the core is built, fits this package and is loaded."""
    return unavailable_reason() is None


def unavailable_reason() -> str | None:
    """Why the core cannot be used and how to get it, or None when it can."""
    return _reason


def isa() -> str:
    """The instruction set in use: "avx512", "avx2", "baseline", "neon" or "generic"."""
    _require()
    return _isa


def isas() -> list[str]:
    """The instruction sets that `use_isa` takes here, the one in use among them."""
    found = []
    for name in ISAS:
        with contextlib.suppress(ValueError), use_isa(name):
            found.append(name)
    return found


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run with a lower instruction set, for tests and measurements. ValueError when this machine lacks it."""
    global _isa
    library, previous = _require(), isa()
    if library.vssm_set_isa(name.encode()) != 0:
        raise ValueError(f"instruction set {name!r} is not available here; the best one is {previous!r}")
    try:
        _isa = name
        yield
    finally:
        library.vssm_set_isa(previous.encode())
        _isa = previous


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Run with so many of torch's threads, which are those of the core; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call(name: str, *fields: Field) -> None:
    """Run kernel `name` on the fields of its structure in order, packed, which is quicker than a ctypes structure.

    Every field takes eight bytes: integers and flags, floats, and tensors as the address of their data, 0 for None.
    """
    key = name, len(fields)
    layout = _layouts.get(key)
    if layout is None:
        layout = _layouts[key] = struct.Struct("".join("d" if isinstance(f, float) else "q" for f in fields))
        if name not in _functions:
            _functions[name] = function = getattr(_require(), f"vssm_{name}")
            function.restype, function.argtypes = ctypes.c_int32, [ctypes.c_char_p]
    status = _functions[name](layout.pack(*[_number(f) for f in fields]))
    if status != 0:
        raise RuntimeError(f"core kernel {name} failed: {_STATUS.get(status, f'status {status}')}")


def _number(field: Field) -> int | float:
    if field is None:
        return 0
    return field.data_ptr() if isinstance(field, Tensor) else field


def typed(t: Tensor | None) -> tuple[Tensor | None, int]:
    """The two fields of a struct Tensor of csrc/pointwise.h: address and dtype."""
    return (None, 0) if t is None else (t, _TYPES[t.dtype])


def _require() -> ctypes.CDLL:
    reason = unavailable_reason()
    if _library is None:
        raise RuntimeError(reason)
    return _library


def _load(path: Path) -> tuple[ctypes.CDLL | None, str | None]:
    remedy = "reinstall vssm where a C++17 compiler is present"
    csrc = _PACKAGE.parent / "csrc"
    if csrc.is_dir() and (_PACKAGE.parent / "hatch_build.py").is_file():
        remedy = "run `python hatch_build.py` in the source folder (needs a C++17 compiler)"
    else:
        csrc = None
    if not path.is_file():
        return None, f"the C++ core is not built; {remedy}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the C++ core cannot be loaded ({error}); {remedy}"
    for name in ("vssm_build", "vssm_isa"):
        getattr(library, name).restype = ctypes.c_char_p
    library.vssm_set_isa.argtypes = [ctypes.c_char_p]
    library.vssm_set_parallel_for.argtypes = [ctypes.c_void_p]
    library.vssm_set_parallel_for.restype = None
    if library.vssm_abi() != ABI:
        return None, f"the C++ core has interface {library.vssm_abi()}, this package needs {ABI}; {remedy}"
    if csrc is not None and library.vssm_build().decode() != _source_hash(csrc):
        return None, f"the C++ core is older than its sources in csrc/; {remedy}"
    library.vssm_set_parallel_for(_torch_parallel_for())
    return library, None


def _torch_parallel_for() -> int | None:
    """Address of torch's parallel loop, or None (then the core runs on one thread)."""
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    path = Path(torch.__file__).resolve().parent / "lib" / name
    try:
        function = ctypes.CDLL(str(path) if path.is_file() else name).torch_parallel_for
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def _source_hash(csrc: Path) -> str:
    """Identifies the sources of a build; the same rule as in hatch_build.py."""
    digest = hashlib.sha256()
    for path in sorted(csrc.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


_library, _reason = _load(_PACKAGE / "lib" / _NAME)
if _library is not None:
    _isa = _library.vssm_isa().decode()

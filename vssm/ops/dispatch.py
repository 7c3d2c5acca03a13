"""Which implementation of an operator runs, why, and how to demand one.

Paths, best first:

    core        the compiled CPU core (csrc/, loaded by native.py): CPU tensors
    triton      Triton kernels (the operators' triton.py): CUDA and ROCm tensors; the CPU only under TRITON_INTERPRET=1
    torch       plain torch operators with a hand-written backward: any device
    reference   the equation as a loop, differentiated by autograd: any device, never chosen by itself
    portable    torch's own operators alone, with its `scan` for the recurrences: what exported programs are made of,
                which run without this package; never chosen by itself
    unrolled    the same without `scan`: recurrences in about sqrt(L) blocks of about sqrt(L) steps, written out, for
                runtimes without loops; the image size becomes part of the program; never chosen by itself

`choose` picks the first that can run. Operators without a Triton kernel run torch's, which are kernels of the device
already, also when "triton" is demanded. `use("torch")` demands one; a demanded path that cannot run raises
`PathUnavailable` with the reason and the remedy. A path slower than the best one is reported once per process.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vssm.ops import gpu, native

PATHS = ("reference", "portable", "unrolled", "torch", "core", "triton")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# What one operator offers beyond the common rules below: a reason against a path, or None.
Rule = Callable[[torch.device, torch.dtype], str | None]


class Preference(str):
    """A reason to prefer the next path although this one could run. A demand is met; nothing slow is reported."""


class Inapplicable(str):
    """A reason that lies in the tensor, its device or its dtype, and not in what is installed: nothing is reported."""


_forced = ""
_operators: dict[str, dict[str, Rule | None]] = {}
_chosen: dict[tuple[str, str, torch.dtype], str] = {}
_warned: set[str] = set()


class PathUnavailable(RuntimeError):
    """A demanded implementation cannot run here."""


class SlowPathWarning(UserWarning):
    """A slower implementation runs because the fast one is missing."""


def register(op: str, **rules: Rule | None) -> None:
    """Declare the paths of operator `op`, best first, each with a rule of its own or None."""
    unknown = set(rules) - set(PATHS)
    if unknown:
        raise ValueError(f"operator {op}: unknown paths {sorted(unknown)}; known: {', '.join(PATHS)}")
    _operators[op] = rules


def operators() -> list[str]:
    """The names of all operators."""
    return sorted(_operators)


def runnable(op: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """The paths that can run `op` on such tensors, best first, or the one demanded; the reference only then."""
    paths = [_resolve(op, _forced)] if _forced else [path for path in _operators[op] if path != "reference"]
    reasons = {path: _why_not(op, path, device, dtype) for path in paths}
    return [p for p, why_not in reasons.items() if why_not is None or (_forced and isinstance(why_not, Preference))]


def requested() -> str:
    """The path demanded by `use`, or "" when the choice is free."""
    return _forced


class use:
    """Context manager that demands one path for every operator called inside, in the whole process.

    A backward takes the path of its forward, also when it runs after the block was left.

        with vssm.ops.use("torch"):
            loss = model(images).mean()
        loss.backward()                     # torch path as well
    """

    def __init__(self, path: str):
        if path not in PATHS:
            raise ValueError(f"unknown path {path!r}: choose one of {', '.join(PATHS)}")
        self.path = path

    def __enter__(self) -> "use":
        global _forced
        self.previous = _forced
        _forced = self.path
        return self

    def __exit__(self, *_: object) -> None:
        global _forced
        _forced = self.previous


def _why_not(op: str, path: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None when `path` can run `op` on such tensors, else the reason and the remedy."""
    paths = _operators[op]
    if path in ("portable", "unrolled"):
        return None
    if path not in paths:
        return f"operator {op} has no {path} path; it has {', '.join(paths)}"
    if dtype not in FLOATS:
        return f"dtype {dtype} is not supported; convert to one of float32, float64, bfloat16, float16"
    if path == "core":
        if device.type != "cpu":
            return Inapplicable(f"the core runs on the CPU, the tensor is on {device.type}; move it with .cpu()")
        reason = native.unavailable_reason()
        if reason is not None:
            return reason
    if path == "triton":
        reason = _why_not_triton(device, dtype)
        if reason is not None:
            return reason
    rule = paths[path]
    return None if rule is None else rule(device, dtype)


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ("cuda", "cpu"):
        return Inapplicable(f"Triton kernels run on CUDA and ROCm devices, the tensor is on {device.type}")
    if device.type == "cpu" and not gpu.interpreted():
        return Inapplicable(
            "Triton kernels run on CUDA and ROCm devices; on the CPU they are interpreted, for tests, when the process "
            "was started with TRITON_INTERPRET=1"
        )
    if gpu.missing_reason() is not None:
        return gpu.missing_reason()
    if dtype == torch.float64:
        return Inapplicable("Triton kernels compute in float32, the tensor is float64; convert it with .float()")
    return Preference("interpreted kernels are for tests") if device.type == "cpu" else None


def choose(op: str, tensor: Tensor, path: str = "", *others: Tensor | None) -> str:
    """The path that runs `op` on a tensor like `tensor`; `path` demands one ("" = free choice).

    others: tensors of the same call whose dtype may be wider.
    """
    found = _choose(op, tensor.device, tensor.dtype, path)
    if found == "triton" and any(t is not None and t.dtype is torch.float64 for t in others):
        return _choose(op, tensor.device, torch.float64, path)
    return found


def _choose(op: str, device: torch.device, dtype: torch.dtype, path: str) -> str:
    if not path:
        key = (op, device.type, dtype)
        found = _chosen.get(key)
        if found is None:
            found = _chosen[key] = _choose_best(op, device, dtype)
        return found
    path = _resolve(op, path)
    reason = _why_not(op, path, device, dtype)
    if reason is not None and not isinstance(reason, Preference):
        raise PathUnavailable(f"path {path!r} was demanded for {op} and cannot run: {reason}")
    return path


def _resolve(op: str, path: str) -> str:
    return "torch" if path == "triton" and "triton" not in _operators[op] else path


def _choose_best(op: str, device: torch.device, dtype: torch.dtype) -> str:
    reasons, slower = [], []
    for path in _operators[op]:
        if path == "reference":
            continue
        reason = _why_not(op, path, device, dtype)
        if reason is None:
            if slower:
                _warn_once(f"vssm: the {path} path runs instead of a faster one. {slower[0]}")
            return path
        reasons.append(f"{path}: {reason}")
        if not isinstance(reason, Preference | Inapplicable):
            slower.append(reasons[-1])
    raise PathUnavailable(f"no path can run {op} on {device.type} with {dtype}: " + "; ".join(reasons))


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, SlowPathWarning, stacklevel=4)


def reset() -> None:
    """Forget earlier choices and the warnings given: after the core was switched or rebuilt."""
    _chosen.clear()
    _warned.clear()


@dataclass(frozen=True)
class Choice:
    """What runs one operator: the path taken, and why each better or other path is not."""

    op: str
    path: str
    why: str
    others: dict[str, str]


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; print it, or read `choices`."""

    device: str
    dtype: torch.dtype
    core: str
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        lines = [f"device {self.device}, {str(self.dtype).removeprefix('torch.')}; C++ core: {self.core}"]
        width = max(len(c.op) for c in self.choices)
        for c in self.choices:
            lines.append(f"  {c.op:<{width}}  {c.path:<9} {c.why}")
            lines += [f"  {'':<{width}}  not {name}: {reason}" for name, reason in c.others.items()]
        return "\n".join(lines)


def explain(
    op: str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Explanation:
    """Say which path runs each operator (or `op`) on such tensors and why, without running anything."""
    if op is not None and op not in _operators:
        raise ValueError(f"unknown operator {op!r}; known: {', '.join(sorted(_operators))}")
    device = torch.device(device)
    choices = []
    for name in sorted(_operators) if op is None else [op]:
        others: dict[str, str] = {}
        taken, why = "none", "nothing can run"
        candidates = [_resolve(name, _forced)] if _forced else [p for p in _operators[name] if p != "reference"]
        for path in candidates:
            reason = _why_not(name, path, device, dtype)
            if reason is None or (_forced and isinstance(reason, Preference)):
                taken = path
                why = "demanded by vssm.ops.use" if _forced else _description(path)
                break
            others[path] = reason
        choices.append(Choice(name, taken, why, others))
    reason = native.unavailable_reason()
    core = f"{native.isa()}" if reason is None else f"not available ({reason})"
    return Explanation(str(device), dtype, core, tuple(choices))


def _description(path: str) -> str:
    if path == "core":
        return f"compiled core ({native.isa() if native.available() else 'absent'})"
    return "Triton kernels" if path == "triton" else "plain torch operators"

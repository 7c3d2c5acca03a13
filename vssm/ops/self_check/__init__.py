"""The self-test: every path that this machine can choose, against the reference in float64.

A kernel can be wrong on one processor alone: a compiler, a driver or a new GPU is enough. So users can run here what
the tests run elsewhere, on their own device. Imported on demand, by `vssm.ops.self_test` and `vssm info --self-test`.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vssm.ops import dispatch, native
from vssm.ops.self_check.cases import Case, cases_of, lay_out

__all__ = ["BOUND", "Result", "self_test", "tested"]

# The largest error, relative to the largest number of a result or gradient. A path may sum in another order than the
# reference and so lose a few times what the reference loses itself when it computes in the same dtype (which
# tests/ops/test_self_check.py measures). On GPUs, gradients of half-precision maps have one tf32 product: 2e-3.
BOUND = {torch.float64: 5e-14, torch.float32: 5e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Result:
    """What was found of one operator on one path in one dtype.

    path: "core avx2" (with the instruction set), "torch" or "triton".
    error: the largest relative error of `cases` calls, forward and backward; infinite where one failed or is not
        finite. `worst` says where.
    """

    operator: str
    path: str
    dtype: str
    cases: int
    error: float
    bound: float
    worst: str

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


def self_test(device: str | torch.device = "cpu", operators: list[str] | None = None) -> list[Result]:
    """Run every operator on every path that can run on `device`, and compare values and all gradients.

    Args:
        device: where the paths run. The reference runs in float64 on the CPU.
        operators: names in the dispatch table; None: all.

    Returns:
        a Result for each operator, path and dtype; inspect `ok`. Nothing is raised for a wrong result.

    Raises:
        ValueError: an unknown operator, or a device that is not here.
        PathUnavailable: the path that `vssm.ops.use` demands cannot run here.

    Paths: the core with every instruction set of this processor, torch's, and Triton's on a GPU; within
    `vssm.ops.use`, the one demanded. The core as it is chosen here divides some of its float32 calls among torch's
    threads; all else runs on one thread. Takes 10 seconds of one core; the first time on a GPU, Triton compiles about
    500 kernels, which takes about ten minutes.
    """
    return [result for _, results in tested(device, operators) for result in results]


def tested(
    device: str | torch.device = "cpu", operators: list[str] | None = None
) -> Iterator[tuple[str, list[Result]]]:
    """Operators and their results as they come. Arguments and errors of `self_test`."""
    device = torch.device(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} is not available here ({error}); choose another one") from error
    known = dispatch.operators()
    for name in known if operators is None else operators:
        if name not in known:
            raise ValueError(f"unknown operator {name!r}; known: {', '.join(known)}")
        threads = torch.get_num_threads()
        with _exact_products(), native.cpu_threads(1):
            results = _results(name, device, threads)
        yield name, results


@dataclass(frozen=True)
class _Way:
    """A path, and the instruction set that it runs with, "" for none."""

    path: str
    isa: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.isa}".strip()

    def isa_in_use(self) -> contextlib.AbstractContextManager:
        return native.use_isa(self.isa) if self.isa else contextlib.nullcontext()


def _ways(operator: str, device: torch.device, dtype: torch.dtype) -> Iterator[_Way]:
    for path in dispatch.runnable(operator, device, dtype):
        if path != "core":
            yield _Way(path)
            continue
        for isa in native.isas():
            with native.use_isa(isa):
                runs = "core" in dispatch.runnable(operator, device, dtype)
            if runs:
                yield _Way(path, isa)


def _dtypes(device: torch.device) -> list[torch.dtype]:
    """Those that the device has: Apple's GPUs lack float64."""
    return [dtype for dtype in BOUND if device.type != "mps" or dtype is not torch.float64]


def _results(operator: str, device: torch.device, threads: int) -> list[Result]:
    """threads: for the core as it is chosen here, in some calls."""
    found: dict[tuple[str, str], Result] = {}
    ways = {dtype: list(_ways(operator, device, dtype)) for dtype in _dtypes(device)}
    if not any(ways.values()):
        dispatch.choose(operator, torch.empty(0, device=device), dispatch.requested())  # raises, with the reason
    for case in cases_of(operator):
        for half, dtypes in itertools.groupby(case.dtypes(), lambda dtype: dtype.itemsize == 2):
            given = _numbers(case, half)
            cotangents, expected = _expected(case, given, half)
            for dtype in dtypes:
                # bfloat16 with weights in float32, as under autocast; float16 throughout.
                kept = case.weights if dtype is torch.bfloat16 else ()
                tensors = {k: t.to(torch.float32 if k in kept else dtype) for k, t in given.items()}
                for way in ways.get(dtype, ()):
                    if way.path == "triton" and not case.size.wide:
                        continue
                    # In every call, threads would wait for each other for minutes on a busy machine.
                    divided = case.size.wide and dtype is torch.float32 and way.isa and way.isa == native.isa()
                    with native.cpu_threads(threads if divided else None):
                        error, where = _largest_error(case, tensors, device, cotangents, expected, way)
                    _add(found, operator, str(way), dtype, error, f"{where}, {case}")
    return list(found.values())


def _add(found: dict, operator: str, path: str, dtype: torch.dtype, error: float, where: str) -> None:
    name = str(dtype).removeprefix("torch.")
    before = found.get((path, name))
    count = 1 if before is None else before.cases + 1
    if before is not None and before.error >= error:
        error, where = before.error, before.worst
    found[path, name] = Result(operator, path, name, count, error, BOUND[dtype], where)


def _numbers(case: Case, half: bool) -> dict[str, Tensor]:
    """The tensors of a case in float64; for half precision, rounded to numbers that bfloat16 and float16 both have."""
    tensors = case.maps | case.weights
    return {k: (t.bfloat16().half() if half else t).double() for k, t in tensors.items()}


def _expected(case: Case, given: dict[str, Tensor], half: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The weights of a loss, in a shape that expands to the results', and what the reference finds in float64."""
    with dispatch.use("reference"), torch.no_grad():
        outputs = case(given)
    generator = torch.Generator().manual_seed(1)
    cotangents = []
    for y in outputs:
        expanded = case.size.layout == "expanded gradients" and y.dim() > 1
        g = torch.randn((*y.shape[:-1], 1) if expanded else y.shape, generator=generator)
        cotangents.append((g.bfloat16().half() if half else g).double())
    return cotangents, _evaluate(case, given, cotangents, _Way("reference"))


def _evaluate(case: Case, tensors: dict[str, Tensor], cotangents: list[Tensor], way: _Way) -> dict[str, Tensor]:
    """Values, those without gradients (which may take a kernel of their own), and the gradient of every tensor."""
    leaves = {k: t.detach().requires_grad_() for k, t in tensors.items()}
    with dispatch.use(way.path), way.isa_in_use():
        with torch.no_grad():
            values = case(tensors)
        outputs = case(leaves)
        gs = [lay_out(g.to(y), case.size.layout).expand(y.shape) for g, y in zip(cotangents, outputs, strict=True)]
        grads = torch.autograd.grad(outputs, list(leaves.values()), gs)
    found = {f"result {i}": y.detach() for i, y in enumerate(outputs)}
    found |= {f"result {i} without gradients": y for i, y in enumerate(values)}
    return found | {f"gradient of {k}": g for k, g in zip(leaves, grads, strict=True)}


def _largest_error(case, tensors, device, cotangents, expected, way: _Way) -> tuple[float, str]:
    """The largest relative error and which result it is in; infinite, with the message, when the call fails."""
    try:
        found = _evaluate(case, _placed(case, tensors, device), cotangents, way)
    except (RuntimeError, ValueError) as error:  # a kernel that does not run is a finding, and the others are to run
        return math.inf, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return max((_relative_error(found[name], e), name) for name, e in expected.items())


def _placed(case: Case, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """On the device, in the memory of the case. Weights of channels_last maps stay as they are, as in most models."""
    layouts = {k: "contiguous" if k in case.weights else "channels_last" for k in tensors}
    if case.size.layout != "channels_last":
        layouts = dict.fromkeys(tensors, case.size.layout)
    return {k: lay_out(t.to(device), layouts[k]) for k, t in tensors.items()}


def _relative_error(got: Tensor, expected: Tensor) -> float:
    """Relative to the largest number (below 0.1 it counts as 0.1: some gradients vanish)."""
    if got.shape != expected.shape:
        return math.inf
    scale = expected.abs().max().clamp(min=0.1)
    error = ((got.cpu().double() - expected).abs().max() / scale).item()
    return error if math.isfinite(error) else math.inf


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """torch's products of float32 in full on GPUs: with tf32, its default for convolutions, they would fail the
    bound, and this is a test of kernels."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision

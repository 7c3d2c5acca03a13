"""How the operator tests compare a path with the reference: outputs and every gradient, against float64."""

import pytest
import torch

import vssm.ops
from vssm.ops import native

needs_core = pytest.mark.skipif(not native.available(), reason="the C++ core is not built")
PATHS = ["torch", pytest.param("core", marks=needs_core)]
CORE = PATHS[1:]

# The largest error relative to the largest number: float64 to rounding, float32 to a few units in the last place,
# half precision to one rounding of the result.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
GRAD_TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}


def every_isa():
    """Names of instruction sets for `native.use_isa`; the best one of the machine is what every other test runs."""
    found = []
    for name in ("baseline", "avx2", "avx512"):
        try:
            with native.use_isa(name):
                found.append(name)
        except (ValueError, RuntimeError) as reason:
            found.append(pytest.param(name, marks=pytest.mark.skip(reason=str(reason))))
    return found


def evaluate(function, tensors, path, cotangents=None):
    """(outputs, gradients by argument) of function(**tensors) on one path; the loss is <outputs, cotangents>."""
    leaves = {k: None if t is None else t.detach().clone().requires_grad_() for k, t in tensors.items()}
    with vssm.ops.use(path):
        out = function(**leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    if cotangents is None:
        cotangents = draw_cotangents(outputs)
    given = {k: t for k, t in leaves.items() if t is not None}
    loss = sum((y * c.to(y.dtype)).sum() for y, c in zip(outputs, cotangents, strict=True))
    grads = torch.autograd.grad(loss, list(given.values()))
    return tuple(y.detach() for y in outputs), dict(zip(given, grads, strict=True))


def outputs_and_gradients(function, args, path):
    """[result, gradient of every argument] on one path; the loss is a fixed wave over the result."""
    with vssm.ops.use(path):
        y = function(*args)
    wave = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y, *torch.autograd.grad((y * wave).sum(), args)]


def draw_cotangents(outputs):
    """Fixed random weights of a loss, representable in every dtype."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, generator=generator).bfloat16().double() for y in outputs]


def relative_error(got, expected):
    """The largest error relative to the largest number (numbers below 0.1 count as 0.1: some gradients vanish)."""
    if expected.numel() == 0:
        return 0.0
    return ((got.double() - expected).abs().max() / expected.abs().max().clamp(min=0.1)).item()


def assert_agrees(function, tensors, path, tolerance=None, grad_tolerance=None):
    """`path` on these tensors agrees with the reference on the same numbers in float64; returns the outputs."""
    outputs, grads = evaluate(function, tensors, path)
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    expected, expected_grads = evaluate(function, exact, "reference", draw_cotangents(outputs))
    for i, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert y.shape == e.shape
        assert relative_error(y, e) <= (tolerance or TOLERANCE[y.dtype]), (f"output {i}", relative_error(y, e))
    for name, grad in grads.items():
        assert grad.dtype == tensors[name].dtype and grad.shape == tensors[name].shape, name
        error = relative_error(grad, expected_grads[name])
        widest = max(GRAD_TOLERANCE[grad.dtype], *(GRAD_TOLERANCE[y.dtype] for y in outputs))
        assert error <= (grad_tolerance or widest), (f"gradient of {name}", error)
    return outputs


def randn(*shape, dtype=torch.float32, seed=0):
    """Fixed normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

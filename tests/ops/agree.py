"""How the operator tests compare a path with the reference: outputs and every gradient, against float64."""

import torch

import vssm.ops


def evaluate(function, tensors, path, cotangent=None):
    """(output, gradients by argument name) of function(**tensors) on one path; the loss is <output, cotangent>."""
    leaves = {k: None if t is None else t.detach().clone().requires_grad_() for k, t in tensors.items()}
    with vssm.ops.use(path):
        y = function(**leaves)
    if cotangent is None:
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = {k: t for k, t in leaves.items() if t is not None}
    grads = torch.autograd.grad(y, list(given.values()), cotangent.to(y.dtype), allow_unused=True)
    return y.detach(), dict(zip(given, grads))


def relative_error(got, expected):
    """Largest error relative to the largest expected number."""
    scale = expected.abs().max().clamp(min=1e-30)
    return ((got.double() - expected).abs().max() / scale).item() if expected.numel() else 0.0


def assert_agrees(function, tensors, path, tolerance, grad_tolerance=None):
    """`path` on the tensors as they are agrees with the reference on the same numbers in float64."""
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    expected, expected_grads = evaluate(function, exact, "reference")
    y, grads = evaluate(function, tensors, path)
    errors = {"output": relative_error(y, expected)}
    assert y.shape == expected.shape
    assert errors["output"] <= tolerance, errors
    for name, grad in grads.items():
        assert grad.dtype == tensors[name].dtype and grad.shape == tensors[name].shape, name
        errors[name] = relative_error(grad, expected_grads[name])
    worst = grad_tolerance or 4 * tolerance
    assert all(e <= worst for n, e in errors.items() if n != "output"), errors
    return y

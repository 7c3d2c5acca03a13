"""What every operator owes, on every path: derivatives of any order and kind, batches by torch.func, negated tensors.

A path is compared with the reference, which autograd differentiates; the reference with finite differences.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.library import opcheck

import vssm.ops
from tests.ops.agree import PATHS, randn
from tests.ops.cases import CASES, Calls, loss
from vssm.ops.operator import OPERATORS

every_case = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
on_every_path = pytest.mark.parametrize("path", PATHS)
batched = pytest.mark.parametrize("case", [pytest.param(c, id=name) for name, c in CASES.items() if c.samples])


def assert_equal_numbers(got, expected, tolerance=1e-11):
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, i
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (i, (a - b).abs().max())


def orders(case, path, highest):
    """Values, then the gradients of every order up to `highest`, each of a curved sum of those before."""
    leaves = [t.clone().requires_grad_() for t in case.tensors.values()]
    with vssm.ops.use(path):
        found = [case(*leaves)]
    for order in range(highest):
        total = loss(found[-1])
        further = order + 1 < highest
        found.append(torch.autograd.grad(total, leaves, create_graph=further, materialize_grads=True))
    return found


@every_case
@on_every_path
def test_derivatives_of_every_order(case, path):
    """Third derivatives too: they go through the gradients of a gradient's gradient."""
    highest = case.torch_orders if path == "torch" else 3
    for got, expected in zip(orders(case, path, highest), orders(case, "reference", highest), strict=True):
        assert_equal_numbers(got, expected)


@every_case
def test_second_derivatives_by_finite_differences(case):
    leaves = [t.clone().requires_grad_() for t in case.tensors.values()]
    assert torch.autograd.gradgradcheck(lambda *x: loss(case(*x)), leaves, fast_mode=True)


@every_case
@on_every_path
def test_gradients_kept_by_backward_can_be_differentiated(case, path):
    name, tensor = next(iter(case.tensors.items()))
    with vssm.ops.use(path):
        leaves = {k: t.clone().requires_grad_(k == name) for k, t in case.tensors.items()}
        loss(case(*leaves.values())).backward(create_graph=True)
    x = leaves[name]
    first, x.grad = x.grad, None
    first.square().sum().backward()
    with vssm.ops.use("reference"):
        second = hessian(lambda x: loss(case(*({**case.tensors, name: x}).values())))(tensor)
    expected = 2 * (second.flatten(tensor.dim()).flatten(0, tensor.dim() - 1) @ first.detach().flatten()).view_as(
        tensor
    )
    assert_equal_numbers([x.grad], [expected])


@every_case
@on_every_path
def test_forward_mode(case, path):
    values = tuple(case.tensors.values())
    tangents = tuple(randn(*v.shape, dtype=v.dtype, seed=500 + i) for i, v in enumerate(values))
    with vssm.ops.use("reference"):
        expected = jvp(case, values, tangents)[1]
    with vssm.ops.use(path):
        assert_equal_numbers(jvp(case, values, tangents)[1], expected)
        with forward_ad.dual_level():
            results = case(*map(forward_ad.make_dual, values, tangents))
            assert_equal_numbers([forward_ad.unpack_dual(y).tangent for y in results], expected)


@every_case
@on_every_path
def test_transforms_of_torch_func(case, path):
    values, last = tuple(case.tensors.values()), len(case.tensors) - 1
    with vssm.ops.use("reference"):
        expected = jacrev(case, argnums=last)(*values), hessian(lambda *x: loss(case(*x)), argnums=last)(*values)
    with vssm.ops.use(path):
        assert_equal_numbers(jacrev(case, argnums=last)(*values), expected[0])
        assert_equal_numbers([hessian(lambda *x: loss(case(*x)), argnums=last)(*values)], [expected[1]])


@batched
@on_every_path
def test_samples_one_by_one(case, path):
    """vmap over the batch, and a gradient for every sample of it."""
    dims = tuple(0 if name in case.samples else None for name in case.tensors)

    def single(*values):
        return case(*[t[None] if dim == 0 else t for t, dim in zip(values, dims, strict=True)])

    def gradients(*values):
        return grad(lambda *x: loss(single(*x)), argnums=tuple(range(len(values))))(*values)

    def looped(function):
        samples = [[t[i] if dim == 0 else t for t, dim in zip(values, dims, strict=True)] for i in range(2)]
        with vssm.ops.use("reference"):
            return [torch.stack(results) for results in zip(*(function(*s) for s in samples), strict=True)]

    values = tuple(case.tensors.values())
    with vssm.ops.use(path):
        assert_equal_numbers(vmap(single, dims)(*values), looped(single))
        assert_equal_numbers(vmap(gradients, dims)(*values), looped(gradients))


@every_case
@on_every_path
def test_negated_views(case, path):
    """A view that is to be negated when it is read: kernels must not read its memory as it is."""
    values = [v.float() for v in case.tensors.values()]
    negated = [torch._neg_view(-v) for v in values]
    assert all(v.is_neg() for v in negated)
    for enabled in (False, True):
        with vssm.ops.use(path), torch.set_grad_enabled(enabled):
            for a, b in zip(case(*negated), case(*values), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_schemas_shapes_and_registrations(path):
    """torch.library.opcheck of every operator and every backward, full and in half precision."""
    seen = {}
    for dtype in (torch.float32, torch.bfloat16):
        with vssm.ops.use(path), Calls() as calls:
            for case in CASES.values():
                values = [v.to(dtype) for v in case.tensors.values()]
                with torch.no_grad():
                    case(*values)
                leaves = [v.requires_grad_() for v in values]
                torch.autograd.grad(loss(case(*leaves)), leaves)
        seen |= {(op, dtype): args for op, args in calls.seen.items()}
    names = {op._overloadpacket.__name__ for op, _ in seen}
    if path == "core":  # elsewhere products and norms are torch's
        every = {f"{name}{end}" for name in OPERATORS for end in ("", "_backward")}
        assert names == every - {"linear_backward"}
    for (op, _), args in seen.items():
        first = not op._overloadpacket.__name__.endswith("_backward")
        opcheck(op, [a.detach().clone().requires_grad_(first) if isinstance(a, torch.Tensor) else a for a in args])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_case
@on_every_path
def test_traced_graph_has_gradients(case, path):
    """Traced without gradients, the graph has those of the operator; tracing twice gives one graph."""
    values = tuple(v.float() for v in case.tensors.values())
    with vssm.ops.use(path), torch.no_grad():
        traced = torch.jit.trace(lambda *x: case(*x), values)
    graphs = []
    for function in (traced, case):
        leaves = [v.clone().requires_grad_() for v in values]
        with vssm.ops.use(path):
            graphs.append(torch.autograd.grad(loss(tuple(function(*leaves))), leaves))
    assert_equal_numbers(*graphs, tolerance=1e-5)


def test_batched_gradients_of_autograd_name_the_remedy():
    x = randn(2, 4).requires_grad_()
    y = vssm.ops.layer_norm(x)
    with pytest.raises(NotImplementedError, match=r"layer_norm does not know.*torch.func.jacrev"):
        torch.autograd.grad(y.sum(0), x, torch.eye(4), is_grads_batched=True)


def test_operators_called_by_their_name():
    """`torch.ops.vssm` without the public functions: tangents, transforms and gradients are the same."""
    x, weight = randn(3, 4), randn(4, seed=1)
    op = torch.ops.vssm.rms_norm
    expected = jvp(lambda x: vssm.ops.rms_norm(x, weight), (x,), (x,))[1]
    assert_equal_numbers([jvp(lambda x: op(x, weight, 1e-5, ""), (x,), (x,))[1]], [expected], 1e-6)
    assert_equal_numbers([vmap(lambda x: op(x, weight, 1e-5, ""))(x)], [vssm.ops.rms_norm(x, weight)], 1e-6)
    product = torch.ops.vssm.linear(x.requires_grad_(), randn(5, 4, seed=2), None, None, "none", "")
    (dx,) = torch.autograd.grad(product.sum(), x)
    assert_equal_numbers([dx], [randn(5, 4, seed=2).sum(0).expand(3, 4)], 1e-6)

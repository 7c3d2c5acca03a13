"""Zero-order hold: the exact solution of the state equation, on every path, with every gradient."""

import decimal

import pytest
import torch

import vssm
from tests.ops.agree import PATHS, evaluate, needs_core, relative_error
from tests.ops.test_selective_scan import arguments
from vssm.nn import SS2D, StateFusion
from vssm.ops import RASTER, selective_scan, selective_scan_states, ss2d, ss2d_cascade, ss2d_states, use
from vssm.ops.discretization import phi

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


def _map_arguments(N, dtype, K=4, C=5, H=4, W=3, R=2):
    generator = torch.Generator().manual_seed(N)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).float().to(dtype)

    A = -torch.exp(normal(K * C, N))
    return dict(
        x=normal(2, C, H, W), x_proj_weight=normal(K, R + 2 * N, C), dt_weight=normal(K, C, R),
        dt_bias=normal(K, C), A=A, D=normal(K * C),
    )  # fmt: skip


def test_phi_and_its_derivative():
    decimal.getcontext().prec = 60
    for dtype, tolerance in ((torch.float64, 4e-16), (torch.float32, 4e-7)):
        z = torch.tensor([-1e-9, -1e-4, -0.1, -0.4999, -0.5001, -3, -40, 0.3, 2], dtype=dtype, requires_grad=True)
        value = phi(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
        for x, p, s in zip(z.tolist(), value.tolist(), slope.tolist(), strict=True):
            exact = decimal.Decimal(x)
            ratio = (exact.exp() - 1) / exact
            assert abs(p / float(ratio) - 1) < tolerance and abs(s * x / float(exact.exp() - ratio) - 1) < tolerance, x
    zero = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(phi(zero), zero)
    assert phi(zero).item() == 1 and slope.item() == 0.5


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_it_is_the_solution_of_the_differential_equation(path):
    """h' = A h + B u with u constant over each step, h known in closed form; a hundred Euler steps come near it."""
    dt, u = torch.tensor([0.3, 2.0, 0.01], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    A, B = -1.7, 0.6
    h, expected = 0.0, []
    for step, value in zip(dt.tolist(), u.tolist(), strict=True):
        rest = -B * value / A  # where the state would come to rest
        h = rest + (h - rest) * torch.tensor(A * step, dtype=torch.float64).exp().item()
        expected.append(h)
    with use(path):
        found = selective_scan_states(
            u.view(1, 1, 3), dt.view(1, 1, 3), torch.tensor([[A]], dtype=torch.float64),
            torch.full((1, 1, 1, 3), B, dtype=torch.float64), discretization="zoh",
        )  # fmt: skip
        many = selective_scan_states(
            u.repeat_interleave(100).view(1, 1, 300), dt.repeat_interleave(100).view(1, 1, 300) / 100,
            torch.tensor([[A]], dtype=torch.float64), torch.full((1, 1, 1, 300), B, dtype=torch.float64),
        )  # fmt: skip
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(many.flatten()[99::100], found.flatten(), rtol=0.02, atol=0)


def _scan(**tensors):
    y, last = selective_scan(**tensors, dt_softplus=True, return_last_state=True, discretization="zoh")
    rest = {name: t for name, t in tensors.items() if name not in ("C", "D")}
    return y, last, selective_scan_states(**rest, dt_softplus=True, discretization="zoh")


def _ss2d(**tensors):
    rest = {name: t for name, t in tensors.items() if name != "D"}
    h, C = ss2d_states(**rest, discretization="zoh")
    return ss2d(**tensors, discretization="zoh"), h, C, ss2d_cascade(**tensors, discretization="zoh")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("function", [_scan, _ss2d])
def test_paths_agree_with_the_reference(path, N, dtype, function):
    if function is _scan:
        tensors = {k: t for k, t in arguments(N=N, dtype=dtype).items() if isinstance(t, torch.Tensor)}
    else:
        tensors = _map_arguments(N, dtype)
    exact = {name: t.double() for name, t in tensors.items()}
    outputs, grads = evaluate(function, exact, "reference")
    found, found_grads = evaluate(function, tensors, path)
    for i, (y, expected) in enumerate(zip(found, outputs, strict=True)):
        assert relative_error(y, expected) < TOLERANCE[dtype], i
    for name, expected in grads.items():
        assert relative_error(found_grads[name], expected) < TOLERANCE[dtype], name


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_gradients_by_finite_differences(path):
    tensors = {k: t.requires_grad_() for k, t in arguments(L=4).items() if isinstance(t, torch.Tensor)}
    names = list(tensors)
    with use(path):
        assert torch.autograd.gradcheck(lambda *t: _scan(**dict(zip(names, t, strict=True))), list(tensors.values()))


def test_options_and_short_steps():
    a = arguments()
    without = {k: v for k, v in a.items() if k not in ("D", "dt_bias", "initial_state")} | {"dt_softplus": False}
    without["dt"] = without["dt"].abs()
    with use("reference"):
        expected = selective_scan(**without, discretization="zoh")
    torch.testing.assert_close(selective_scan(**without, discretization="zoh"), expected, rtol=1e-13, atol=1e-13)
    short = without | {"dt": 1e-9 * without["dt"]}
    euler, zoh = (selective_scan(**short, discretization=name) for name in ("euler", "zoh"))
    torch.testing.assert_close(zoh, euler, rtol=1e-7, atol=0)
    half = {k: v.bfloat16() if k in ("u", "dt", "B", "C") else v for k, v in without.items()}
    assert selective_scan(**half, discretization="zoh").dtype == torch.float64  # A's
    with pytest.raises(ValueError, match="unknown discretization 'bilinear': choose one of euler, zoh"):
        selective_scan(**without, discretization="bilinear")


@pytest.mark.parametrize(
    "options", [{}, {"d_state": 2}, {"scan": "cascade"}, {"scan": "raster", "gate": True, "state_fn": StateFusion(16)}]
)
def test_mixer(options):
    torch.manual_seed(0)
    mixer = SS2D(8, **options, discretization="zoh").double()
    torch.manual_seed(0)
    euler = SS2D(8, **options).double()
    euler.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    y = mixer(x)
    assert not torch.allclose(y, euler(x), rtol=1e-3)
    with use("reference"):
        torch.testing.assert_close(y, mixer(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="unknown discretization"):
        SS2D(8, discretization="tustin")


@pytest.mark.parametrize(
    "name", [pytest.param("vmamba_nano", marks=pytest.mark.full), "spatial_mamba_nano", "vim_nano"]
)
def test_models_compile_and_export_and_refuse_scripting(name):
    torch.manual_seed(0)
    small = {"depth": 1, "d_state": 2} if name == "vim_nano" else {"depths": (1,), "dims": (16,)}
    model = vssm.create_model(name, discretization="zoh", num_classes=5, **small).eval()
    x = torch.randn(1, 3, 32, 32)
    y = model(x)
    torch._dynamo.reset()
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), y, rtol=1e-4, atol=1e-5)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert vssm.complexity(model).macs > 0
    with pytest.raises(ValueError, match="zero-order hold cannot be scripted"):
        vssm.create_model(name, discretization="zoh", scriptable=True, **small)


@needs_core
def test_float32_is_exact_where_a_difference_of_exponentials_is_not():
    """dt A = -1e-3: exp(dt A) - 1 in float32 would have lost four digits."""
    tensors = _map_arguments(1, torch.float64, K=1)
    tensors["A"] = torch.full_like(tensors["A"], -1e-3)
    expected = ss2d(**tensors, routes=RASTER, discretization="zoh")
    found = ss2d(**{k: t.float() for k, t in tensors.items()}, routes=RASTER, discretization="zoh")
    assert relative_error(found, expected) < 3e-6

"""The selective scan: its reference against stored numbers, every path against the reference."""

import pytest
import torch

from tests.ops.agree import PATHS
from tests.ops.scan_cases import golden, is_stored, scan_cases, scan_inputs
from vssm.ops import PathUnavailable, native, selective_scan, selective_scan_states, use

NAMES = {"u": "du", "delta": "ddelta", "A": "dA", "B": "dB", "C": "dC", "D": "dD", "delta_bias": "dbias"}


def run(case, path, dtype):
    """y and all gradients of one stored case."""
    tensors = {k: None if v is None else torch.tensor(v, dtype=dtype) for k, v in scan_inputs(case).items()}
    for name in NAMES:
        if tensors[name] is not None:
            tensors[name].requires_grad_()
    args = [tensors[name] for name in NAMES]
    with use(path):
        y = selective_scan(*args, dt_softplus=case["softplus"])
    (y * tensors["g"]).sum().backward()  # outside the block: the backward takes the path of its forward
    found = {"y": y.detach()}
    found |= {grad: tensors[name].grad for name, grad in NAMES.items() if tensors[name] is not None}
    return found


def assert_close(found, expected, tolerance, label):
    scale = max(1.0, float(expected.detach().abs().max()))
    error = float((found.detach().double() - expected.detach()).abs().max()) / scale
    assert error <= tolerance, f"{label}: {error:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_stored_cases_in_float64(path):
    for case in scan_cases():
        if path == "reference" and case["L"] > 200:
            continue
        for name, value in run(case, path, torch.float64).items():
            if not is_stored(f"{case['name']}.{name}"):
                continue
            assert_close(value, golden(f"{case['name']}.{name}"), 1e-12, f"{case['name']}.{name}")


@pytest.mark.parametrize("path", PATHS)
def test_stored_cases_in_float32(path):
    for case in scan_cases():
        for name, value in run(case, path, torch.float32).items():
            if not is_stored(f"{case['name']}.{name}"):
                continue
            assert value.dtype == torch.float32
            assert_close(value, golden(f"{case['name']}.{name}"), 3e-5, f"{case['name']}.{name}")


def arguments(batch=2, K=2, C=3, N=2, L=9, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    u, dt = normal(batch, K * C, L), normal(batch, K * C, L)
    A = -torch.exp(0.5 * torch.randn(K * C, N, generator=g, dtype=torch.float64))
    B, Cm = normal(batch, K, N, L), normal(batch, K, N, L)
    D, bias = torch.randn(2, K * C, generator=g, dtype=torch.float64)
    h0 = torch.randn(batch, K * C, N, generator=g, dtype=torch.float64)
    if dtype != torch.float64:
        A, D, bias, h0 = A.float(), D.float(), bias.float(), h0.float()
    return dict(u=u, dt=dt, A=A, B=B, C=Cm, D=D, dt_bias=bias, dt_softplus=True, initial_state=h0)


def test_reference_is_the_equation():
    a = arguments(batch=1, K=1, C=1, N=1, L=3)
    with use("reference"):
        y, last = selective_scan(**a, return_last_state=True)
    h, bias = a["initial_state"][0, 0, 0], a["dt_bias"][0]
    for t in range(3):
        step = torch.log1p(torch.exp(a["dt"][0, 0, t] + bias))
        h = torch.exp(step * a["A"][0, 0]) * h + step * a["B"][0, 0, 0, t] * a["u"][0, 0, t]
        expected = a["C"][0, 0, 0, t] * h + a["D"][0] * a["u"][0, 0, t]
        torch.testing.assert_close(y[0, 0, t], expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(last[0, 0, 0], h)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_gradcheck_with_initial_and_last_state(path):
    a = arguments(L=5)
    a = {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in a.items()}
    names = [k for k in a if k != "dt_softplus"]

    def function(*tensors):
        return selective_scan(**dict(zip(names, tensors, strict=True)), dt_softplus=True, return_last_state=True)

    with use(path):
        assert torch.autograd.gradcheck(function, [a[k] for k in names])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [1, 2, 17, 100])
def test_states_and_their_gradients(path, length):
    a = arguments(L=length, N=3)
    del a["C"], a["D"]
    leaves = [v.requires_grad_() for v in a.values() if isinstance(v, torch.Tensor)]
    results = []
    for which in ("reference", path):
        with use(which):
            h = selective_scan_states(**a)
        assert h.shape == (2, 6, 3, length)
        weight = torch.cos(torch.arange(h.numel(), dtype=h.dtype)).view_as(h)
        results.append([h, *torch.autograd.grad((h * weight).sum(), leaves)])
    for name, expected, found in zip("h u dt A B bias h0".split(), *results, strict=True):
        assert_close(found, expected, 1e-12, name)


@pytest.mark.parametrize("path", PATHS)
def test_readout_of_the_states_is_the_scan(path):
    a = arguments(K=1)
    with use(path):
        y = selective_scan(**a)
        h = selective_scan_states(**{k: v for k, v in a.items() if k not in "CD"})
    torch.testing.assert_close((h * a["C"]).sum(2) + a["D"][:, None] * a["u"], y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_chained_halves_equal_the_whole(path):
    a = arguments(L=31)
    h0 = a.pop("initial_state")
    first = {k: v[..., :13] if k in ("u", "dt", "B", "C") else v for k, v in a.items()}
    second = {k: v[..., 13:] if k in ("u", "dt", "B", "C") else v for k, v in a.items()}
    with use(path):
        whole, last = selective_scan(**a, initial_state=h0, return_last_state=True)
        y1, middle = selective_scan(**first, initial_state=h0, return_last_state=True)
        y2, end = selective_scan(**second, initial_state=middle, return_last_state=True)
    torch.testing.assert_close(torch.cat([y1, y2], -1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-5), (torch.float16, 2e-5)])
def test_half_inputs_are_computed_in_float32(path, dtype, tolerance):
    a = arguments(dtype=dtype, L=50)
    exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in a.items()}
    with use(path):
        y = selective_scan(**a)
        expected = selective_scan(**exact)
    assert y.dtype == torch.float32
    assert_close(y, expected, tolerance, "y")


@pytest.mark.parametrize("path", PATHS)
def test_strides_and_a_single_group(path):
    a = arguments(K=1, L=20)
    expected = selective_scan(**a)
    spread = {k: v.transpose(-1, -2).contiguous().transpose(-1, -2) if k in ("u", "dt") else v for k, v in a.items()}
    spread["B"], spread["C"] = a["B"][:, 0], a["C"][:, 0]  # (B, N, L)
    with use(path):
        torch.testing.assert_close(selective_scan(**spread), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_not_a_number_stays_in_its_sample(path):
    a = arguments(batch=3, dtype=torch.float32, L=40)
    a["u"][1, 0, 3] = float("nan")
    with use(path):
        y = selective_scan(**a)
    assert torch.isfinite(y[[0, 2]]).all()
    assert y[1, 0, 3:].isnan().all()


def test_flops_follow_the_papers_count():
    from torch.utils.flop_counter import FlopCounterMode

    a = arguments(batch=2, K=2, C=3, N=4, L=10, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        selective_scan(**a)
    assert counter.get_total_flops() == 2 * (9 * 2 * 10 * 6 * 4 + 2 * 10 * 6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(u=torch.zeros(2, 6)), r"u must be \(B, K\*C, L\), got \(2, 6\)"),
        (dict(u=torch.zeros(0, 6, 9)), "u must not be empty"),
        (dict(dt=torch.zeros(2, 6, 8)), r"dt must be \(2, 6, 9\)"),
        (dict(A=torch.zeros(5, 2)), r"A must be \(K\*C, N\) with K\*C = 6"),
        (dict(B=torch.zeros(2, 4, 2, 9)), "K = 4 groups of B do not divide"),
        (dict(C=torch.zeros(2, 2, 3, 9)), r"C must be \(2, 2, 2, 9\)"),
        (dict(D=torch.zeros(5)), r"D must be \(6,\)"),
        (dict(initial_state=torch.zeros(2, 6, 1)), r"initial_state must be \(2, 6, 2\)"),
        (dict(dt=torch.zeros(2, 6, 9, dtype=torch.float64)), "dt has dtype torch.float64 but u has torch.float32"),
        (dict(u=torch.zeros(2, 6, 9, dtype=torch.int64)), "u has dtype torch.int64; supported"),
        (dict(B=torch.zeros(2, 2, 2, 9, device="meta")), "B is on meta but u is on cpu"),
        (dict(A=torch.zeros(6, 0), B=torch.zeros(2, 2, 0, 9), C=torch.zeros(2, 2, 0, 9)), "N >= 1"),
        (dict(A=torch.zeros(6, 2, dtype=torch.complex64)), "A has dtype torch.complex64; supported"),
    ],
)
def test_bad_arguments_are_named(change, message):
    a = arguments(dtype=torch.float32) | change
    with pytest.raises(ValueError, match=message):
        selective_scan(**a)


@pytest.mark.parametrize("name", ["A", "D", "dt_bias", "initial_state"])
def test_shape_functions_know_the_dtype(name):
    a = arguments(dtype=torch.float32)
    a[name] = a[name].double()
    expected = selective_scan(**a)
    found = selective_scan(**{k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in a.items()})
    assert found.dtype == expected.dtype == torch.float64


def test_a_demanded_path_that_cannot_run_raises(monkeypatch):
    monkeypatch.setattr(native, "unavailable_reason", lambda: "it was not built; reinstall with a C++ compiler")
    with use("core"), pytest.raises(PathUnavailable, match="not built; reinstall"):
        selective_scan(**arguments())

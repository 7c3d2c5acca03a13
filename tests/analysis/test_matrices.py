"""M u = y for every kind of scan, fusion and adaptor, and the forms that M can take."""

from itertools import product

import pytest
import torch
from torch.nn.functional import softplus

import vssm
from tests.goldens import image
from vssm import add_adaptors
from vssm.analysis import blocks, linear_attention, mixing_matrix, scan_matrix, scan_of
from vssm.analysis.activation import activation_of
from vssm.analysis.matrices import mixing_rows
from vssm.analysis.scans import run
from vssm.ops import selective_scan

SMALL = {"dims": (8, 16), "depths": (1, 2), "num_classes": 3, "drop_path_rate": 0.0}
MODELS = {
    "vmamba": ("vmamba_nano", SMALL),
    "vmamba, N = 4": ("vmamba_nano", SMALL | {"d_state": 4, "ssm_ratio": 2.0}),
    "bidirectional": ("vmamba_nano", SMALL | {"scan": "bidirectional"}),
    "vanilla": ("vmamba_nano", SMALL | {"d_state": 3, "gate": True, "mlp_ratio": 0.0, "conv_bias": True}),
    "zero-order hold": ("vmamba_nano", SMALL | {"discretization": "zoh", "d_state": 2}),
    "vmamba + sasf": ("vmamba_nano", SMALL | {"state_fn": "sasf", "d_state": 2}),
    "spatial mamba": ("spatial_mamba_nano", SMALL),
    "dynamic": ("spatial_mamba_nano", SMALL | {"state_fn": "dynamic"}),
    "deformable": ("spatial_mamba_nano", SMALL | {"state_fn": "deformable"}),
    "local attention": ("spatial_mamba_nano", SMALL | {"state_fn": "local_attention"}),
    "vim": ("vim_nano", {"dim": 16, "depth": 2}),
    "vim + sasf": ("vim_nano", {"dim": 16, "depth": 2, "class_token": False, "d_state": 1, "state_fn": "sasf"}),
}


def network(name, dtype=torch.float64):
    torch.manual_seed(0)
    kind, options = MODELS[name]
    model = vssm.create_model(kind, **options).eval()
    return shaken(model).to(dtype)


@torch.no_grad()
def shaken(model):
    """Weights away from their initial values, where many a part does nothing."""
    for p in model.parameters():
        p += 0.1 * torch.randn_like(p)
    return model


def inputs_of(scan, k):
    """u (E, L) of route k in raster order."""
    u = torch.empty(scan.y.shape[0], scan.size[0] * scan.size[1], dtype=torch.float64)
    u[:, scan.routes[k].reads.flatten()] = scan.routes[k].u.flatten(0, 1).T
    return u


def applied(scan):
    """The sum over routes of M u, (E, L), every channel with its own M."""
    y = 0
    for k in range(len(scan.routes)):
        M = torch.cat(list(mixing_rows(scan, route=k, each_channel=True)))
        y = y + torch.einsum("qel,el->eq", M, inputs_of(scan, k))
    return y


def scanned(model, x, block):
    """What the scan of the block really gives in the model: (E, L)."""
    mixer, kept = blocks(model)[block], []
    parts = [mixer] if not hasattr(mixer, "forward_branch") else [mixer.forward_branch, mixer.backward_branch]
    for each in parts:
        each.scan = lambda u, each=each: kept.append(type(each).scan(each, u)) or kept[-1]
    with torch.no_grad():
        model(x[None])
    for each in parts:
        del each.scan
    return sum(kept)[0].flatten(1)


@pytest.mark.parametrize("name", MODELS)
def test_the_matrix_gives_what_the_scan_gives(name):
    model, x = network(name), image(1, (3, 32, 32), torch.float64)
    block = list(blocks(model))[-1]
    scan = scan_of(model, x, block)
    want = scanned(model, x, block)
    torch.testing.assert_close(scan.y.flatten(1), want, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(applied(scan), want, rtol=1e-10, atol=1e-11)


def test_in_single_precision():
    """To 1e-6 of the output of a float32 model."""
    for name in ("vmamba", "spatial mamba", "vim"):
        model, x = network(name, torch.float32), image(1, (3, 32, 32))
        block = list(blocks(model))[-1]
        want = scanned(model, x, block)
        assert (applied(scan_of(model, x, block)) - want).abs().max() < 1e-6 * max(1, want.abs().max())


@pytest.mark.parametrize("name", ["vmamba", "vmamba, N = 4", "spatial mamba"])
@pytest.mark.parametrize("kinds", ["t", "s", "ts"])
def test_adaptors(name, kinds):
    model = network(name)
    add_adaptors(model, temporal="t" in kinds, spatial="s" in kinds)
    shaken(model).double().eval()
    x = image(1, (3, 32, 32), torch.float64)
    scan, want = scan_of(model, x, "1.1"), scanned(model, x, "1.1")
    assert (scan.merged is not None) == ("s" in kinds)
    torch.testing.assert_close(scan.y.flatten(1), want, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(applied(scan), want, rtol=1e-10, atol=1e-11)
    other = scan_of(network(name), x, "1.1")
    assert (other.y - scan.y).abs().max() > 1e-4, "the adaptors do something here"


def test_a_parallel_adaptor():
    """Adds a convolution of u, which only the whole matrix has."""
    model = network("vmamba")
    add_adaptors(model, temporal=False, parallel=True)
    shaken(model).double().eval()
    x = image(1, (3, 32, 32), torch.float64)
    scan = scan_of(model, x, "1.1")
    M = torch.cat(list(mixing_rows(scan, each_channel=True)))
    want = scanned(model, x, "1.1")
    torch.testing.assert_close(torch.einsum("qel,el->eq", M, inputs_of(scan, 0)), want, rtol=1e-10, atol=1e-11)


def test_the_cascade():
    """Every route has its matrix, of what it scans; the second pair gives the output."""
    torch.manual_seed(0)
    model = shaken(vssm.create_model("vmamba_nano", **SMALL, scan="cascade")).double().eval()
    x = image(1, (3, 32, 48), torch.float64)
    scan, want = scan_of(model, x, "1.1"), scanned(model, x, "1.1")
    y = 0
    for k in (2, 3):
        M = torch.cat(list(mixing_rows(scan, route=k, each_channel=True)))
        y = y + torch.einsum("qel,el->eq", M, inputs_of(scan, k))
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-11)
    with pytest.raises(ValueError, match=r"rows, then columns, with a norm between.*0 \(rows forwards\)"):
        mixing_matrix(model, x, "1.1")
    assert mixing_matrix(model, x, "1.1", route=3).shape == (8 * 12, 8 * 12)


@pytest.mark.parametrize("weights", ["scan", "qk", "decayed_qk", "decay"])
@pytest.mark.parametrize("name", ["vmamba, N = 4", "vim"])
def test_rows_agree_with_the_equation(name, weights):
    model, x = network(name), image(1, (3, 32, 32), torch.float64)
    scan = scan_of(model, x, -1)
    for k, part in enumerate(scan.routes):
        want = scan_matrix(part.dt[0], part.A, part.B[0], part.C[0], part.D if weights == "scan" else None, weights)
        found = mixing_matrix(model, x, -1, k, weights=weights, order="route")
        torch.testing.assert_close(found, want.mean(0), rtol=1e-9, atol=1e-12)
        one = mixing_matrix(model, x, -1, k, channel=3, weights=weights, order="route")
        torch.testing.assert_close(one, want[3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", ["scan", "qk", "decayed_qk", "decay"])
@pytest.mark.parametrize("name", ["vmamba", "vmamba, N = 4", "zero-order hold", "spatial mamba", "vim", "cascade"])
def test_one_row_is_that_of_the_matrix(name, weights):
    """A single row is computed without a loop over the pixels: the same numbers."""
    kind, options = MODELS.get(name, ("vmamba_nano", SMALL | {"scan": "cascade"}))
    model = shaken(vssm.create_model(kind, **options)).double().eval()
    scan = scan_of(model, image(1, (3, 32, 48) if "vim" not in kind else (3, 32, 32), torch.float64), -1)
    for route in {0, len(scan.routes) - 1}:
        for channel, each in ((None, False), (None, True), (5, False)):
            whole = torch.cat(list(mixing_rows(scan, None, route, channel, weights, each_channel=each)))
            for at in (0, 17, len(whole) - 1):
                (row,) = mixing_rows(scan, [at], route, channel, weights, each_channel=each)
                torch.testing.assert_close(row[0], whole[at], rtol=1e-10, atol=1e-13)


FUSED = ["vmamba + sasf", "spatial mamba", "dynamic", "local attention", "vim + sasf"]
WEIGHTS = ["scan", "qk", "decayed_qk", "decay"]
# The fusion does not know of the weights, and the deformable one takes seconds.
PAIRS = [*product(FUSED, WEIGHTS), ("deformable", "scan")]
PAIRS += [pytest.param("deformable", weights, marks=pytest.mark.full) for weights in WEIGHTS[1:]]


@pytest.mark.parametrize("name, weights", PAIRS)
def test_columns_give_the_same_matrix_as_rows(name, weights):
    scan = scan_of(network(name), image(1, (3, 32, 32), torch.float64), -1)
    assert_columns_are_rows(scan, weights)


@pytest.mark.parametrize("kinds", ["t", "s", "ts", "parallel"])
def test_columns_give_the_same_matrix_as_rows_with_adaptors(kinds):
    model = network("vmamba")
    add_adaptors(
        model, temporal="t" in kinds and kinds != "parallel", parallel=kinds == "parallel", spatial=kinds != "t"
    )
    shaken(model).double().eval()
    assert_columns_are_rows(scan_of(model, image(1, (3, 32, 48), torch.float64), "1.1"), "scan")


def assert_columns_are_rows(scan, weights):
    L = scan.size[0] * scan.size[1]
    for route, channel, skip in (
        (None, None, True),
        (0, None, False),
        (len(scan.routes) - 1, 3, True),
        (None, 3, False),
    ):
        (columns,) = mixing_rows(scan, None, route, channel, weights, skip)
        rows = torch.cat(list(mixing_rows(scan, range(L), route, channel, weights, skip)))
        torch.testing.assert_close(columns, rows, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_combined_map_is_the_row_of_the_combined_matrix(parallel):
    model = network("vmamba")
    add_adaptors(model, temporal=False, parallel=parallel)
    shaken(model).double().eval()
    scan = scan_of(model, image(1, (3, 32, 32), torch.float64), "1.1")
    maps = activation_of(scan, (3, 2), "scan", skip=True)
    whole = torch.cat(list(mixing_rows(scan)))
    torch.testing.assert_close(maps.combined.flatten(), whole[scan.position((3, 2))], rtol=1e-10, atol=1e-13)
    assert torch.allclose(maps.combined, maps.routes.sum(0)) == (not parallel)


def test_fusion_is_a_weighted_sum_of_rows():
    """Spatial-Mamba, appendix C: row i is the sum over taps of the state rows around pixel i, read out by C_i."""
    model, x = network("spatial mamba"), image(1, (3, 32, 32), torch.float64)
    scan, mixer = scan_of(model, x, "1.1"), blocks(model)["1.1"]
    (part,), (height, width), L = scan.routes, scan.size, scan.size[0] * scan.size[1]
    states = scan_matrix(part.dt[0], part.A, part.B[0], torch.ones_like(part.C[0]))  # N = 1: the rows of h
    want = torch.zeros_like(states)
    fusion = mixer.state_fn
    for i in range(L):
        y, x_ = divmod(i, width)
        for kernel, alpha, d in zip(fusion.kernels, fusion.alphas, fusion.dilations, strict=True):
            for a in range(3):
                for b in range(3):
                    at = min(max(y + d * (a - 1), 0), height - 1) * width + min(max(x_ + d * (b - 1), 0), width - 1)
                    want[:, i] += alpha * kernel[:, 0, a, b, None] * part.C[0, i] * states[:, at]
        want[:, i, i] += part.D
    M = torch.cat(list(mixing_rows(scan, each_channel=True)))
    torch.testing.assert_close(M.transpose(0, 1), want, rtol=1e-9, atol=1e-12)
    assert (M.transpose(0, 1).triu(1).abs().amax() > 1e-4).item(), "no longer triangular"


def test_where_the_quotient_overflows():
    """K / w with w = exp(A S) beyond float64: the rows stay finite and right."""
    T, E, N = 300, 3, 2
    generator = torch.Generator().manual_seed(0)
    dt = softplus(torch.randn(T, E, generator=generator, dtype=torch.float64) + 3)
    A = -torch.arange(1, N + 1, dtype=torch.float64).expand(E, N)
    B, C, u = (torch.randn(T, n, generator=generator, dtype=torch.float64) for n in (N, N, E))
    assert torch.exp(A[0] * dt.cumsum(0)[-1, :N]).min() == 0, "w underflows, so that K / w would overflow"
    M = scan_matrix(dt, A, B, C)
    want = selective_scan(u.T[None], dt.T[None], A, B.T[None], C.T[None])[0]
    torch.testing.assert_close(torch.einsum("etj,je->et", M, u), want, rtol=1e-10, atol=1e-12)


def test_linear_attention_is_the_scan_without_decay():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (4, 4, 3))
    ones = torch.ones(20, 3, dtype=torch.float64)
    M = scan_matrix(ones, torch.zeros(3, 4, dtype=torch.float64), k, q)
    torch.testing.assert_close(M, linear_attention(q, k).expand(3, 20, 20))
    S, y = torch.zeros(4, 3, dtype=torch.float64), []
    for t in range(20):  # as linear attention is written as a recurrence
        S = S + k[t, :, None] * v[t]
        y.append(q[t] @ S)
    torch.testing.assert_close(linear_attention(q, k) @ v, torch.stack(y))
    rows = linear_attention(q.exp(), k.exp(), causal=False, normalised=True).sum(1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_gated_linear_attention_is_the_special_case_of_one_decay():
    """VMamba, appendix C: with w of shape (T, N) rather than (T, N, E), S_t = diag(g_t) S_{t-1} + k_t v_t^T."""
    generator = torch.Generator().manual_seed(0)
    T, N, E = 20, 4, 3
    q, k, v = (torch.randn(T, n, generator=generator, dtype=torch.float64) for n in (N, N, E))
    A = -torch.rand(1, N, generator=generator, dtype=torch.float64)
    dt = torch.rand(T, 1, generator=generator, dtype=torch.float64)
    M = scan_matrix(dt, A, k, q, weights="decayed_qk")
    assert M.shape == (1, T, T)
    S, y = torch.zeros(N, E, dtype=torch.float64), []
    for t in range(T):
        S = torch.exp(dt[t] * A[0])[:, None] * S + k[t, :, None] * v[t]
        y.append(q[t] @ S)
    torch.testing.assert_close(M[0] @ v, torch.stack(y), rtol=1e-10, atol=1e-12)


def test_queries_and_chunks(monkeypatch):
    model, x = network("spatial mamba"), image(1, (3, 32, 32), torch.float64)
    scan = scan_of(model, x, "1.1")
    whole = torch.cat(list(mixing_rows(scan)))
    monkeypatch.setattr("vssm.analysis.matrices.CHUNK", 1)
    monkeypatch.setattr("vssm.analysis.columns.SUMMED", 1)
    monkeypatch.setattr("vssm.analysis.frozen.state_fusion", None)  # no states are fused
    torch.testing.assert_close(torch.cat(list(mixing_rows(scan))), whole)
    monkeypatch.undo()
    monkeypatch.setattr("vssm.analysis.matrices.CHUNK", 1)
    one_by_one = list(mixing_rows(scan, range(len(whole))))
    assert len(one_by_one) == len(whole)
    torch.testing.assert_close(torch.cat(one_by_one), whole)
    torch.testing.assert_close(torch.cat(list(mixing_rows(scan, [5, 2]))), whole[[5, 2]])


def test_columns_in_chunks(monkeypatch):
    scan = scan_of(network("dynamic"), image(1, (3, 32, 32), torch.float64), "1.1")
    whole = torch.cat(list(mixing_rows(scan)))
    monkeypatch.setattr("vssm.analysis.columns.CHUNK", 1)
    torch.testing.assert_close(torch.cat(list(mixing_rows(scan))), whole)


def test_the_model_is_left_as_it_was():
    model, x = network("vmamba"), image(1, (3, 32, 32), torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        want = model(x[None])
    scan_of(model, x)
    mixer = blocks(model)["0.0"]
    assert "scan" not in vars(mixer) and not mixer._forward_hooks
    with torch.no_grad():
        assert torch.equal(model(x[None]), want)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_of_blocks():
    model, x = network("vmamba"), image(1, (3, 32, 32), torch.float64)
    assert list(blocks(model)) == ["0.0", "1.0", "1.1"]
    assert scan_of(model, x, -1).name == scan_of(model, x, (1, 1)).name == scan_of(model, x, "1.1").name == "1.1"
    assert scan_of(model, x, 0).name == "0.0"
    features = vssm.create_model("vmamba_nano", features_only=True).eval()
    assert list(blocks(features)) == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    assert scan_of(features, image(1, (3, 32, 32))).name == "2.1", "the one of the papers' figures"


def test_the_class_token():
    model, x = network("vim"), image(1, (3, 32, 32), torch.float64)
    scan = scan_of(model, x, 0)
    assert (scan.size, scan.grid, scan.class_token) == ((1, 65), (8, 8), 32)
    wide = scan_of(model, image(1, (3, 16, 64), torch.float64), 0)  # as many patches, and not in a square
    assert (wide.size, wide.grid) == ((1, 65), (4, 16)) and wide.position((1, 15)) == 31
    assert scan.position((3, 7)) == 31 and scan.position((4, 0)) == 33
    assert torch.equal(scan.on_image(torch.arange(65)).flatten(), torch.tensor([i for i in range(65) if i != 32])), (
        "it is no patch"
    )


def test_bad_requests():
    model, x = network("vmamba"), image(1, (3, 32, 32), torch.float64)
    with pytest.raises(IndexError, match=r"no block '7'; the network has 0.0, 1.0, 1.1, or by number 0 to 2"):
        mixing_matrix(model, x, "7")
    with pytest.raises(IndexError, match="no block 3"):
        mixing_matrix(model, x, 3)
    with pytest.raises(IndexError, match=r"no route 4; choose 0 \(rows forwards\), 1 \(columns forwards\)"):
        mixing_matrix(model, x, 0, route=4)
    with pytest.raises(IndexError, match="scans 16 channels, 0 to 15; there is no channel 16"):
        mixing_matrix(model, x, 1, channel=16)
    with pytest.raises(ValueError, match="unknown weights 'x': choose one of scan, qk, decayed_qk, decay"):
        mixing_matrix(model, x, 0, weights="x")
    with pytest.raises(ValueError, match="order='route' is that of one route"):
        mixing_matrix(model, x, 0, order="route")
    with pytest.raises(ValueError, match="order must be 'image' or 'route', got 'y'"):
        mixing_matrix(model, x, 0, order="y")
    with pytest.raises(ValueError, match=r"expected one image .* got \(2, 3, 32, 32\)"):
        mixing_matrix(model, torch.zeros(2, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="Linear has no selective scan to look at"):
        mixing_matrix(torch.nn.Linear(2, 2), x)
    other = network("spatial mamba")
    other.stages[1].blocks[1].mixer.set_state_fn(torch.nn.Tanh())
    with pytest.raises(ValueError, match="the block has a Tanh between states and readout"):
        mixing_matrix(other, x, -1)


def test_the_cascade_as_the_recurrence():
    torch.manual_seed(0)
    model = shaken(vssm.create_model("vmamba_nano", **SMALL, scan="cascade")).double().eval()
    scan = scan_of(model, image(1, (3, 16, 24), torch.float64), "0.0")
    for k, part in enumerate(scan.routes):
        M = torch.cat(list(mixing_rows(scan, route=k, each_channel=True)))
        y = torch.empty_like(scan.y.flatten(1))
        y[:, part.writes.flatten()] = run(part).flatten(0, 1).T
        torch.testing.assert_close(torch.einsum("qel,el->eq", M, inputs_of(scan, k)), y, rtol=1e-10, atol=1e-12)

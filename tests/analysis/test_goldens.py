"""Receptive fields and matrices of the official analysis scripts."""

import numpy as np
import pytest
import torch

from tests.fill import fill
from tests.goldens import error, image, load
from vssm.analysis import activation_map, diagonal_map, effective_receptive_field, mixing_matrix
from vssm.analysis.activation import normalise
from vssm.models.vmamba import VMamba, VMambaConfig
from vssm.weights.load import to_our_names
from vssm.weights.rename import VMAMBA, to_official

SMALL = {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "drop_path_rate": 0.0}
WEIGHTS = {"CB": "qk", "CwBw": "decayed_qk", "CwBdtw": "scan", "ww": "decay"}
CASES = {"attn_n1": ({}, (2, 1), 7803, 128), "attn_n4": ({"d_state": 4, "ssm_ratio": 2.0}, (2, 0), 7804, 96)}


def network(dtype=torch.float32, **options):
    model = VMamba(VMambaConfig(**SMALL, **options), num_classes=10).eval()
    official = to_official(model.state_dict(), VMAMBA)
    filled = {name: torch.from_numpy(np.array(fill(name, tuple(t.shape)))) for name, t in official.items()}
    model.load_state_dict(to_our_names(filled)[0])
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_receptive_field(dtype):
    golden = load("vmamba/analysis.npz")
    images = [image(seed, (3, 64, 64), dtype) for seed in (7800, 7801, 7802)]
    model = network(dtype)
    one = effective_receptive_field(model, images[0])
    assert (one.images, one.skipped, one.grid, one.target, one.center) == (1, 0, (2, 2), (1, 1), (32, 32))
    largest = golden["erf.map0"].max()
    assert error(one.map, golden["erf.map0"]) < 2e-5 * largest
    many = effective_receptive_field(model, torch.stack(images))
    assert error(many.map, golden["erf.average"]) < 2e-5 * golden["erf.average"].max()
    assert error(many.normalised(), golden["erf.normalised"]) < 2e-3
    squares = [(square.side, square.share) for square in many.squares((0.2, 0.3, 0.5))]
    assert squares == [(27, 27**2 / 64**2), (33, 33**2 / 64**2), (43, 43**2 / 64**2)]  # analysis.json of the goldens
    assert many.square(0.99).share > 0.9, "the official statistic ends at the border, with nothing found"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_matrices(case, kind):
    options, block, seed, side = CASES[case]
    golden = load("vmamba/analysis.npz")
    model, x = network(**options), image(seed, (3, side, side))

    def matrix(route, order):
        return mixing_matrix(model, x, block, route, weights=WEIGHTS[kind], skip=False, order=order)

    routes = [matrix(k, "image") for k in range(4)]
    for k in (0, 1, 3):
        want = golden[f"{case}.a{k}_{kind}"]
        assert error(routes[k], want) < 2e-5 * np.abs(want).max(), k
        assert error(normalise(routes[k]), golden[f"{case}.a{k}_norm_{kind}"]) < 1e-4
    combined = mixing_matrix(model, x, block, weights=WEIGHTS[kind], skip=False)
    torch.testing.assert_close(combined, sum(routes), rtol=1e-12, atol=1e-12)
    assert error(combined, golden[f"{case}.all_{kind}"]) < 2e-5 * combined.abs().max()
    assert error(combined / 4, golden[f"{case}.nall_{kind}"]) < 2e-5 * combined.abs().max()
    assert error(normalise(combined), golden[f"{case}.all_norm_{kind}"]) < 1e-4
    mean = torch.stack([normalise(route) for route in routes]).mean(0)
    assert error(mean, golden[f"{case}.nall_norm_{kind}"]) < 1e-4


@pytest.mark.parametrize("kind", WEIGHTS)
def test_maps_are_rows_and_diagonals(kind):
    """Of the same matrices: as the official figure takes them, row int(y * f) * f + int(x * f) for a map of f x f."""
    golden, (options, block, seed, side) = load("vmamba/analysis.npz"), CASES["attn_n1"]
    model, x = network(**options), image(seed, (3, side, side))
    maps = activation_map(model, x, (2, 5), block, WEIGHTS[kind])
    assert (maps.block, maps.query, maps.routes.shape) == ("2.1", (2, 5), (4, 8, 8))
    assert maps.names == ("rows forwards", "columns forwards", "rows backwards", "columns backwards")
    want = golden[f"attn_n1.all_{kind}"][2 * 8 + 5].reshape(8, 8)
    assert error(maps.combined, want) < 2e-5 * np.abs(want).max()
    want = golden[f"attn_n1.a1_{kind}"][2 * 8 + 5].reshape(8, 8)
    assert error(maps.routes[1], want) < 2e-5 * np.abs(want).max()
    diagonal = diagonal_map(model, x, block, WEIGHTS[kind])
    want = golden[f"attn_n1.all_{kind}"].diagonal().reshape(8, 8)
    assert error(diagonal.combined, want) < 2e-5 * np.abs(want).max()
    assert diagonal.query is None

"""Official numbers: models filled with deterministic weights, compared with what the authors' code computed.

Weights are rebuilt from nothing but official names and shapes (`tests.fill`), go through the renaming under test, and
the outputs are compared with values stored in tests/data.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

import vssm
import vssm.ops
from tests.fill import fill, golden_input
from vssm.weights.load import to_our_names

DATA = Path(__file__).parent / "data"


@cache
def official_keys():
    """{model: [[official name, shape], ...]} in the order of the official state dicts."""
    return json.loads(gzip.decompress((DATA / "official_keys.json.gz").read_bytes()))


def official_state(keys):
    """A filled state dict for a list of official names and shapes."""
    return {name: torch.from_numpy(np.array(fill(name, shape))) for name, shape in keys}


@cache
def _our_state(name, balanced):
    state = official_state(official_keys()[name])
    if balanced:
        state = {k: 0.3 * v if k.endswith(("cpe1.weight", "cpe2.weight")) else v for k, v in state.items()}
    ours, foreign, _ = to_our_names(state)
    assert not foreign
    return ours


def official_model(name, balanced=False, **options):
    """`name` in eval mode with the official weights of the golden cases."""
    with torch.device("meta"):  # no initial weights: random ones take longer than some of the tests
        model = vssm.create_model(name, drop_path_rate=0.0, **options).eval()
    model.load_state_dict({k: t.clone() for k, t in _our_state(name, balanced).items()}, assign=True)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


def image(seed, shape, dtype=torch.float32):
    """The image batch of a case."""
    return torch.from_numpy(golden_input(seed, shape)).to(dtype)


def load(path):
    """One .npz of tests/data."""
    return np.load(DATA / path)


def error(got, want):
    """The largest absolute difference."""
    return np.abs(np.asarray(got, dtype=np.float64) - want).max()


def relative_error(got, want):
    """The largest difference relative to the largest wanted number."""
    return error(got, want) / np.abs(want).max()


def samples(tensor, index):
    """Values of the flattened tensor at `index`."""
    return tensor.detach().double().contiguous().numpy().ravel()[index]

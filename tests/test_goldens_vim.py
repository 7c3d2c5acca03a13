"""Vim against the official code: logits, taps along the network, gradients; its mixer alone."""

import json

import numpy as np
import pytest
import torch

import vssm.ops
from tests.fill import fill, golden_input
from tests.goldens import error, image, load, official_keys, official_model, relative_error, samples
from tests.ops.agree import PATHS
from vssm.nn import BidirectionalMamba
from vssm.weights.rename import VIM, to_official, to_ours

# The official run in float64 keeps A and D in float32.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-6}


@pytest.fixture(scope="module")
def golden():
    return load("vim/tiny_224_eval.npz")


def _taps(model):
    """Hooks that keep what the goldens tapped, by tap name."""
    found = {}

    def keep(name):
        return lambda module, args, out: found.__setitem__(name, out.detach())

    def keep_input(name):
        return lambda module, args: found.__setitem__(name, args[0].detach())

    model.patch_embed.register_forward_hook(keep("patch_embed"))
    model.blocks[0].mixer.register_forward_pre_hook(keep_input("layer0.mixer_in"))
    for i in (0, 1, 5, 11, 17, 23):
        model.blocks[i].mixer.register_forward_hook(keep(f"layer{i}.hidden"))
        model.blocks[i].register_forward_pre_hook(keep_input(f"layer{i}.residual"))
    return found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_taps(golden, path, dtype):
    meta = json.loads(str(golden["meta"]))
    model = official_model("vim_tiny").to(dtype)
    taps = _taps(model)
    with torch.no_grad(), vssm.ops.use(path):
        features = model.forward_features(image(meta["seed"], meta["input_shape"], dtype))
        logits = model.forward_head(features)
    assert error(logits, golden["logits" if dtype == torch.float32 else "logits_f64"]) < TOLERANCE[dtype]
    assert error(features[:, 98], golden["pre_head"]) < 2e-5
    names = [
        key.removesuffix(".idx")
        for key in golden.files
        if key.endswith(".idx") and not key.startswith(("grad", "pre_head"))
    ]
    assert len(names) == 14
    for name in names:
        got = samples(taps[name], golden[f"{name}.idx"])
        assert error(got, golden[f"{name}.val"]) < 1e-4 * golden[f"{name}.std"], name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 2e-6)])
def test_gradients(golden, dtype, tolerance):
    meta = json.loads(str(golden["meta"]))
    model = official_model("vim_tiny").to(dtype)
    x = image(meta["seed"], meta["input_shape"], dtype).requires_grad_()
    cotangent = np.random.default_rng(meta["seed"] + 1000).standard_normal((1, 1000)).astype(np.float32)
    (model(x) * torch.from_numpy(cotangent)).sum().backward()
    gradients = to_official({name: p.grad for name, p in model.named_parameters()}, VIM) | {"input": x.grad}
    prefix = "grad." if dtype == torch.float32 else "grad_f64."
    names = [key.removeprefix(prefix).removesuffix(".norm") for key in golden.files if key.startswith(prefix)]
    names = sorted({name for name in names if f"{prefix}{name}.norm" in golden.files})
    assert len(names) == 31
    for name in names:
        gradient, norm = gradients[name], golden[f"{prefix}{name}.norm"]
        assert abs(float(gradient.double().norm()) - norm) < tolerance * norm, name
        got, want = samples(gradient, golden[f"{prefix}{name}.idx"]), golden[f"{prefix}{name}.val"]
        assert error(got, want) < 3 * tolerance * np.abs(want).max(), name


def _mixer():
    mixer = BidirectionalMamba(32)
    keys = json.loads(str(load("vim/mixer.npz")["keys"]))
    official = {f"layers.0.mixer.{name}": torch.from_numpy(np.array(fill(name, shape))) for name, shape in keys}
    prefix = "blocks.0.mixer."
    mixer.load_state_dict({name.removeprefix(prefix): t for name, t in to_ours(official, VIM).items()})
    return mixer


@pytest.mark.parametrize("path", PATHS)
def test_mixer(path):
    golden = load("vim/mixer.npz")
    mixer = _mixer()
    x = torch.from_numpy(golden_input(700, (2, 13, 32))).unsqueeze(1).requires_grad_()
    with vssm.ops.use(path):
        y = mixer(x)
    (y.squeeze(1) * torch.from_numpy(golden_input(701, (2, 13, 32)))).sum().backward()
    assert error(y.detach().squeeze(1), golden["out"]) < 2e-6
    assert relative_error(x.grad.squeeze(1), golden["grad.input_full"]) < 1e-5
    ours = {f"blocks.0.mixer.{name}": p.grad for name, p in mixer.named_parameters()}
    gradients = {name.removeprefix("layers.0.mixer."): g for name, g in to_official(ours, VIM).items()}
    assert len(gradients) == 16
    for name, gradient in gradients.items():
        want = golden[f"grad.{name}.val"]
        assert error(samples(gradient, golden[f"grad.{name}.idx"]), want) < 1e-4 * np.abs(want).max(), name


def test_parameters_of_the_published_sizes():
    for name, parameters in (("vim_tiny", 7_148_008), ("vim_small", 25_796_584)):
        with torch.device("meta"):
            model = vssm.create_model(name)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert sum(np.prod(shape) for _, shape in official_keys()[name]) == parameters

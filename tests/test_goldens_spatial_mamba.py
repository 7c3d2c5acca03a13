"""Spatial-Mamba against the official code: logits, taps along the network, gradients.

In the balanced cases every cpe weight is scaled by 0.3; without that the residual stream grows so much that mistakes
in deep mixers hardly show in the logits.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import vssm.nn.downsample
import vssm.ops
from tests.goldens import error, image, load, official_model, relative_error, samples
from tests.ops.agree import PATHS
from vssm.ops.bottleneck.reference import bottleneck as bottleneck_reference
from vssm.weights.rename import SPATIAL_MAMBA, to_official


def _model_and_case(case):
    golden = load(f"spatial_mamba/tiny_224_{case}.npz")
    meta = json.loads(str(golden["meta"]))
    return official_model("spatial_mamba_tiny", balanced="balanced" in case), golden, meta


def _record(model):
    """Hooks that keep what the goldens tapped, by tap name."""
    taps = {}

    def keep(name):
        return lambda module, args, out: taps.__setitem__(name, out)

    for i, stage in enumerate(model.stages):
        mixer = stage.blocks[-1].mixer
        mixer.register_forward_hook(keep(f"mixer{i}"))
        mixer.state_fn.register_forward_hook(keep(f"fused{i}"))
        mixer.state_fn.register_forward_pre_hook(lambda m, args, i=i: taps.__setitem__(f"state{i}", args[0]))
        stage.register_forward_hook(keep(f"stage{i}"))
        if i > 0:
            stage.downsample.register_forward_hook(keep(f"down{i - 1}"))
    model.stem.register_forward_hook(keep("stem"))
    model.norm.register_forward_hook(keep("norm"))
    return taps


@pytest.mark.parametrize("path", PATHS)
def test_each_path(path):
    with vssm.ops.use(path):
        _assert_logits_and_taps("eval_balanced")


def test_unbalanced():
    _assert_logits_and_taps("eval")


def _assert_logits_and_taps(case):
    model, golden, meta = _model_and_case(case)
    taps = _record(model)
    for dtype, logits, tolerance in ((torch.float32, "logits", 2e-5), (torch.float64, "logits_f64", 1e-9)):
        with torch.no_grad():
            found = model.to(dtype)(image(meta["seed"], meta["input_shape"], dtype))
        assert error(found, golden[logits]) < tolerance
        names = [key.removesuffix(".idx") for key in golden.files if key.endswith(".idx")]
        assert len(names) == (21 if "balanced" in case else 9)
        for name in names:
            got = samples(taps[name], golden[f"{name}.idx"])
            assert error(got, golden[f"{name}.val"]) < 1e-4 * golden[f"{name}.std"], name


class _ReluSides(TorchFunctionMode):
    """Keeps on which side of 0 the inputs of every ReLU fall; or, given the sides of another run, puts them there."""

    def __init__(self, given=None):
        super().__init__()
        self.kept = []
        self.given = None if given is None else iter(given)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.relu:
            return func(*args, **(kwargs or {}))
        self.kept.append(args[0] > 0)
        return func(*args, **(kwargs or {})) if self.given is None else args[0] * next(self.given)


def _assert_golden_gradients(model, golden, meta, dtype, tolerance, sides=None):
    """Norms within the tolerance and single values within three times that. Returns the sides of the ReLUs."""
    prefix = "grad_f64." if dtype == torch.float64 else "grad."
    model.to(dtype)
    x = image(meta["seed"], meta["input_shape"], dtype).requires_grad_()
    with _ReluSides(sides) as relus:
        logits = model(x)
    weight = np.random.default_rng(meta["seed"] + 1000).standard_normal(tuple(logits.shape)).astype(np.float32)
    (logits * torch.from_numpy(weight).to(dtype)).sum().backward()
    gradients = to_official({n: p.grad for n, p in model.named_parameters()}, SPATIAL_MAMBA) | {"input": x.grad}
    total = torch.sqrt(sum(p.grad.double().square().sum() for p in model.parameters()))
    checked = 0
    for key in golden.files:
        if not key.startswith(prefix) or not key.endswith(".norm"):
            continue
        name = key.removeprefix(prefix).removesuffix(".norm")
        norm = total if name not in gradients else gradients[name].double().norm()
        assert float(norm) == pytest.approx(float(golden[key]), rel=tolerance), name
        if name in gradients:
            got = samples(gradients[name], golden[f"grad.{name}.idx"])
            assert relative_error(got, golden[f"{prefix}{name}.val"]) < 3 * tolerance, name
        checked += 1
    assert checked >= 24
    model.zero_grad()
    return relus.kept


# In float32 one or two of the network's ten million ReLU inputs round to the other side of 0, on any path and in the
# official code too; each moves a gradient by up to 3e-3. So float64, where none does, is the exact test, and float32
# is compared closely on the same sides.
CASES = pytest.mark.parametrize("case", [pytest.param("grad", marks=pytest.mark.full), "grad_balanced"])


@CASES
def test_gradients(case):
    model, golden, meta = _model_and_case(case)
    _assert_golden_gradients(model, golden, meta, torch.float32, 1e-2)
    _assert_golden_gradients(model, golden, meta, torch.float64, 1e-9)


@CASES
def test_gradients_on_the_same_side_of_every_relu(case, monkeypatch):
    model, golden, meta = _model_and_case(case)
    # Every ReLU is one of its own then. The fused ones have their own tests.
    monkeypatch.setattr(vssm.nn.downsample, "bottleneck", bottleneck_reference)
    model.stem.norm1.register_forward_hook(lambda *_: None)  # a hooked stem is its layers one by one
    sides = _assert_golden_gradients(model, golden, meta, torch.float64, 1e-9)
    assert len(sides) == 9
    with vssm.ops.use("torch"):
        _assert_golden_gradients(model, golden, meta, torch.float32, 3e-5, sides)
    _assert_golden_gradients(model, golden, meta, torch.float32, 3e-5, sides)

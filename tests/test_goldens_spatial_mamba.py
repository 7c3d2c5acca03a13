"""Spatial-Mamba against the official code: logits, taps along the network, gradients.

In the balanced cases every cpe weight is scaled by 0.3; without that the residual stream grows so much that mistakes
in deep mixers hardly show in the logits.
"""

import json

import numpy as np
import pytest
import torch

import vssm.ops
from tests.goldens import PATHS, error, image, load, official_model, relative_error, samples
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
        test_logits_and_taps("eval_balanced")


@pytest.mark.parametrize("case", ["eval", "eval_balanced"])
def test_logits_and_taps(case):
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


# The network has ReLUs: in float32 a value next to 0 may fall on either side of it, which moves single gradients by up
# to 1e-3. In float64 none of them is that close, so that is the exact test.
@pytest.mark.parametrize(
    "dtype, prefix, tolerance", [(torch.float32, "grad.", 1e-2), (torch.float64, "grad_f64.", 1e-9)]
)
@pytest.mark.parametrize("case", [pytest.param("grad", marks=pytest.mark.full), "grad_balanced"])
def test_gradients(case, dtype, prefix, tolerance):
    model, golden, meta = _model_and_case(case)
    model.to(dtype)
    x = image(meta["seed"], meta["input_shape"], dtype).requires_grad_()
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

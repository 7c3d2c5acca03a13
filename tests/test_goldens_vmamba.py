"""VMamba against the official code: logits, stages, gradients."""

import numpy as np
import pytest
import torch

import vssm.ops
from tests.goldens import error, image, load, official_keys, official_model, relative_error, samples
from tests.ops.agree import PATHS
from vssm.ops import native
from vssm.weights.rename import VMAMBA, to_official

CASES = {
    "vmamba_tiny_s1l8_192x160_b1": ("vmamba_tiny_s1l8", 20240103, (1, 3, 192, 160)),
    "vanilla_vmamba_tiny_224x224_b1": ("vanilla_vmamba_tiny", 20240102, (1, 3, 224, 224)),
    "vmamba_tiny_s1l8_224x224_b2_grad": ("vmamba_tiny_s1l8", 20240101, (2, 3, 224, 224)),
}
LOSS_SEED = 20241101


@pytest.mark.parametrize("path", PATHS)
def test_each_path(path):
    with vssm.ops.use(path):
        _assert_logits_and_stages("vmamba_tiny_s1l8_192x160_b1")


@pytest.mark.parametrize("case", list(CASES)[1:])
def test_other_cases(case):
    _assert_logits_and_stages(case)


def _assert_logits_and_stages(case):
    name, seed, shape = CASES[case]
    golden = load(f"vmamba/{case}.npz")
    model = official_model(name)
    for dtype, logits, tolerance in ((torch.float32, "logits", 2e-5), (torch.float64, "logits_f64", 1e-9)):
        if logits not in golden:
            continue
        with torch.no_grad():
            features, stages = model.to(dtype).forward_intermediates(image(seed, shape, dtype))
            found = model.forward_head(features)
        assert found.dtype == dtype
        assert error(found, golden[logits]) < tolerance
        for i, stage in enumerate(stages):
            assert stage.shape == tuple(golden[f"stage{i}.shape"])
            # The stored stage values are those of the float32 run in either case.
            assert error(samples(stage, golden[f"stage{i}.index"]), golden[f"stage{i}.value"]) < 2e-4
            assert float(stage.double().norm()) == pytest.approx(float(golden[f"stage{i}.l2"]), rel=1e-5)


@pytest.mark.parametrize("dtype, suffix, tolerance", [(torch.float32, "", 1e-3), (torch.float64, "_f64", 1e-9)])
def test_gradients(dtype, suffix, tolerance):
    name, seed, shape = CASES["vmamba_tiny_s1l8_224x224_b2_grad"]
    golden = load("vmamba/vmamba_tiny_s1l8_224x224_b2_grad.npz")
    model = official_model(name).to(dtype)
    x = image(seed, shape, dtype).requires_grad_()
    logits = model(x)
    (logits * image(LOSS_SEED, logits.shape, dtype)).sum().backward()
    gradients = to_official({n: p.grad for n, p in model.named_parameters()}, VMAMBA) | {"input": x.grad}
    norms = [float(gradients[n].double().norm()) for n, _ in official_keys()[name]]
    np.testing.assert_allclose(norms, golden[f"gradnorm_all{suffix}"], rtol=tolerance)
    checked = 0
    for key in golden.files:
        if key.startswith("grad.") and key.endswith(f".value{suffix}"):
            entry = key.removeprefix("grad.").removesuffix(f".value{suffix}")
            got = samples(gradients[entry], golden[f"grad.{entry}.index"])
            assert relative_error(got, golden[key]) < tolerance, entry
            checked += 1
    assert checked > 10


def test_float64_runs_on_a_fast_path():
    best = "core" if native.available() else "torch"
    for op in ("ss2d", "layer_norm", "depthwise_conv3x3"):
        (choice,) = vssm.ops.explain(op, dtype=torch.float64).choices
        assert choice.path == best, choice
    with vssm.ops.use("reference"):
        assert {c.path for c in vssm.ops.explain(dtype=torch.float64).choices} == {"reference"}

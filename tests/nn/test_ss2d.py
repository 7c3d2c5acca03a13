"""The mixer: official modules, the split path, options and their errors."""

import copy
import json

import pytest
import torch
from timm.layers import set_scriptable
from torch import nn

from tests.goldens import DATA, error, image, load, official_state
from vssm.nn import SS2D, StateFusion
from vssm.ops import Route
from vssm.weights.rename import SPATIAL_MAMBA, VMAMBA, to_official, to_ours

CASES = {c["case"]: c for c in json.loads((DATA / "vmamba/modules.json").read_text()) if c["kind"] == "ss2d"}
SCANS = {"v051d": "unidirectional", "v052d": "bidirectional", "v052dc": "cascade"}
OFFICIAL, OURS = "layers.0.blocks.0.op.", "stages.0.blocks.0.mixer."


def _mixer(config):
    kind, *flags = config["forward_type"].split("_")
    return SS2D(
        config["d_model"],
        config["d_state"],
        config["ssm_ratio"],
        scan=SCANS.get(kind, "cross"),
        conv=config["d_conv"] > 1,
        conv_bias=config["conv_bias"],
        gate=False if "noz" in flags else "linear" if "nozact" in flags else True,
    )


def _ours(state, official=OFFICIAL, ours=OURS, family=VMAMBA):
    return {k.removeprefix(ours): v for k, v in to_ours({official + k: v for k, v in state.items()}, family).items()}


def _official(state, official=OFFICIAL, ours=OURS, family=VMAMBA):
    named = to_official({ours + k: v for k, v in state.items()}, family)
    return {k.removeprefix(official): v for k, v in named.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_official_module(name, dtype):
    case, golden = CASES[name], load("vmamba/modules.npz")
    mixer = _mixer(case["config"])
    mixer.load_state_dict(_ours(official_state(case["keys"])))
    mixer.to(dtype)
    nchw = case["config"]["channel_first"]
    x = image(case["seed"], case["input_shape"], dtype).requires_grad_()
    y = mixer(x.permute(0, 2, 3, 1) if nchw else x)
    y = y.permute(0, 3, 1, 2) if nchw else y
    (y * image(case["loss_seed"], y.shape, dtype)).sum().backward()
    assert error(y.detach(), golden[f"{name}.out"]) < 5e-6
    assert error(x.grad, golden[f"{name}.grad_input"]) < 1e-5
    gradients = _official({n: p.grad for n, p in mixer.named_parameters()})
    for (key, _), norm in zip(case["keys"], golden[f"{name}.gradnorm_all"], strict=True):
        assert float(gradients[key].norm()) == pytest.approx(float(norm), rel=1e-5), key


@pytest.mark.parametrize("j, dim", [(0, 24), (1, 64)])
def test_official_spatial_mamba_mixer(j, dim):
    golden = load("spatial_mamba/mixer.npz")
    meta = json.loads(str(golden["meta"]))
    keys = json.loads(str(golden[f"m{j}.keys"]))
    names = ("layers.0.blocks.0.self_attention.", "stages.0.blocks.0.mixer.", SPATIAL_MAMBA)
    mixer = SS2D(dim, scan="raster", gate=True, state_fn=StateFusion(2 * dim))
    mixer.load_state_dict(_ours(official_state(keys), *names))
    kept = {}
    mixer.state_fn.register_forward_hook(lambda module, args, out: kept.update(h=args[0], h_fused=out))
    x = image(500 + j, meta["cases"][j]["input_shape"]).requires_grad_()
    y = mixer(x)
    (y * image(600 + j, y.shape)).sum().backward()
    scale = abs(golden[f"m{j}.out"]).max()
    assert error(y.detach(), golden[f"m{j}.out"]) < 1e-5 * scale
    assert error(y.detach(), golden[f"m{j}.out_eval"]) < 1e-5 * scale
    for name in ("h", "h_fused"):
        got = kept[name][:, 0, :, 0].detach()
        if f"m{j}.{name}" in golden:
            assert error(got, golden[f"m{j}.{name}"]) < 1e-5 * abs(golden[f"m{j}.{name}"]).max()
    gradients = _official({n: p.grad for n, p in mixer.named_parameters()}, *names) | {"input": x.grad}
    for name, gradient in gradients.items():
        assert float(gradient.norm()) == pytest.approx(float(golden[f"m{j}.grad.{name}.norm"]), rel=1e-4), name


@pytest.mark.parametrize("scan", ["cross", "unidirectional", "bidirectional", "raster", (Route("columns", -1),)])
@pytest.mark.parametrize("d_state", [1, 3])
def test_identity_state_fn_equals_the_fused_path(scan, d_state):
    fused = SS2D(6, d_state, scan=scan, gate=True).double()
    split = copy.deepcopy(fused)
    split.set_state_fn(nn.Identity())
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    for mixer in (fused, split):
        mixer(x).square().sum().backward()
    torch.testing.assert_close(split(x), fused(x), rtol=1e-12, atol=1e-14)
    for (name, p), q in zip(fused.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-14, msg=name)


def test_scan_patterns_differ_and_share_their_parameters():
    outputs, x = {}, torch.randn(1, 6, 5, 8, dtype=torch.float64)
    state = SS2D(8, init="rand").state_dict()
    for scan in ("cross", "unidirectional", "bidirectional", "cascade"):
        mixer = SS2D(8, scan=scan)
        mixer.load_state_dict(state)
        outputs[scan] = mixer.double()(x)
    names = list(outputs)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (outputs[a] - outputs[b]).abs().max() > 1e-6, (a, b)


def test_gates_and_activations_are_applied():
    x = torch.randn(1, 4, 4, 8)
    plain = SS2D(8)
    state = plain.state_dict()
    gated = SS2D(8, gate=True)
    gated.load_state_dict(state | {"in_proj.weight": torch.cat([state["in_proj.weight"], torch.zeros(16, 8)])})
    assert gated(x).abs().max() == 0  # silu(0) = 0 closes the gate
    for act, function in (("gelu", nn.functional.gelu), ("relu", torch.relu), ("silu", nn.functional.silu)):
        mixer = SS2D(8, act=act, conv=False)
        mixer.load_state_dict({k: v for k, v in state.items() if not k.startswith("conv.")})
        seen = []
        mixer.scan = lambda u, seen=seen: seen.append(u) or u
        mixer(x)
        torch.testing.assert_close(seen[0].permute(0, 2, 3, 1), function(mixer.in_proj(x)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scan": "zigzag"}, "unknown scan 'zigzag': choose one of cross, unidirectional, bidirectional"),
        ({"act": "tanh"}, "unknown act 'tanh': choose one of silu, gelu, relu"),
        ({"gate": "both"}, "unknown gate 'both': choose one of none, act, linear"),
        ({"init": "ones"}, "unknown init 'ones': choose one of mamba, rand, zero"),
        ({"d_state": 0}, "must be at least 1"),
        ({"scan": "cascade", "state_fn": nn.Identity()}, "takes no state_fn"),
        ({"scan": (Route("diagonal", 1),)}, "unknown route"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SS2D(8, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"gate": True}, {"gate": "linear", "act": "gelu"}, {"scan": "cascade"}])
def test_autocast_stays_close(dtype, options):
    mixer = SS2D(8, **options)
    x = torch.randn(2, 5, 6, 8)
    want = mixer(x)
    with torch.autocast("cpu", dtype=dtype):
        got = mixer(x)
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 0.02 * want.abs().max()
    got.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_scripting_the_cascade_is_refused():
    with set_scriptable(True), pytest.raises(ValueError, match="the cascade scan cannot be scripted"):
        SS2D(8, scan="cascade")
    mixer = SS2D(8, scan="cascade").eval()
    with pytest.raises(ValueError, match="SS2D was not built to be scripted"):
        torch.jit.script(nn.Sequential(mixer))
    x = torch.randn(2, 5, 6, 8)
    exported = torch.export.export(mixer, (x,)).module()
    torch.testing.assert_close(exported(x), mixer(x))

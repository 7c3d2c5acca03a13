"""VMamba: official small networks, options, initialisation, weight decay, published sizes."""

import json

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import vssm
from tests.goldens import DATA, error, image, load, official_keys, official_state
from vssm.nn import StateFusion
from vssm.weights.rename import VMAMBA, to_official, to_ours

CASES = {c["case"]: c for c in json.loads((DATA / "vmamba/modules.json").read_text()) if c["kind"] == "vssm"}
SCANS = {"v051d": "unidirectional", "v052d": "bidirectional", "v052dc": "cascade"}


def _network(config):
    kind, *flags = config["forward_type"].split("_")
    position = {"pos_embed": True, "img_size": config["imgsize"]} if config.get("posembed") else {}
    return vssm.create_model(
        "vmamba_tiny",
        num_classes=config["num_classes"],
        dims=tuple(config["dims"] * 2**i for i in range(4)),
        depths=config["depths"],
        d_state=config["ssm_d_state"],
        ssm_ratio=config["ssm_ratio"],
        mlp_ratio=config["mlp_ratio"],
        scan=SCANS.get(kind, "cross"),
        conv=config["ssm_conv"] > 1,
        conv_bias=config["ssm_conv_bias"],
        gate="noz" not in flags,
        stem=config["patchembed_version"],
        downsample=config["downsample_version"],
        drop_path_rate=0.0,
        **position,
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 5e-6)])
@pytest.mark.parametrize("name", CASES)
def test_official_network(name, dtype, tolerance):
    case, golden = CASES[name], load("vmamba/modules.npz")
    model = _network(case["config"]).eval().to(dtype)
    model.load_state_dict(to_ours(official_state(case["keys"]), VMAMBA))
    x = image(case["seed"], case["input_shape"], dtype).requires_grad_()
    y = model(x)
    (y * image(case["loss_seed"], y.shape, dtype)).sum().backward()
    assert error(y.detach(), golden[f"{name}.out"]) < tolerance
    gradients = to_official({n: p.grad for n, p in model.named_parameters()}, VMAMBA)
    for (key, _), norm in zip(case["keys"], golden[f"{name}.gradnorm_all"], strict=True):
        assert float(gradients[key].norm()) == pytest.approx(float(norm), rel=2e-5), key


def test_weight_decay_groups_are_the_effective_official_ones():
    with torch.device("meta"):
        model = timm.create_model("vmamba_tiny_s1l8")
    without, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert without["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    assert (len(without["params"]), len(decayed["params"])) == (144, 132)
    names = {id(p): n for n, p in model.named_parameters()}
    decays = {names[id(p)].rpartition(".")[2] for p in decayed["params"]}
    assert {"A_log", "dt_proj_bias", "dt_proj_weight", "x_proj_weight"} <= decays and "D" not in decays
    assert vssm.create_model("vmamba_nano", pos_embed=True, img_size=32).no_weight_decay() == {"pos_embed.weight"}


@torch.no_grad()
def test_initialisation():
    model = vssm.create_model("vmamba_tiny_s1l8")
    block = model.stages[2].blocks[3]
    assert block.mixer.dt_proj_weight.std() == pytest.approx(0.118, rel=0.02)  # 24^-1/2 / sqrt 3
    assert block.mixer.x_proj_weight.std() == pytest.approx(0.0295, rel=0.02)
    for layer in (block.mlp.fc1, block.mlp.fc2, block.mixer.in_proj, block.mixer.out_proj, model.head.fc):
        assert layer.weight.std() == pytest.approx(0.02, rel=0.02)
        assert layer.bias is None or (layer.bias == 0).all()
    for norm in (block.norm1, block.norm2, model.norm, model.stages[1].downsample.norm):
        assert (norm.weight == 1).all() and (norm.bias == 0).all() and norm.eps == 1e-5
    conv = model.stages[1].downsample.conv  # the PyTorch default
    bound = (96 * 9) ** -0.5
    assert conv.weight.abs().max() <= bound and conv.weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    model.reset_classifier(100)
    assert model.head.fc.weight.std() == pytest.approx(0.02, rel=0.03) and (model.head.fc.bias == 0).all()


def test_drop_path_grows_linearly_and_is_shared_by_a_block():
    model = vssm.create_model("vmamba_nano", depths=(2, 3, 1), drop_path_rate=0.5)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    with torch.device("meta"):
        base = timm.create_model("vanilla_vmamba_base")
    assert base.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.6)


@pytest.mark.parametrize("name", [n for n in official_keys() if not n.startswith(("backbone", "spatial", "vim"))])
def test_published_parameter_counts(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    count = {
        "vmamba_tiny_s1l8": 30249064,
        "vmamba_tiny_s2l5": 30705832,
        "vmamba_small_s2l15": 50147752,
        "vmamba_base_s2l15": 88557800,
        "vmamba_small_s1l20": 49012840,
        "vmamba_base_s1l20": 86614504,
        "vanilla_vmamba_tiny": 22893448,
        "vanilla_vmamba_small": 44417416,
        "vanilla_vmamba_base": 76254056,
    }[name]
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vmamba_tiny", 30249064),
        ("vmamba_small", 50147752),
        ("vmamba_base", 88557800),
        # Table 5: steps a to c changed no network.
        *((f"vmamba_tiny_step_{step}", 22893448) for step in "abc"),
        ("vmamba_tiny_step_f", 30705832),
        ("vmamba_tiny_step_g", 30249064),
    ],
)
def test_short_names_and_steps_have_the_published_size(name, parameters):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_nano_is_small():
    found = vssm.complexity(vssm.create_model("vmamba_nano"))
    assert found.params < 1.5e6 and found.macs < 40e6


@pytest.mark.parametrize(
    "options",
    [
        {"scan": "bidirectional", "d_state": 4, "ssm_ratio": 1.5},
        {"gate": True, "conv": False, "act": "gelu", "init": "zero"},
        {"gate": "linear", "mlp_ratio": 0.0, "init": "rand"},
        {"stem": "v1", "downsample": "v1", "act": "relu", "conv_bias": True},
        {"downsample": "v2", "dims": [16, 32], "depths": [1, 2], "patch_size": 4},
        {"scan": "cascade", "dt_rank": 3},
        {"state_fn": StateFusion, "d_state": 2},
        {"pos_embed": True, "img_size": (32, 40)},
    ],
)
def test_options_are_plain_values(options):
    model = vssm.create_model("vmamba_nano", num_classes=3, **options)
    y = model(torch.randn(2, 3, 32, 40))
    assert y.shape == (2, 3) and y.isfinite().all()
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stem": "v3"}, "unknown stem 'v3': choose one of v1, v2"),
        ({"downsample": "pool"}, "unknown downsample 'pool': choose one of v1, v2, v3"),
        ({"scan": "zigzag"}, "unknown scan 'zigzag': choose one of cross"),
        ({"init": "v1"}, "unknown init 'v1': choose one of mamba, rand, zero"),
        ({"patch_size": 3}, "unknown patch_size 3: choose one of 2, 4, 8"),
        ({"dims": (8, 16)}, "one entry per stage"),
        ({"depths": (1, 0, 1)}, "must be positive"),
        ({"dt_rank": 0}, "dt_rank must be at least 1, or None for ceil"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must not be negative, got -1.0; 0 builds blocks without"),
        ({"mlp_ratio": 0.001}, "hidden width of an MLP must be at least 1, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
        ({"in_chans": 0}, "in_chans must be at least 1"),
        ({"num_classes": -1}, "num_classes at least 0, got 3 and -1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vssm.create_model("vmamba_nano", **options)


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="d_sate"):
        vssm.create_model("vmamba_nano", d_sate=4)

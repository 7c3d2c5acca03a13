import math
from itertools import pairwise

import pytest
import timm
import torch

import vssm  # noqa: F401 (registers the models)
from vssm.settings import OptimSettings
from vssm.tasks.detection import mask_rcnn
from vssm.tasks.segmentation import upernet
from vssm.train.optim import create_optimizer, create_schedule, learning_rate, scaled, warmup_cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1e-6), (5, 1e-6 + 5 * (1e-3 - 1e-6) / 20), (20, 1e-3), (70, (1e-3 + 1e-5) / 2), (120, 1e-5), (500, 1e-5)],
)
def test_warmup_cosine(step, expected):
    assert warmup_cosine(step, 120, 20, peak=1e-3, start=1e-6, minimum=1e-5) == pytest.approx(expected, rel=1e-12)


def test_warmup_is_no_part_of_the_cosine():
    quarter = warmup_cosine(45, 120, 20, 1.0, 0.0, 0.0)
    assert quarter == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_schedule_scales_every_group_by_its_own_share():
    settings = OptimSettings(lr=1.0, warmup_epochs=0.5, warmup_lr=0.0, min_lr=0.1)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 0.5}])
    schedule = create_schedule(optimizer, settings, total_steps=10, steps_per_epoch=4)
    seen = []
    for _ in range(10):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [warmup_cosine(step, 10, 2, 1.0, 0.0, 0.1) for step in range(10)]
    assert [full for full, _ in seen] == pytest.approx(expected)
    assert [half for _, half in seen] == pytest.approx([lr / 2 for lr in expected])


def test_groups_of_weight_decay():
    model = timm.create_model("vmamba_nano")
    optimizer = create_optimizer(model, OptimSettings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    exempt = model.no_weight_decay()
    for name, parameter in model.named_parameters():
        free = parameter.ndim <= 1 or name.endswith(".bias") or name in exempt
        assert decay[id(parameter)] == (0.0 if free else 0.3), name


def test_rates_are_scaled_by_the_batch():
    settings = OptimSettings(lr=1e-3, lr_batch=1024, warmup_lr=1e-6, min_lr=1e-5, weight_decay=0.3)
    found = scaled(settings, 256)
    assert (found.lr, found.warmup_lr, found.min_lr) == pytest.approx((2.5e-4, 2.5e-7, 2.5e-6), rel=1e-12)
    assert found.weight_decay == 0.3 and settings.lr == 1e-3
    assert scaled(OptimSettings(), 256) == OptimSettings()


@pytest.mark.parametrize("name", ["vmamba_nano", "vanilla_vmamba_tiny", "spatial_mamba_nano"])
def test_layer_decay_grows_from_stem_to_head(name):
    """One factor per group: the head 1, every block of a stage more than the one before it, the stem least."""
    model = timm.create_model(name)
    optimizer = create_optimizer(model, OptimSettings(lr=1.0, layer_decay=0.5))
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: lr[id(parameter)] for name, parameter in model.named_parameters()}

    def rate_of(prefix):
        (found,) = {rate for name, rate in rates.items() if name.startswith(prefix)}
        return found

    blocks = [f"stages.{i}.blocks.{j}." for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))]
    found = [rate_of(prefix) for prefix in ("stem.", *blocks, "norm.", "head.")]
    assert found[-1] == 1.0
    assert found == sorted(found)
    steps = [after / before for before, after in pairwise(found)]
    assert set(steps) <= {1.0, 2.0}
    assert steps[:-2] == [2.0] * len(blocks)


def test_multistep_and_poly_after_the_warm_up():
    steps = OptimSettings(lr=1.0, schedule="multistep", milestones=[2, 3], gamma=0.1, warmup_lr=0.0)
    found = [learning_rate(step, 40, 4, 10, steps) for step in (0, 2, 4, 19, 20, 29, 30, 39)]
    assert found == pytest.approx([0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    poly = OptimSettings(lr=1.0, schedule="poly", power=2.0, min_lr=0.2, warmup_lr=0.0)
    found = [learning_rate(step, 24, 4, 10, poly) for step in (1, 4, 14, 24, 30)]
    assert found == pytest.approx([0.25, 1.0, 0.2 + 0.8 * 0.25, 0.2, 0.2])


def test_warm_up_steps_take_the_place_of_epochs():
    settings = OptimSettings(lr=1.0, warmup_epochs=5, warmup_steps=2, warmup_lr=0.0)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_schedule(optimizer, settings, total_steps=20, steps_per_epoch=4)
    assert [schedule.lr_lambdas[0](step) for step in (0, 1, 2)] == [0.0, 0.5, 1.0]


def test_patterns_without_weight_decay():
    """The official rule of detection: names with "norm" go without, biases do not."""
    model = timm.create_model("vmamba_nano")
    optimizer = create_optimizer(model, OptimSettings(weight_decay=0.3, no_decay=["*norm*"]))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.3), name
    with pytest.raises(ValueError, match=r"optim.no_decay: no parameter matches 'stem.conv1.wieght'; nearest: stem"):
        create_optimizer(model, OptimSettings(no_decay=["stem.conv1.wieght"]))


@pytest.mark.parametrize("network", ["mask_rcnn", "upernet"])
def test_a_network_is_grouped_as_its_backbone(network):
    """Learning rates and exceptions of weight decay are those that the backbone alone has; heads learn at the full
    rate."""
    if network == "mask_rcnn":
        model = mask_rcnn("vmamba_nano", 3, fpn_channels=8, box_channels=8, mask_channels=8)
    else:
        model = upernet("spatial_mamba_nano", 3, channels=8, aux_channels=4)
    settings = OptimSettings(lr=1.0, layer_decay=0.5, weight_decay=0.3)
    prefix = "backbone.model."
    alone = model.get_submodule(prefix[:-1])
    found, expected = (
        {n: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"]) for n, p in net.named_parameters()}
        for net in (model, alone)
        for groups in [{id(p): g for g in create_optimizer(net, settings).param_groups for p in g["params"]}]
    )
    inside = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    stages = [name for name in inside if name.startswith("stages.")]
    assert len(stages) > 20
    scale = {inside[name][0] / expected[name][0] for name in stages}
    assert len(scale) == 1  # the heads may add a layer, the order and the steps between stay
    assert all(inside[name][1] == expected[name][1] for name in inside)
    heads = {lr for name, (lr, _) in found.items() if not name.startswith("backbone.")}
    assert heads == {1.0} and min(inside[name][0] for name in stages) < 0.6


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 1, 1)}),
        ("convnext_atto", {"dims": (8, 8, 8, 8), "depths": (1, 1, 2, 1)}),
        ("resnet18", {}),
        ("efficientnet_lite0", {}),
    ],
)
def test_a_backbone_that_timm_took_apart_is_grouped_as_the_whole(name, arguments):
    """Its names differ by a first dot; the stem (of ResNet an alternative of a pattern) is below all, and what the
    model excepts from weight decay (Swin's table of positions) is excepted."""
    model = upernet(name, 3, channels=8, aux_channels=4, backbone_args=arguments)
    whole = timm.create_model(name, **arguments)
    settings = OptimSettings(lr=1.0, layer_decay=0.5, weight_decay=0.3)
    found, expected = (
        {n: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"]) for n, p in net.named_parameters()}
        for net in (model, whole)
        for groups in [{id(p): g for g in create_optimizer(net, settings).param_groups for p in g["params"]}]
    )
    prefix = "backbone.net."
    theirs = {n if prefix + n in found else n.replace(".", "_", 1): value for n, value in expected.items()}
    inside = {n.removeprefix(prefix): value for n, value in found.items() if n.startswith(prefix)}
    assert len(inside) > 20 and inside.keys() <= theirs.keys()
    assert len({inside[n][0] / theirs[n][0] for n in inside}) == 1
    assert {n: decay for n, (_, decay) in inside.items()} == {n: theirs[n][1] for n in inside}
    assert {lr for n, (lr, _) in found.items() if not n.startswith("backbone.")} == {1.0}
    stem = next(iter(inside))
    assert inside[stem][0] == min(lr for lr, _ in found.values()) < 0.2
    plain = create_optimizer(model, OptimSettings(weight_decay=0.3))
    assert sum(len(group["params"]) for group in plain.param_groups) == len(found)


def test_a_backbone_without_named_layers_is_refused():
    model = upernet("poolformer_s12", 3, channels=8, aux_channels=4)
    create_optimizer(model, OptimSettings())
    with pytest.raises(ValueError, match=r"optim.layer_decay: poolformer_s12 does not name its layers"):
        create_optimizer(model, OptimSettings(layer_decay=0.5))


def test_layer_decay_needs_layers():
    with pytest.raises(ValueError, match=r"optim.layer_decay: nothing in Linear names its layers"):
        create_optimizer(torch.nn.Linear(2, 2), OptimSettings(layer_decay=0.5))

import math
from itertools import pairwise

import pytest
import timm
import torch

import vssm  # noqa: F401 (registers the models)
from vssm.settings import OptimSettings
from vssm.train.optim import create_optimizer, create_schedule, warmup_cosine


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

"""Training that starts from weights for smaller images, for every family: `vssm fit --init-from FILE`."""

from typing import Any, cast

import pytest
import torch

from tests.train.tiny import tiny_settings
from vssm.inference.run_dir import RunDir
from vssm.tasks.classification import create_classifier
from vssm.train.fit import build, fit
from vssm.train.optim import create_optimizer
from vssm.weights import load_checkpoint
from vssm.weights.position import resize_positions

TIMM = {
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1]}, 4, 6),
    "deit": ("deit_tiny_patch16_224", {"depth": 1, "embed_dim": 24}, None, None),
}
STAGES = {"dims": [8, 16], "depths": [1, 1]}
# Name, arguments, those of the larger images, and what to freeze.
FAMILIES = {
    "vmamba": ("vmamba_nano", STAGES, {}, "stages.0.*"),
    "spatial_mamba": ("spatial_mamba_nano", STAGES, {}, "stages.0.*"),
    "mamba_adaptor": ("mamba_adaptor_b1", STAGES, {}, "stages.0.*"),
    "vim": ("vim_nano", {"dim": 8, "depth": 2}, {"img_size": 48}, "blocks.0.*"),
    "vim, embedding as it was": ("vim_nano", {"dim": 8, "depth": 2}, {}, "blocks.0.*"),
}


@pytest.fixture(params=FAMILIES.values(), ids=list(FAMILIES))
def started(request, tmp_path):
    """What the smaller network had, the experiment on larger images, and what is frozen."""
    name, options, larger, frozen = request.param
    small = create_classifier(name, 10, 1, **options)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    settings = tiny_settings()
    settings.model.name, settings.model.args = name, {**options, **larger}
    settings.model.init_from, settings.model.freeze = str(tmp_path / "small.pth"), [frozen]
    settings.data.image_size, settings.data.batch_size = 48, 4
    settings.optim.layer_decay, settings.optim.warmup_epochs = 0.5, 0
    settings.trainer.max_epochs, settings.trainer.limit_train_batches, settings.trainer.limit_val_batches = 1, 2, 1
    return small, build(settings), frozen.removesuffix("*")


def rates_of(experiment):
    """Learning rates over the peak: of what comes before the first block, of the last block, and after it."""
    names = {id(parameter): name for name, parameter in experiment.model.named_parameters()}
    optim = experiment.settings.optim
    found = {}
    for group in create_optimizer(experiment.model, optim).param_groups:
        for name in (names[id(parameter)] for parameter in group["params"]):
            start = name.partition(".")[0]
            place = "last" if start in ("stages", "blocks") else "head" if start in ("norm", "head") else "first"
            assert found.setdefault(place, group["lr"] / optim.lr) == group["lr"] / optim.lr, name
    return found


def test_it_starts_there_and_trains_what_is_not_frozen(started, tmp_path):
    small, experiment, frozen = started
    assert experiment.splits.preprocess.input_size == (1, 48, 48)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    for name, value in small.state_dict().items():
        expected = value
        if value.shape != before[name].shape:
            assert name == "pos_embed" and before[name].shape[1] == 12 * 12 + 1
            expected = resize_positions(value, 8, 8, 12, 12)
        torch.testing.assert_close(before[name], expected, rtol=0, atol=0)
    assert rates_of(experiment) == {"first": 1 / 8, "last": 1 / 2, "head": 1}  # 0.5 per group of layers
    run = RunDir.create(tmp_path / "run")
    assert 0 <= fit(experiment, run)["val_top1"] <= 1
    run.close()
    after = dict(experiment.model.named_parameters())
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert still >= {name for name in after if name.startswith(frozen)}
    assert {name for name in still if not name.startswith(frozen)} <= {"pos_embed", "cls_token"}


@pytest.mark.parametrize(("name", "options", "window", "larger"), TIMM.values(), ids=TIMM)
def test_networks_of_timm_get_their_positions_as_from_timm(name, options, window, larger, tmp_path):
    def created(size, window):
        windows = {} if window is None else {"window_size": window}
        return create_classifier(name, 10, 1, img_size=size, **options, **windows)

    small = created(32, window)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    model = created(48, larger)
    report = load_checkpoint(model, tmp_path / "small.pth")
    assert report.resized.startswith("positions resized for another image size: ")
    cast(Any, small).set_input_size(img_size=(48, 48), **({} if larger is None else {"window_size": larger}))
    expected = small.state_dict()
    assert expected.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)

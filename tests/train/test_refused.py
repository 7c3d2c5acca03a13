"""Settings that cannot work are one clear error before an image is read and before anything is written."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from tests.train.tiny import tiny_settings
from vssm.__main__ import main
from vssm.tasks.classification import check_image_size, check_model_name, create_classifier
from vssm.train.fit import build, fit, start_run

IMAGES = Path(__file__).parents[1] / "data" / "run_of_0.1" / "images"


def settings_with(**changes):
    """On 24 images of 3 classes, in 6 batches; 12 validate, in 3. Changes by dotted name, "__" for the dot."""
    settings = tiny_settings()
    settings.data.name, settings.data.root, settings.data.image_size = "imagefolder", str(IMAGES), 16
    settings.data.batch_size = 4
    settings.trainer.limit_train_batches = settings.trainer.limit_val_batches = None
    for name, value in changes.items():
        section, _, key = name.partition("__")
        current = getattr(getattr(settings, section), key)
        setattr(getattr(settings, section), key, current | value if isinstance(current, dict) else value)
    return settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model__args": {"global_pool": ""}},
            r"is no classifier as it is built: .* it gives \(1, 4, 4, 3\), not \(1, 3\)",
        ),
        ({"model__args": {"global_pool": "x"}}, r"cannot be built with .*global_pool='x': Invalid pool type: x"),
        ({"model__args": {"dims": 3}}, "vmamba_nano cannot be built with dims=3, depths=.*has no len"),
        ({"model__args": {"d_state": "x"}}, "cannot be built with .*d_state='x'"),
        ({"model__args": {"norm_layer": "x"}}, "^vmamba_nano has no option 'norm_layer'; nearest: "),
        ({"model__name": "vmamba_nano.x"}, r"vmamba_nano has no weights 'x'"),
        ({"model__name": "resnet50.a1_in1"}, "resnet50 has no weights 'a1_in1'; nearest: a1_in1k"),
        ({"trainer__limit_train_batches": 0.1}, r"limit_train_batches: 0\.1 of 6 batches is none; take a larger share"),
        ({"trainer__limit_val_batches": 0.3}, r"limit_val_batches: 0\.3 of 3 batches is none; take a larger share"),
        ({"trainer__args": {"overfit_batches": 1}}, r"trainer\.args\.overfit_batches cannot be changed"),
        ({"trainer__args": {"val_check_interval": 7}}, "val_check_interval is 7, an epoch has 6 batches only"),
        ({"trainer__args": {"max_time": "x"}}, r"Lightning refuses these trainer settings \(.*max_time=x"),
        ({"trainer__args": {"max_time": "00:00:00:00"}}, "max_time is 00:00:00:00, which leaves no time to train"),
        ({"trainer__args": {"max_time": 0}}, r"Lightning refuses these trainer settings \(.*max_time=0"),
        ({"trainer__args": {"max_time": {"seconds": -1}}}, "max_time is .*, which leaves no time to train"),
        ({"trainer__strategy": "nonsense"}, r"Lightning refuses these trainer settings \(.*strategy=nonsense"),
        ({"data__auto_augment": "nonsense"}, "auto_augment is 'nonsense', which timm cannot read: Unknown AA policy"),
        ({"data__auto_augment": "rand-m9-mstdx"}, "timm cannot read: 'mstdx' is not letters followed by a number"),
        ({"data__auto_augment": "rand-x9"}, "'rand-x9', which timm cannot read: Unknown RandAugment config section"),
        ({"data__auto_augment": "rand-tnothing"}, "'tnothing' is no set of transforms"),
        ({"data__auto_augment": "augmix-w", "data__augment": False}, "auto_augment is 'augmix-w'"),
    ],
    ids=str,
)
def test_one_error_that_names_it(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        build(settings_with(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m9-n3-tweights", "augmix-m5-w4-d2", "original-mstd0.5", "3a"]
)
def test_policies_of_timm_are_taken(policy):
    assert len(build(settings_with(data__auto_augment=policy)).splits.train[0][0]) == 3


def test_the_command_writes_nothing_and_exits_with_one_line(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["fit", "--model", "vmamba_nano", "--data.root", str(IMAGES), "--accelerator", "cpu", "--out", str(out)]
    for more in (
        ["--model.args.in_chans", "1"],
        ["--trainer.limit-train-batches", "0"],
        ["--data.auto-augment", "x"],
        ["--trainer.args.max_time", "00:00:00:00"],
    ):
        assert main([*argv, *more]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("vssm: error: ") and "\n" not in error
        assert not out.exists()


class StopAtOnce(Callback):
    def on_fit_start(self, trainer, pl_module):
        trainer.should_stop = True


def test_a_training_without_a_checkpoint_is_an_error(tmp_path):
    settings = settings_with()
    settings.out = str(tmp_path / "run")
    with pytest.raises(ValueError, match="training ended before the first checkpoint; let it run longer"):
        fit(build(settings), start_run(settings), callbacks=[StopAtOnce()])


def test_a_bug_of_a_builder_stays_one():
    """Without arguments of the user, an error inside a builder is not theirs to repair."""
    with pytest.raises(ValueError, match="cannot be built with depths=7: "):
        create_classifier("vmamba_nano", depths=7)
    with pytest.raises(TypeError):
        create_classifier("vmamba_nano", num_classes="x")


def test_answers_of_another_kind_are_named():
    class Answer(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.weight, self.answer = nn.Parameter(torch.zeros(1)), answer

        def forward(self, x):
            return self.answer

    check_image_size(Answer(torch.zeros(1, 3)), "it", (3, 8, 8), 3)
    with pytest.raises(
        ValueError, match=r"it is no classifier as it is built: for one image it gives list, not \(1, 3\)"
    ):
        check_image_size(Answer([torch.zeros(1, 3)]), "it", (3, 8, 8), 3)
    with pytest.raises(ValueError, match=r"gives \(1, 4\), not \(1, 3\)"):
        check_image_size(Answer(torch.zeros(1, 4)), "it", (3, 8, 8), 3)


def test_looking_at_a_model_keeps_its_modes():
    model = create_classifier("test_resnet", 3).train()
    model.bn1.eval()
    check_image_size(model, "it", (3, 32, 32), 3)
    assert model.training and not model.bn1.training and model.layer1.training


def test_names_with_tags():
    for name in ("vmamba_tiny", "vmamba_tiny.in1k", "resnet18.a1_in1k", "hf-hub:owner/name", "local-dir:/somewhere"):
        check_model_name(name)

import ast
import inspect
import subprocess
import sys
from dataclasses import fields

import lightning
import pytest
import yaml

from vssm._yaml import read_yaml
from vssm.settings import Settings, TrainerSettings
from vssm_cli import LIGHT
from vssm_cli.settings import recipes


def test_trainer_settings_are_lightning_arguments():
    arguments = inspect.signature(lightning.Trainer).parameters
    assert {field.name for field in fields(TrainerSettings)} - {"args", "sharded_checkpoints"} <= set(arguments)


def test_settings_survive_yaml():
    settings = Settings(seed=5)
    settings.optim.betas = (0.8, 0.9)
    settings.model.args = {"dims": [8, 16]}
    assert Settings.from_dict(yaml.safe_load(yaml.safe_dump(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    ("plain", "name"),
    [({"model": {"nam": "x"}}, "model.nam"), ({"sed": 1}, "sed")],
)
def test_unknown_settings_are_named(plain, name):
    with pytest.raises(ValueError, match=f"has {name}, which this version of vssm does not know"):
        Settings.from_dict(plain)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("trainer", "max_epochs", -1, r"trainer.max_epochs is -1; it must be in \[1, inf\)"),
        ("trainer", "max_steps", 0, "trainer.max_steps is 0; it must be at least 1, or -1"),
        ("data", "batch_size", 0, r"data.batch_size is 0; it must be in \[1, inf\)"),
        ("data", "image_size", -8, "data.image_size is -8"),
        ("data", "repeats", 0, r"data.repeats is 0; it must be in \[1, inf\)"),
        ("data", "crop_pct", 0, r"data.crop_pct is 0; it must be in \(0, 1\]"),
        ("optim", "lr", 0.0, r"optim.lr is 0.0; it must be in \(0, inf\)"),
        ("optim", "lr_batch", 0, r"optim.lr_batch is 0; it must be in \[1, inf\)"),
        ("optim", "lr", float("nan"), "optim.lr is nan"),
        ("optim", "ema_decay", 1.0, r"optim.ema_decay is 1.0; it must be in \[0, 1\)"),
        ("optim", "betas", (0.9, 1.5), r"optim.betas are \(0.9, 1.5\)"),
        ("model", "drop_path", 1.5, "model.drop_path is 1.5"),
        ("", "seed", -1, "seed is -1"),
        ("", "log", "tensorboard", r"log is tensorboard; expected csv, then any of \+tensorboard, \+wandb, \+mlflow"),
        ("", "log", "csv+mlflow+mlflow", "log is csv.mlflow.mlflow; .* each once"),
        ("", "log", "csv+wandd", "log is csv.wandd"),
        (
            "trainer",
            "limit_train_batches",
            0,
            "limit_train_batches is 0; it must be a number of batches, 1 or",
        ),
        ("trainer", "limit_train_batches", 1.5, r"limit_train_batches is 1.5; .* or a share in \(0, 1\]"),
        ("trainer", "limit_val_batches", 0.0, "limit_val_batches is 0.0"),
        ("trainer", "limit_val_batches", -3, "limit_val_batches is -3"),
        ("trainer", "precision", "bf16-true", "expected 32-true, bf16-mixed, 16-mixed or 64-true"),
        ("trainer", "precision", "64-mixed", "precision is 64-mixed"),
        ("optim", "temperature_epochs", -1.0, r"temperature_epochs is -1.0; it must be in \[0, inf\)"),
        ("model", "args", {"in_chans": 1}, r"model\.args\.in_chans cannot be given: the images decide it"),
        ("model", "args", {"num_classes": 3}, r"model\.args\.num_classes cannot be given: the classes of the images"),
        ("model", "args", {"pretrained": True}, r"args\.pretrained .* a setting of its own: model\.pretrained"),
        ("model", "args", {"drop_path_rate": 0.1}, r"args\.drop_path_rate .* a setting of its own: model\.drop_path"),
        (
            "model",
            "args",
            {"features_only": True},
            r"args\.features_only cannot be given: a network without a",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_named(section, key, value, message):
    settings = Settings()
    setattr(getattr(settings, section) if section else settings, key, value)
    with pytest.raises(ValueError, match=message):
        settings.check()


@pytest.mark.parametrize(("key", "value"), [("auto_augment", "rand-m9"), ("random_erasing", 0.1), ("crop_pct", 0.9)])
def test_what_the_digits_cannot_do_is_refused(key, value):
    settings = Settings()
    settings.data.name = "digits"
    settings.check()
    setattr(settings.data, key, value)
    with pytest.raises(ValueError, match=f"data.{key} has no meaning for the bundled digits"):
        settings.check()


def test_limits_that_make_sense():
    for limit in (None, 1, 500, 1.0, 0.25):
        settings = Settings()
        settings.trainer.limit_train_batches = settings.trainer.limit_val_batches = limit
        settings.check()


def test_a_run_of_an_earlier_version_goes_on_as_it_was():
    """A setting that its configuration does not name has the value of what was done then, not today's default."""
    plain = Settings().as_dict()
    assert Settings.from_stored(plain) == Settings.from_dict(plain)
    assert (Settings().data.erase_mode, Settings().optim.temperature_epochs) == ("pixel", 10.0)
    del plain["data"]["erase_mode"], plain["optim"]["temperature_epochs"]
    stored = Settings.from_stored(plain)
    assert (stored.data.erase_mode, stored.optim.temperature_epochs) == ("const", 0.0)
    assert Settings.from_dict(plain).data.erase_mode == "pixel", "a recipe is no stored run"


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid(name):
    Settings.from_dict(read_yaml(recipes()[name])).check()


def test_settings_need_the_standard_library_only():
    """The command loads this file by its path, before anything heavy: `vssm` itself would import torch."""
    code = """
import sys
before = set(sys.modules)
import vssm_cli
sys.modules["vssm.settings"].Settings(seed=3).check()
print(sorted(set(sys.modules) - before - set(sys.stdlib_module_names) - {"vssm_cli"}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [name for name in ast.literal_eval(run.stdout) if name.partition(".")[0] not in sys.stdlib_module_names]
    assert found == sorted(f"vssm.{name}" for name in LIGHT)


def test_equal_copies_are_refused():
    settings = Settings()
    settings.data.repeats, settings.data.augment = 3, False
    with pytest.raises(ValueError, match=r"data.repeats is 3 with data.augment false: the copies would be equal"):
        settings.check()

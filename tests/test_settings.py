import inspect
import subprocess
import sys
from dataclasses import fields

import lightning
import pytest
import yaml

from vssm._yaml import read_yaml
from vssm.settings import Settings, TrainerSettings
from vssm.settings import __file__ as settings_file
from vssm_cli.settings import recipes


def test_trainer_settings_are_lightning_arguments():
    arguments = inspect.signature(lightning.Trainer).parameters
    assert {field.name for field in fields(TrainerSettings)} - {"args"} <= set(arguments)


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
        ("data", "crop_pct", 0, r"data.crop_pct is 0; it must be in \(0, 1\]"),
        ("optim", "lr", 0.0, r"optim.lr is 0.0; it must be in \(0, inf\)"),
        ("optim", "lr", float("nan"), "optim.lr is nan"),
        ("optim", "ema_decay", 1.0, r"optim.ema_decay is 1.0; it must be in \[0, 1\)"),
        ("optim", "betas", (0.9, 1.5), r"optim.betas are \(0.9, 1.5\)"),
        ("model", "drop_path", 1.5, "model.drop_path is 1.5"),
        ("", "seed", -1, "seed is -1"),
    ],
)
def test_numbers_that_make_no_sense_are_named(section, key, value, message):
    settings = Settings()
    setattr(getattr(settings, section) if section else settings, key, value)
    with pytest.raises(ValueError, match=message):
        settings.check()


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid(name):
    Settings.from_dict(read_yaml(recipes()[name])).check()


def test_settings_need_the_standard_library_only():
    """The command loads this file by its path, before anything heavy: `vssm` itself would import torch."""
    code = """
import importlib.util, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("settings_alone", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.Settings(seed=3).check()
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    run = subprocess.run([sys.executable, "-c", code, settings_file], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

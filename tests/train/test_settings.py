import inspect
from dataclasses import fields

import lightning
import pytest
import yaml

from vssm.cli.settings import recipes
from vssm.train.run_dir import read_yaml
from vssm.train.settings import Settings, TrainerSettings


def test_trainer_settings_are_lightning_arguments():
    arguments = inspect.signature(lightning.Trainer).parameters
    assert {field.name for field in fields(TrainerSettings)} <= set(arguments)


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


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid(name):
    Settings.from_dict(read_yaml(recipes()[name]))

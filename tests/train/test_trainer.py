import pytest
import torch

from tests.train.tiny import tiny_settings
from vssm.train.trainer import create_trainer


def with_args(**arguments):
    settings = tiny_settings()
    settings.trainer.args = arguments
    return settings


def test_any_argument_of_lightning_reaches_it():
    trainer = create_trainer(with_args(min_epochs=2, val_check_interval=2, profiler="simple"))
    assert (trainer.min_epochs, trainer.val_check_interval) == (2, 2)
    assert type(trainer.profiler).__name__ == "SimpleProfiler"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"profilr": "simple"}, r"trainer\.args\.profilr is not a lightning\.Trainer argument; nearest: profiler"),
        ({"max_epochs": 3}, r"trainer\.args\.max_epochs is a setting of its own: trainer\.max_epochs"),
        ({"logger": True}, r"trainer\.args\.logger cannot be changed"),
        ({"profiler": "smple"}, r"Lightning refuses these trainer settings \(.*profiler=smple"),
        ({"min_epochs": "x", "val_check_interval": 1.5}, r"Lightning refuses these trainer settings"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        create_trainer(with_args(**arguments))


def test_a_missing_gpu_and_unknown_settings_are_named():
    settings = tiny_settings()
    settings.trainer.precision = "16-mixed"
    with pytest.raises(ValueError, match="16-mixed, which needs a GPU; on the CPU choose bf16-mixed or 32-true"):
        create_trainer(settings)
    settings.trainer.precision = "bf17"
    with pytest.raises(ValueError, match=r"Lightning refuses these trainer settings \(.*precision=bf17"):
        create_trainer(settings)
    if not torch.accelerator.is_available():
        settings.trainer.precision, settings.trainer.accelerator = "32-true", "gpu"
        with pytest.raises(ValueError, match=r"trainer\.accelerator is gpu, but torch finds none here; choose cpu"):
            create_trainer(settings)

"""What a training on several devices takes, by hand, and the figures that it is made of."""

import math

import pytest
import torch

import vssm
from vssm.analysis.memory import activation_bytes, state_bytes
from vssm.train.forecast import Asked, Figures, forecast, measure_device, measure_loader, memory_of


def test_one_device_by_hand():
    found = forecast(Asked(1000, 1, 64, 3), Figures(128.0, 50.0, 400))
    assert (found.steps_per_epoch, found.steps) == (15, 45)
    assert (found.compute_seconds, found.step_seconds, found.sent_bytes) == (0.5, 0.5, 0)
    assert found.hours == 45 * 0.5 / 3600 and found.images_per_second == 128
    assert (found.input_images_per_second, found.loader_cores) == (128, 3)
    assert found.reduce_seconds is None and found.memory_bytes is None


def test_eight_devices_by_hand():
    figures = Figures(128.0, 64.0, 800, state_bytes=1000, activation_bytes=10)
    found = forecast(Asked(10_000, 8, 64, 2, bandwidth=14_000), figures)
    assert found.sent_bytes == 2 * 7 * 800 // 8 == 1400  # a ring
    assert (found.reduce_seconds, found.step_seconds) == (0.1, 0.5)  # hidden
    assert (found.steps_per_epoch, found.images_per_second) == (19, 8 * 128)
    assert found.hidden_bandwidth == 1400 / 0.5
    assert found.memory_bytes == 1000 + 64 * 10
    slow = forecast(Asked(10_000, 8, 64, 2, bandwidth=1400), figures)
    assert slow.reduce_seconds == slow.step_seconds == 1.0 and slow.hours == 2 * found.hours
    assert (slow.input_images_per_second, slow.loader_cores) == (64, 1)  # the network decides


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0,), "data_size must be at least 1, not 0"),
        ((10, 0), "gpus must be at least 1, not 0"),
        ((100, 2, 64), "data_size 100 is less than one step of 2 x 64 images; a smaller batch_size, or fewer gpus"),
        ((100, 1, 64, 1, -1.0), "bandwidth must be above 0, not -1.0"),
        ((100, 1, 64, 1, math.nan), "bandwidth must be above 0, not nan"),
    ],
)
def test_what_makes_no_step_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Asked(*values)


def test_a_speed_must_be_above_0():
    with pytest.raises(ValueError, match=r"images_per_second must be above 0, not 0\.0"):
        forecast(Asked(100, 1, 10), Figures(0.0, 1.0, 1))


def test_figures_of_this_machine(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(self))
    speed, batch = measure_device("vmamba_nano", 32, 64, "32-true", torch.device("cpu"), seconds=1e-3)
    assert batch == 8 and speed > 0 and len(steps) == 4  # one warms up
    assert measure_loader("vmamba_nano", 32, "rand-m9-mstd0.5-inc1", seconds=0.01) > 10
    model = vssm.create_model("vmamba_nano")
    gradients, state, activations = memory_of("vmamba_nano", 32, torch.float32)
    assert gradients == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert (state, activations) == (state_bytes(model), activation_bytes(model, (3, 32, 32)))

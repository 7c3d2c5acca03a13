from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vssm.train.averaging import AverageWeights


def averages_of(model, *arguments):
    averages = AverageWeights(*arguments)
    averages._average_model = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    return averages, averages._average_model.module


def test_without_warmup_the_decay_is_constant_from_the_initial_weights_on():
    """As timm's ModelEma, which the official codes use."""
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(4.0)
    averages, found = averages_of(model, 0.75, False)
    expected = 4.0
    for step, value in enumerate((3.0, 5.0, -1.0), start=1):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked.fill_(step)
        averages.on_train_batch_end(SimpleNamespace(global_step=step), model, None, None, 0)
        expected = 0.75 * expected + 0.25 * value
        torch.testing.assert_close(found.weight.detach(), torch.full((2,), expected))
        assert found.num_batches_tracked == step


def test_a_temperature_is_copied():
    model = nn.Module()
    model.register_buffer("temperature", torch.tensor(30.0))
    model.register_buffer("other", torch.tensor(30.0))
    averages, found = averages_of(model, 0.9)
    for step in (1, 2):
        model.temperature.fill_(10.0 / step)
        model.other.fill_(10.0 / step)
        averages.on_train_batch_end(SimpleNamespace(global_step=step), model, None, None, 0)
    assert found.temperature == 5
    assert float(found.other) == pytest.approx(10 * 3 / 12 + 5 * 9 / 12)


def test_formula_step_by_step():
    """The first step copies; early steps move far, later ones by 1 - decay; counters are copied; a batch without a
    step does nothing."""
    model = nn.BatchNorm1d(2)
    averages, found = averages_of(model, 0.3)
    expected = 0.0
    for step, value in enumerate((3.0, 5.0, -1.0, 2.0), start=1):
        with torch.no_grad():
            for tensor in (model.weight, model.bias, model.running_mean):
                tensor.fill_(value)
            model.num_batches_tracked.fill_(step)
        decay = {1: 0.0, 2: 3 / 12, 3: 0.3, 4: 0.3}[step]  # 4 / 13 and 5 / 14 are more than 0.3
        expected = decay * expected + (1 - decay) * value
        for _ in range(2):
            averages.on_train_batch_end(SimpleNamespace(global_step=step), model, None, None, 0)
            for tensor in (found.weight, found.bias, found.running_mean):
                torch.testing.assert_close(tensor.detach(), torch.full((2,), expected))
            assert found.num_batches_tracked == step
    assert averages._average_model.n_averaged == 4

"""Medians over turns, steps of training and inference, threads."""

import pytest
import torch
from torch import nn

from vssm.analysis.throughput import LEAST_TURNS, Conditions, Measured, Runner, in_turns, peak_of
from vssm.ops.native import cpu_threads


class Timed:
    """Takes the next of these seconds at each call; the first of them warms up."""

    def __init__(self, *seconds):
        self.left = list(seconds)

    def seconds(self):
        return self.left.pop(0)


def test_medians_of_turns():
    conditions = Conditions(batch=6, seconds=0)
    runner, reference = Timed(99, 2, 3, 4), Timed(99, 4, 3, 16)  # ratios 2, 1, 4
    assert in_turns(runner, reference, 12.5, conditions) == Measured(6 / 3, 2.0, LEAST_TURNS, 12.5, False)
    assert runner.left == reference.left == []
    alone = Timed(99, 2, 1, 4)
    assert in_turns(alone, alone, None, conditions) == Measured(6 / 2, 1.0, LEAST_TURNS, None, False)
    assert alone.left == []


@pytest.mark.parametrize("training", [False, True])
def test_a_step(training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 2), nn.Dropout(0.5))
    runner = Runner(model, (4, 6), Conditions(batch=5, training=training))
    assert runner.images.shape == (5, 3, 4, 6) and runner.images.dtype == torch.float32
    assert runner.seconds() > 0
    assert model.training == training
    weight = model[1].weight
    assert (weight.grad is not None) == training
    if training:  # a step starts from no gradient
        first = weight.grad.abs().sum()
        torch.manual_seed(0)
        runner.seconds()
        torch.manual_seed(0)
        second = weight.grad.clone()
        runner.seconds()
        assert first > 0 and torch.equal(weight.grad, second)


def test_precision_is_that_of_the_step():
    seen = []

    class Layer(nn.Linear):
        def forward(self, input):
            seen.append(super().forward(input).dtype)
            return super().forward(input)

    model = nn.Sequential(nn.Flatten(), Layer(4, 2))
    for precision in ("32-true", "bf16-mixed"):
        Runner(model, (2, 2), Conditions(training=True, precision=precision), channels=1).seconds()
    assert seen == [torch.float32, torch.bfloat16]
    with pytest.raises(ValueError, match="precision is 'half'; expected one of 32-true"):
        Runner(model, (2, 2), Conditions(precision="half"), channels=1)
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        Runner(model, (2, 2), Conditions(precision="16-mixed"), channels=1)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def test_peak_of_counts_two_calls_and_the_building():
    calls = []

    class Counting(Timed):
        def seconds(self):
            calls.append(torch.get_num_threads())
            return 1.0

    found = peak_of(Counting, Conditions(threads=2))
    assert calls == [2, 2]
    assert found is None or found >= 0

"""What a training step keeps in memory."""

import torch
from torch import nn

from vssm.analysis.memory import activation_bytes, state_bytes


def test_what_the_backward_finds():
    """A linear layer saves its input (64 values), a ReLU its output (256), the second layer the same; mean nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 3))
    assert activation_bytes(model, (1, 8, 8)) == 4 * (64 + 256)


def test_the_model_and_random_numbers_stay(monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert activation_bytes(model, (1, 8, 8)) > 0
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_precision_saves_less():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.GELU(), nn.Conv2d(64, 64, 3))
    assert activation_bytes(model, (3, 32, 32), torch.bfloat16) < 0.7 * activation_bytes(model, (3, 32, 32))


def test_what_stays():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10))  # 120 parameters, 20 values, a counter
    model[1].requires_grad_(False)
    buffers = 20 * 4 + 8
    assert state_bytes(model, averaged=False) == 120 * 4 + buffers + 3 * 100 * 4
    assert state_bytes(model) == 2 * (120 * 4 + buffers) + 3 * 100 * 4

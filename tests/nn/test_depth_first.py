"""Samples taken a few at a time: the same numbers, and nobody who watches sees a part of the batch."""

import pytest
import timm
import torch

import vssm  # noqa: F401  (registers the models)
from vssm.nn import depth_first as module


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(module, "WORKING_SET", 1)  # one sample at a time, per thread
    torch.manual_seed(0)
    return timm.create_model("vmamba_nano", num_classes=7).eval()


def batches_seen(model, images, monkeypatch):
    seen = []
    original = model.stages[1].blocks.forward
    monkeypatch.setattr(model.stages[1].blocks, "forward", lambda x: seen.append(x.shape[0]) or original(x))
    model(images)
    return seen


@pytest.mark.parametrize("name", ["vmamba_nano", "spatial_mamba_nano"])
def test_the_numbers_do_not_change(name, monkeypatch):
    monkeypatch.setattr(module, "WORKING_SET", 1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        parts = model(images)
    torch.testing.assert_close(parts, model(images), rtol=1e-5, atol=1e-5)


def test_growth_counts_the_maps_inside(monkeypatch):
    layer, seen = torch.nn.Identity().eval(), []
    x = torch.randn(7, 10)
    monkeypatch.setattr(module, "WORKING_SET", 240)  # six samples of 40 bytes
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad():
        for growth in (1, 3):
            y = module.depth_first(layer, lambda part: seen.append(len(part)) or part * 2, x, growth)
            torch.testing.assert_close(y, x * 2)
    assert seen == [6, 1, 2, 2, 2, 1]


def test_parts_in_inference_and_wholes_in_training(model, monkeypatch):
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert max(batches_seen(model, images, monkeypatch)) <= torch.get_num_threads()
    assert batches_seen(model, images, monkeypatch) == [5]
    model.train()
    with torch.no_grad():
        assert batches_seen(model, images, monkeypatch) == [5]


def test_a_hook_sees_the_whole_batch(model):
    seen = []
    model.stages[1].blocks[0].register_forward_hook(lambda m, args, y: seen.append(y.shape[0]))
    with torch.no_grad():
        model(torch.randn(5, 3, 32, 32))
    assert seen == [5]

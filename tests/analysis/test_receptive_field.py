"""Effective receptive fields of any model with maps."""

import pytest
import timm
import torch
from torch import nn

import vssm
from tests.goldens import image
from vssm.analysis import effective_receptive_field
from vssm.analysis.receptive_field import ReceptiveField


class Conv(nn.Module):
    """Two convolutions with known weights: a receptive field that can be written down."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False) for _ in range(2))
        for conv in (self.first, self.second):
            nn.init.constant_(conv.weight, 1.0)

    def forward(self, x):
        return self.second(self.first(x))


def test_two_convolutions():
    """Ones twice: the outer product of (1, 2, 3, 2, 1), three times for the colours, around the target."""
    found = effective_receptive_field(Conv(), torch.rand(4, 3, 16, 16), target=(7, 5))
    line = torch.tensor([1.0, 2, 3, 2, 1], dtype=torch.float64)
    want = torch.zeros(16, 16, dtype=torch.float64)
    want[5:10, 3:8] = 3 * line[:, None] * line
    torch.testing.assert_close(found.map, want)
    assert (found.images, found.skipped, found.grid, found.target, found.center) == (4, 0, (16, 16), (7, 5), (7, 5))
    torch.testing.assert_close(found.normalised(), (want / want.max()) ** 0.2)
    # 9 of 81 in the middle, 49 of 81 in 3 x 3 (the line holds 7 of its 9).
    sides = {square.threshold: (square.side, square.share) for square in found.squares((0.05, 0.11, 0.12, 0.6, 0.61))}
    assert sides == {0.05: (1, 1 / 256), 0.11: (1, 1 / 256), 0.12: (3, 9 / 256), 0.6: (3, 9 / 256), 0.61: (5, 25 / 256)}


def test_a_square_is_cut_at_the_border():
    field = ReceptiveField(torch.eye(8, dtype=torch.float64), (0, 0), (1, 1), (8, 8), 1, 0)
    square = field.square(0.99)
    assert (square.side, square.share) == (13, 1.0)
    assert field.square(0.3).share == 3 * 3 / 64, "rows and columns -0 to 2"
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        field.square(1)


MODELS = {
    "vmamba_nano": (16, {}),
    "spatial_mamba_nano": (16, {}),
    "vim_nano": (8, {}),
    "resnet10t": (2, {}),
    "vit_tiny_patch16_224": (4, {"img_size": 64}),
    "test_convnext": (2, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    torch.manual_seed(0)
    _, options = MODELS[name]
    model = timm.create_model(name, **options).eval()
    images = image(0, (2, 3, 64, 64))
    both = effective_receptive_field(model, images)
    each = [effective_receptive_field(model, one).map for one in images]
    torch.testing.assert_close(both.map, (each[0] + each[1]) / 2)
    torch.testing.assert_close(effective_receptive_field(model, [images]).map, both.map, rtol=1e-3, atol=1e-9)
    assert both.map.shape == (64, 64) and both.map.min() >= 0
    x = images[:1].clone().requires_grad_()
    last = model.forward_intermediates(x, intermediates_only=True)[-1]
    torch.relu(last[:, :, last.shape[2] // 2, last.shape[3] // 2]).sum().backward()
    torch.testing.assert_close(each[0], torch.relu(x.grad)[0].sum(0).double(), rtol=1e-3, atol=1e-9)


def test_stages_and_backbones():
    model = vssm.create_model("vmamba_nano").eval()
    x = image(0, (3, 32, 32))
    fields = [effective_receptive_field(model, x, stage) for stage in range(3)]
    assert [field.grid for field in fields] == [(16, 16), (8, 8), (4, 4)]
    torch.testing.assert_close(effective_receptive_field(model, x, -3).map, fields[0].map)
    features = vssm.create_model("vmamba_nano", features_only=True).eval()
    features.load_state_dict(model.state_dict(), strict=False)
    assert effective_receptive_field(features, x, 1).grid == (8, 8)
    segmenting = nn.Module()
    segmenting.backbone = model
    torch.testing.assert_close(effective_receptive_field(segmenting, x, 1).map, fields[1].map)


def test_the_model_is_left_as_it_was():
    model = vssm.create_model("vmamba_nano").eval()
    model.stages[0].blocks[0].mixer.D.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    flags = [stage.grad_checkpointing for stage in model.stages]
    with torch.no_grad():  # a caller's mode plays no part
        effective_receptive_field(model, image(0, (3, 32, 32)))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert [stage.grad_checkpointing for stage in model.stages] == flags == [False] * 3
    assert all(p.grad is None for p in model.parameters())


def test_images_that_give_nothing_are_skipped():
    class Broken(nn.Module):
        def forward(self, x):
            return x * torch.where(x.mean() > 1, torch.nan, 1.0)

    images = torch.ones(3, 3, 4, 4)
    images[1] = 2
    images[2] = -1  # relu of a negative output: no gradient
    found = effective_receptive_field(Broken(), images)
    assert (found.images, found.skipped) == (1, 2)
    with pytest.raises(ValueError, match="none of 1 images gave a gradient that is finite"):
        effective_receptive_field(Broken(), images[1])


def test_progress_counts_images():
    seen = []
    effective_receptive_field(Conv(), [torch.rand(2, 3, 8, 8), torch.rand(3, 8, 8)], progress=seen.append)
    assert seen == [2, 3]


def test_bad_requests():
    x = torch.rand(3, 8, 8)
    with pytest.raises(ValueError, match=r"Sequential has no feature maps: it returns \[\(1, 2\)\]"):
        effective_receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), x)
    with pytest.raises(IndexError, match="no stage 3: the model has 1 feature maps, 0 to 0"):
        effective_receptive_field(Conv(), x, 3)
    with pytest.raises(IndexError, match=r"target \(8, 0\) is outside of the feature map, which has 8 x 8 pixels"):
        effective_receptive_field(Conv(), x, target=(8, 0))
    with pytest.raises(ValueError, match="one size; after 8 x 8 came 8 x 9"):
        effective_receptive_field(Conv(), [x, torch.rand(3, 8, 9)])
    with pytest.raises(ValueError, match="there are no images"):
        effective_receptive_field(Conv(), [])
    with pytest.raises(ValueError, match=r"expected an image \(3, H, W\) or a batch .* got \(8, 8\)"):
        effective_receptive_field(Conv(), [x[0]])

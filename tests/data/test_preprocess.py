"""The evaluation transform of every model that timm registers is timm's own."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from vssm.data.preprocess import Preprocess, published_preprocess
from vssm.data.transforms import ResizedCenterCrop
from vssm.inference.predictor import load_predictor

# Odd sizes: wide, tall, smaller than the crop, one pixel high.
SIZES = [(501, 377), (333, 799), (97, 131), (224, 224), (640, 1)]
# One name of every kind of published preprocessing: how it crops, whether it is tested at another size or crop.
KINDS = {
    "resnet18.a1_in1k": (288, 1.0, "center"),
    "tf_efficientnetv2_m.in21k_ft_in1k": (480, 1.0, "squash"),
    "convnext_tiny.fb_in22k_ft_in1k_384": (384, 1.0, "squash"),
    "fasternet_t0.in1k": (224, 0.9, "center"),
    "fbnetv3_b.ra2_in1k": (256, 0.95, "center"),
    "coat_lite_medium_384.in1k": (384, 1.0, "squash"),
    "resnet50.tv_in1k": (224, 0.875, "center"),
    "regnetz_d32.ra3_in1k": (320, 0.95, "center"),
    "vmamba_tiny": (224, 0.875, "center"),
}
BORDER = "deepseek_vit_412m"
NOT_SQUARE = "vit_base_patch16_sapiens2"


def published():
    """All names in timm's registry that have a description of their images, without their aliases."""
    return [name for name in timm.list_models() + timm.list_pretrained() if timm.get_pretrained_cfg(name)]


def reference(name, use_test_size=True):
    """timm's own transform, and what it was made of."""
    cfg = timm.get_pretrained_cfg(name).to_dict()
    config = resolve_data_config(pretrained_cfg=cfg, use_test_size=use_test_size)
    return create_transform(**config, is_training=False), config


def noise(width, height):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("use_test_size", [False, True])
def test_every_registered_description(use_test_size):
    names = published()
    assert len(names) > 2500
    seen = set()
    for name in names:
        found = published_preprocess(name, use_test_size=use_test_size)
        timms, config = reference(name, use_test_size)
        assert {**found.as_dict(), "input_size": found.input_size} == {
            k: list(v) if k in ("mean", "std") else v for k, v in config.items()
        }, name
        if not use_test_size:
            continue
        ours = found.transform()
        steps = ours.image_steps.transforms
        resize = timms.transforms[0]
        if isinstance(steps[0], ResizedCenterCrop):
            assert (steps[0].side, steps[0].interpolation) == (resize.size, resize.interpolation), name
            assert steps[0].crop == tuple(timms.transforms[1].size), name
        else:
            assert list(map(str, steps)) == list(map(str, timms.transforms[:2])), name
        assert ours.mean.flatten().tolist() == pytest.approx(list(config["mean"])), name
        assert ours.std.flatten().tolist() == pytest.approx(list(config["std"])), name
        seen.add((found.crop_mode, found.interpolation))
    assert not use_test_size or {mode for mode, _ in seen} == {"center", "squash", "border"}


@pytest.mark.parametrize("name", [*KINDS, BORDER, NOT_SQUARE])
def test_pixels_of_each_kind(name):
    preprocess = published_preprocess(name, use_test_size=True)
    if name in KINDS:
        assert (preprocess.input_size[1], preprocess.crop_pct, preprocess.crop_mode) == KINDS[name]
    transform, (timms, _) = preprocess.transform(), reference(name)
    std = torch.tensor(preprocess.std).view(3, 1, 1)
    for size in SIZES:
        ours, want = transform(noise(*size)), timms(noise(*size))
        assert ours.shape == want.shape == preprocess.input_size
        found = (ours - want).mul(std * 255).abs()
        if preprocess.crop_mode == "center":  # cropped while it is resized: a value may be rounded the other way
            assert found.max() < 2.01 and (found > 1.5).float().mean() < 1e-4 and found.mean() < 0.03, size
        else:
            assert torch.equal(ours, want), size


def test_training_takes_the_size_of_the_training():
    assert published_preprocess("resnet50.a1_in1k").input_size == (3, 224, 224)
    assert published_preprocess("resnet50.a1_in1k").crop_pct == 0.95
    assert published_preprocess("resnet50.a1_in1k", use_test_size=True).crop_pct == 1.0


def test_another_size_keeps_the_rest():
    published = published_preprocess("convnext_tiny.fb_in22k_ft_in1k_384", 100, use_test_size=True)
    assert (published.input_size, published.crop_pct, published.crop_mode) == ((3, 100, 100), 1.0, "squash")


def test_a_model_says_for_itself():
    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"crop_mode": "border", "test_crop_pct": 0.5})
    found = published_preprocess(model, use_test_size=True)
    assert (found.crop_mode, found.crop_pct) == ("border", 0.5)


def test_prediction_takes_the_published_size(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "file.pth")
    predictor = load_predictor(tmp_path / "file.pth", "resnet10t")
    assert predictor.preprocess.input_size == (3, 224, 224)
    assert timm.get_pretrained_cfg("resnet10t").test_input_size == (3, 224, 224)
    assert predictor.preprocess == published_preprocess("resnet10t", use_test_size=True)
    assert predictor.preprocess.input_size != published_preprocess("resnet10t").input_size
    assert predictor.model(torch.zeros(1, *predictor.preprocess.input_size)).shape == (1, 1000)


def test_a_checkpoint_from_before_crops_the_centre():
    old = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9}
    found = Preprocess.from_dict(old)
    assert found.crop_mode == "center"
    assert Preprocess.from_dict(found.as_dict()) == found


def test_an_unknown_crop_mode():
    with pytest.raises(ValueError, match="unknown crop_mode 'centre': choose one of center, squash, border"):
        Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3, crop_mode="centre")

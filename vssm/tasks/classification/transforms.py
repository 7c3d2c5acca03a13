"""How an image becomes a classifier's input: as the model was published, and with variation for training."""

import math
from dataclasses import replace
from typing import Any

from timm.data.transforms_factory import create_transform

import vssm.models  # noqa: F401 (registers our models with timm)
from vssm.data.preprocess import Preprocess, published_preprocess
from vssm.data.transforms import ImageTransform
from vssm.settings import DataSettings


def preprocess_for(settings: DataSettings, model_name: str) -> Preprocess:
    """The model's own published preprocessing, with what the settings change."""
    return changed(published_preprocess(model_name, settings.image_size), settings)


def changed(preprocess: Preprocess, settings: DataSettings) -> Preprocess:
    """With the size, interpolation and crop that the settings name."""
    changes: dict[str, Any] = {"interpolation": settings.interpolation, "crop_pct": settings.crop_pct}
    if settings.image_size is not None:
        changes["input_size"] = (preprocess.channels, settings.image_size, settings.image_size)
    return replace(preprocess, **{name: value for name, value in changes.items() if value is not None})


def train_transform(settings: DataSettings, preprocess: Preprocess) -> ImageTransform:
    """timm's training transform: random crop, flip, colours, erasing."""
    if not settings.augment:
        return preprocess.transform()
    built = create_transform(
        input_size=preprocess.input_size,
        is_training=True,
        scale=(settings.scale, 1.0),
        hflip=settings.hflip,
        color_jitter=settings.color_jitter,
        auto_augment=settings.auto_augment,
        re_prob=settings.random_erasing,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
    )
    # The smallest crop, of aspect 3:4, still has as many pixels as the model takes.
    min_side = math.ceil(max(preprocess.input_size[1:]) / math.sqrt(0.75 * settings.scale))
    return ImageTransform(built, min_side)

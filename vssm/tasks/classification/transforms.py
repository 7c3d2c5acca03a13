"""How an image becomes a classifier's input: as the model was published, and with variation for training."""

import math
import re
from dataclasses import replace
from typing import Any

from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
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
    """timm's training transform: random crop, flip, colours, erasing.

    Raises ValueError for an `auto_augment` that timm cannot read, or would read in part.
    """
    if settings.auto_augment is not None:
        check_policy(settings.auto_augment)
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
        re_mode=settings.erase_mode,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
    )
    # The smallest crop, of aspect 3:4, still has as many pixels as the model takes.
    min_side = math.ceil(max(preprocess.input_size[1:]) / math.sqrt(0.75 * settings.scale))
    return ImageTransform(built, min_side)


_SETS = ("weights", "3a", "3aw")
_POLICIES = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}


def check_policy(text: str) -> None:
    """Raises ValueError when timm's own parser refuses an augmentation policy, or would pass over a part of it."""
    kind, *options = text.split("-")
    problem = ""
    for option in options:
        if kind == "rand" and option.startswith("t"):
            if option[1:] not in _SETS:
                problem = f": {option!r} is no set of transforms, which are {', '.join(f't{one}' for one in _SETS)}"
        elif re.fullmatch(r"[a-z]+\d[\d.]*", option) is None:
            problem = f": {option!r} is not letters followed by a number"
    try:
        _POLICIES.get(kind, auto_augment_transform)(text)
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = problem or (f": {error}" if str(error) else ": unknown")
    if problem:
        raise ValueError(
            f"data.auto_augment is {text!r}, which timm cannot read{problem}; expected for example "
            "rand-m9-mstd0.5-inc1, augmix-m5-w4, original, originalr, v0, v0r or 3a"
        )

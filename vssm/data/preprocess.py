"""How an image file becomes a model's input. Stored in every checkpoint: training and prediction agree."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from vssm.data.image import open_image
from vssm.data.transforms import ImageTransform


@dataclass(frozen=True)
class Preprocess:
    """Resize so that the centre crop keeps `crop_pct` of the shorter side, scale to 0..1, normalise per channel."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875

    @property
    def channels(self) -> int:
        return self.input_size[0]

    def transform(self) -> ImageTransform:
        """The evaluation transform: PIL image in the right mode -> float32 tensor (C, H, W).

        A JPEG of more than twice the size that it is resized to is decoded smaller.
        """
        built = create_transform(
            input_size=self.input_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
        )
        return ImageTransform(built, min_side=math.ceil(2 * max(self.input_size[1:]) / self.crop_pct))

    def __call__(self, path: str | Path) -> torch.Tensor:
        """Reads one file. Raises UnreadableImage, a ValueError, when it is not a readable image."""
        transform = self.transform()
        return transform(open_image(path, self.channels, transform.min_side))

    def as_dict(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Preprocess":
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        return cls(**fields)


def published_preprocess(model_name: str, image_size: int | None = None) -> Preprocess:
    """What timm's registry says a model was trained with, at its own image size or at another."""
    published = timm.get_pretrained_cfg(model_name)
    config = resolve_data_config(pretrained_cfg=published.to_dict() if published else {})
    size = (3, image_size, image_size) if image_size else tuple(config["input_size"])
    return Preprocess(size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"], config["crop_pct"])

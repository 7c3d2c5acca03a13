"""How an image file becomes a model's input. Stored in every checkpoint: training and prediction agree."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import timm
import torch
from timm.data.config import resolve_data_config  # pyright: ignore[reportUnknownVariableType]
from timm.data.transforms_factory import create_transform
from torch import nn

from vssm.data.image import open_image
from vssm.data.transforms import ImageTransform

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["CROP_MODES", "Preparation", "Preprocess", "published_preprocess", "stored_preprocess"]

CROP_MODES = ("center", "squash", "border")


class Preparation(Protocol):
    """What every task's way from an image to the input of its network has: `Preprocess`, `KeepRatio`."""

    @property
    def channels(self) -> int: ...

    @property
    def input_size(self) -> tuple[int, int, int]: ...

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    def transform(self) -> Any:
        """With `pixels` (PIL image -> (H, W, C) uint8), `normalise` (-> (C, H, W) float32) and `min_side`."""
        ...

    def batch(
        self, pixels: Sequence[torch.Tensor], originals: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> Any:
        """The input of a network, of images as `pixels` makes them and the sizes (H, W) of their files."""
        ...

    def as_dict(self) -> dict[str, Any]: ...


def plain_fields(preprocess: "DataclassInstance") -> dict[str, Any]:
    """The fields in plain types: what a checkpoint holds."""
    plain: dict[str, Any] = {}
    for name, value in asdict(preprocess).items():
        plain[name] = list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value
    return plain


def tuple_fields(plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `plain_fields`."""
    fields: dict[str, Any] = {}
    for name, value in plain.items():
        fields[name] = tuple(cast(list[Any], value)) if isinstance(value, list) else value
    return fields


def stored_preprocess(plain: dict[str, Any]) -> Preparation:
    """What a checkpoint has of `Preprocess` or `KeepRatio`."""
    if "short_side" in plain:
        from vssm.data.keep_ratio import KeepRatio

        return KeepRatio.from_dict(plain)
    return Preprocess.from_dict(plain)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop, scale to 0..1, normalise per channel: timm's evaluation transform of these fields.

    input_size: (C, H, W) of the result. mean, std: one per channel, of values in 0..1.
    crop_mode: "center" resizes so that the crop keeps `crop_pct` of the shorter side; "squash" does so with either side
        and keeps no aspect ratio; "border" does so with the longer side and fills up with the mean.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self):
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"unknown crop_mode {self.crop_mode!r}: choose one of {', '.join(CROP_MODES)}")

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
            crop_mode=self.crop_mode,
        )
        return ImageTransform(built, min_side=math.ceil(2 * max(self.input_size[1:]) / self.crop_pct))

    def __call__(self, path: str | Path) -> torch.Tensor:
        """Reads one file. Raises UnreadableImage, a ValueError, when it is not a readable image."""
        transform = self.transform()
        return transform(open_image(path, self.channels, transform.min_side))

    def batch(
        self, pixels: Sequence[torch.Tensor], originals: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Images (H, W, C) as `transform().pixels` makes them -> (B, C, H, W)."""
        return self.transform().normalise(torch.stack(list(pixels)).to(device))

    def as_dict(self) -> dict[str, Any]:
        return plain_fields(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Preprocess":
        return cls(**tuple_fields(plain))


def published_preprocess(
    model: str | nn.Module, image_size: int | None = None, use_test_size: bool = False
) -> Preprocess:
    """What timm records about the images of a model, by its name in the registry or built.

    Args:
        model: "resnet50.a1_in1k", or a model with a `pretrained_cfg`.
        image_size: of square images, in place of the published size.
        use_test_size: the size and crop that the published accuracy was measured with, where they are not those of the
            training. For predictions with published weights; what is trained here is validated as it was trained.
    """
    cfg: dict[str, Any]
    if isinstance(model, str):
        published = cast(Any, timm.get_pretrained_cfg(model))
        cfg = published.to_dict() if published else {}
    else:
        cfg = getattr(model, "pretrained_cfg", None) or {}
    config: dict[str, Any] = cast(Any, resolve_data_config)({"img_size": image_size}, cfg, use_test_size=use_test_size)
    return Preprocess(
        tuple(config["input_size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        config["crop_pct"],
        config["crop_mode"],
    )

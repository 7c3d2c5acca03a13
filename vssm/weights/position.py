"""Position embeddings on another grid."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import (
    resize_rel_pos_bias_table,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor, nn

__all__ = ["resize_map", "resize_positions", "resize_timm_positions", "square_grid"]


def resize_map(positions: Tensor, height: int, width: int) -> Tensor:
    """A position embedding (1, C, H, W) on a grid height x width: bicubic, corners not aligned."""
    if positions.dtype == torch.float64:
        return F.interpolate(positions, size=[height, width], mode="bicubic", align_corners=False)
    wide = F.interpolate(positions.float(), size=[height, width], mode="bicubic", align_corners=False)
    return wide.to(positions.dtype)


def resize_positions(positions: Tensor, height: int, width: int, new_height: int, new_width: int) -> Tensor:
    """A position embedding of tokens (1, L, C), on a grid height x width, for another grid.

    With one token more than the grid has cells, a class token in the middle: it keeps its values and stays in
    the middle. (The official code of Vim takes row 0 for it, which shifts the first half of the image by one token.)
    """
    tokens = positions.shape[1] - height * width
    middle = height * width // 2
    grid = torch.cat([positions[:, :middle], positions[:, middle + tokens :]], dim=1)
    grid = resize_map(grid.view(1, height, width, -1).permute(0, 3, 1, 2), new_height, new_width)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new_height * new_width, -1)
    new_middle = new_height * new_width // 2
    return torch.cat([grid[:, :new_middle], positions[:, middle : middle + tokens], grid[:, new_middle:]], dim=1)


def square_grid(positions: Tensor, class_token: bool) -> int | None:
    """The side of the square grid of tokens (1, L, C), with or without a class token; None when it is not square."""
    cells = positions.shape[1] - int(class_token)
    side = math.isqrt(cells)
    return side if side * side == cells else None


def resize_timm_positions(source: dict[str, Tensor], model: nn.Module) -> str:
    """Puts position embeddings (ViT, DeiT) and tables of relative positions (Swin) of `source`, tensors of timm's
    `model` for another image size, on its grid and windows, as timm does. Reports what was changed; "" for nothing."""
    changed: list[str] = []
    for name, want in cast(Mapping[str, Tensor], model.state_dict()).items():
        have = source.get(name)
        if have is None or have.shape == want.shape or have.dim() != want.dim() or not have.is_floating_point():
            continue
        if name.endswith("relative_position_bias_table") and have.shape[1] == want.shape[1]:
            window = cast(Any, model.get_submodule(name.rpartition(".")[0])).window_size
            with warnings.catch_warnings():  # torch's, about how timm interpolates
                warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")
                source[name] = resize_rel_pos_bias_table(have, window, tuple(want.shape))
        elif name == "pos_embed" and have.shape[::2] == want.shape[::2] and hasattr(model, "patch_embed"):
            whole = cast(Any, model)
            prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
            if square_grid(have[:, prefix:], False) is None:
                continue
            source[name] = resample_abs_pos_embed(have, list(whole.patch_embed.grid_size), num_prefix_tokens=prefix)
        else:
            continue
        changed.append(name)
    if not changed:
        return ""
    return f"positions resized for another image size: {len(changed)} tensors, {changed[0]} first"

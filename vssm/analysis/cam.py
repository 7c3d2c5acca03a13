"""Where class activation maps look: the layer and the shape of its maps, for pytorch-grad-cam and captum.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2) weighs the channels of a map (B, C, h, w) by
the means of their gradients. Here maps are NHWC, and those of Vim are tokens with a class token in their middle.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vssm.models import Hierarchy, Vim

__all__ = ["CamTarget", "cam_target"]


@dataclass(frozen=True)
class CamTarget:
    """The layer whose output a class activation map weighs, and that output as a map.

        target = vssm.analysis.cam_target(model)
        GradCAM(model, [target.layer], target.reshape)(image[None])          # pytorch-grad-cam
        with target.channels_first() as layer:                               # captum
            LayerGradCam(model, layer).attribute(image[None], cls)

    Attributes:
        layer: a module of the model.
        reshape: its output, or a gradient of that shape, as a map (B, C, h, w), without class tokens.
        restore: the inverse: restore(map, output) is `output` with that map in it.
    """

    layer: nn.Module
    reshape: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor, Tensor], Tensor]

    @contextmanager
    def channels_first(self) -> Iterator[nn.Module]:
        """While this lasts, the model calls a layer that does nothing, on the map (B, C, h, w): for tools that take a
        layer and no reshape function. Hook this layer."""
        maps = nn.Identity()

        def through_maps(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
            return self.restore(maps(self.reshape(output)), output)

        handle = self.layer.register_forward_hook(through_maps)
        try:
            yield maps
        finally:
            handle.remove()


def cam_target(model: nn.Module, size: tuple[int, int] | None = None) -> CamTarget:
    """The layer and the reshape function for class activation maps of a classifier.

    The last norm where the head pools its maps: VMamba, Spatial-Mamba, Mamba-Adaptor, Vim without class token. Where a
    class token answers (Vim, ViT) the norm of the last block: behind it, other tokens have no gradient. For other
    models of timm's, the last layer in `feature_info`.

    Args:
        model: a classifier. Where tokens do not say how many rows they are (Vim, ViT), its patch embedding has a hook,
            which notes the size of the images, for as long as the target lives; else it is not changed.
        size: height and width of the images, in place of the noted one: for a `reshape` of what the model did not
            compute just before.

    Raises ValueError for a model without maps. `reshape` raises ValueError for an output that is no map.
    """
    if isinstance(model, Hierarchy):
        return CamTarget(model.norm, partial(_from_nhwc, model.num_features), _to_nhwc)
    if isinstance(model, Vim):
        if model.cls_token is None:
            return CamTarget(model.norm, partial(_from_nhwc, model.num_features), _to_nhwc)
        grid = _Grid(model.patch_embed, lambda sides: model.patch_embed.grid(*sides), model.grid, size)
        vim_block: Any = list(model.blocks)[-1]
        return CamTarget(vim_block.norm, *_tokens(grid, lambda patches: patches // 2, 1))
    if isinstance(model, VisionTransformer):
        embed: Any = model.patch_embed
        grid = _Grid(embed, embed.dynamic_feat_size, embed.grid_size, size)
        block: Any = list(model.blocks.children())[-1]
        return CamTarget(block.norm1, *_tokens(grid, lambda patches: 0, model.num_prefix_tokens))
    return _by_feature_info(model)


def _by_feature_info(model: nn.Module) -> CamTarget:
    info: Any = getattr(model, "feature_info", None)
    last = info[-1] if isinstance(info, list) and info else {}
    modules = dict(model.named_modules())
    if last.get("module") not in modules:
        raise ValueError(
            f"{type(model).__name__} has no feature maps that are known: give a model of this package or a classifier "
            "of timm's with feature_info, or name the layer and its shape yourself, "
            "vssm.analysis.cam.CamTarget(layer, reshape, restore)"
        )
    layer, channels = modules[last["module"]], last["num_chs"]
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return CamTarget(layer, partial(_from_nhwc, channels), _to_nhwc)
    return CamTarget(layer, partial(_from_nchw, channels), lambda maps, output: maps)


def _from_nchw(channels: int, output: Tensor) -> Tensor:
    return _checked(output, 1, channels, "(B, C, h, w)")


def _from_nhwc(channels: int, output: Tensor) -> Tensor:
    return _checked(output, -1, channels, "(B, h, w, C)").permute(0, 3, 1, 2)


def _to_nhwc(maps: Tensor, output: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1)


def _checked(output: Tensor, dim: int, channels: int, form: str) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[dim] != channels:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the layer gives {shape}, not a map {form} of {channels} channels; name another layer and its shape "
            "yourself: vssm.analysis.cam.CamTarget(layer, reshape, restore)"
        )
    return output


Sides = tuple[int, int]


class _Grid:
    """Rows and columns of the patches: of images of `size`, or of those that the model saw last, which a hook notes
    for as long as this lives; before it saw any, as the model was built, or a square."""

    def __init__(self, embed: nn.Module, grid_of: Callable[[Sides], Sides], built: Sides, size: Sides | None):
        self._built = built
        self._seen = None if size is None else grid_of(size)
        if size is None:
            here = weakref.ref(self)

            def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                alive = here()
                if alive is not None:
                    height, width = inputs[0].shape[-2:]
                    alive._seen = grid_of((height, width))

            weakref.finalize(self, embed.register_forward_pre_hook(note).remove)

    def of(self, patches: int) -> Sides:
        """ValueError for a number of patches that does not fit."""
        rows, columns = self._built if self._seen is None else self._seen
        if rows * columns == patches:
            return rows, columns
        side = round(patches**0.5)
        if self._seen is not None or side * side != patches:
            raise ValueError(
                f"the image gives {patches} patches, which are not {rows} x {columns}; tell the size of the images: "
                "cam_target(model, size=(height, width))"
            )
        return side, side


def _tokens(
    grid: _Grid, first: Callable[[int], int], prefix: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """`reshape` and `restore` for tokens (B, L, C) or one row of them (B, 1, L, C), of which `prefix` from position
    first(patches) on are no patches."""

    def reshape(output: Tensor) -> Tensor:
        tokens = output.flatten(1, -2)
        patches = tokens.shape[1] - prefix
        at, (rows, columns) = first(patches), grid.of(patches)
        tokens = torch.cat([tokens[:, :at], tokens[:, at + prefix :]], 1)
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    def restore(maps: Tensor, output: Tensor) -> Tensor:
        tokens, patches = output.flatten(1, -2), maps.flatten(2).transpose(1, 2)
        at = first(patches.shape[1])
        whole = torch.cat([patches[:, :at], tokens[:, at : at + prefix], patches[:, at:]], 1)
        return whole.view(output.shape)

    return reshape, restore

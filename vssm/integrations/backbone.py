"""A backbone as mmdet and mmseg call one, and its registration."""

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from vssm.tasks.backbone import create_backbone
from vssm.weights import load_checkpoint

__all__ = ["VSSMBackbone", "register"]


class VSSMBackbone(nn.Module):
    """Image (B, 3, H, W) -> a tuple of normed NCHW maps, one of each chosen stage.

    Args:
        name: a model of this package or of timm.
        checkpoint: a file for `vssm.load_checkpoint`, a classification checkpoint or the backbone of a detector; by
            default none.
        out_indices: the stages.
        arguments: of the model, for example `drop_path_rate=0.2`.

    Raises:
        ValueError: as `create_backbone`. CheckpointError: a file that does not fit.
    """

    def __init__(
        self, name: str, checkpoint: str | None = None, out_indices: tuple[int, ...] = (0, 1, 2, 3), **arguments: Any
    ):
        super().__init__()
        self.net = create_backbone(name, out_indices=tuple(out_indices), **arguments)
        if checkpoint is not None:
            load_checkpoint(self.net, checkpoint)

    def init_weights(self) -> None:
        """Called by mmengine: the weights are there already."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(x))


def register(framework: str) -> None:
    """Puts `VSSMBackbone` into the registry of mmdet or mmseg; again is no error.

    Raises ImportError that names what to install where the framework is absent or does not import.
    """
    try:
        registry = import_module(f"{framework}.registry").MODELS
    except ImportError as error:
        raise ImportError(
            f"vssm.integrations.{framework} needs {framework} with mmengine and mmcv, and importing it fails "
            f"({error}). Install it by its own instructions, or use the networks of vssm.tasks, which need neither",
            name=error.name,
        ) from error
    registry.register_module(name="VSSMBackbone", module=VSSMBackbone, force=True)

"""The losses that a detector is trained with: the network has them, their sum is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vssm.data.padded import PaddedImages


class Detection(nn.Module):
    """A network that answers `model(images, targets)` with its losses by name, weighted."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def training_step(
        self, images: PaddedImages, targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses, a scalar, and each of them."""
        losses: dict[str, Tensor] = self.model(images, targets)
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def running(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Nothing: the losses are no shares."""
        return {}

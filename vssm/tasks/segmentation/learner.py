"""The loss that a segmentation network is trained with."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.data.mask_classes import IGNORED
from vssm.tasks.segmentation.upernet import resize_to

AUX_WEIGHT = 0.4


class Segmentation(nn.Module):
    """A network with its loss: the cross entropy of its scores, resized to the labels, plus that of its auxiliary head.

    Args:
        model: (B, C, H, W) to scores (B, K, h, w), in training mode perhaps with those of an auxiliary head after them.
        label_smoothing: of the cross entropy.
        aux_weight: of the auxiliary head's loss; mmseg's is 0.4.
        over_valid: the mean is over the pixels that are not ignored. By default it is over all, as mmseg has it
            (avg_non_ignore=False): a crop that is mostly ignored counts for little.

    Labels of 255 are ignored; a batch without any other has the loss 0.
    """

    def __init__(
        self,
        model: nn.Module,
        label_smoothing: float = 0.0,
        aux_weight: float = AUX_WEIGHT,
        over_valid: bool = False,
    ):
        super().__init__()
        self.model = model
        self.label_smoothing, self.aux_weight, self.over_valid = label_smoothing, aux_weight, over_valid

    def training_step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W), labels (B, H, W) -> loss, scores (B, K, h, w).

        Raises ValueError for one image alone, whose average over the whole map no BatchNorm can norm.
        """
        if len(images) == 1 and not (torch.distributed.is_initialized() and images.is_cuda):
            raise ValueError(
                "a step on one image alone cannot train: BatchNorm after the pyramid pooling needs two values per "
                "channel; set data.batch_size to 2 or more"
            )
        found = self.model(images)
        scores, aux = found if isinstance(found, tuple) else (found, None)
        loss = self.loss(scores, targets)
        if aux is not None:
            loss = loss + self.aux_weight * self.loss(aux, targets)
        return loss, scores.detach()

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """scores (B, K, h, w) of any size, labels (B, H, W) -> a scalar."""
        total = F.cross_entropy(
            resize_to(scores, labels),
            labels,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / ((labels != IGNORED).sum().clamp(min=1) if self.over_valid else labels.numel())

    def running(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Share of pixels that are right, at the size of the scores."""
        rows, columns = (
            torch.arange(n, device=targets.device) * length // n
            for n, length in zip(outputs.shape[-2:], targets.shape[-2:], strict=True)
        )
        labels = targets[:, rows][:, :, columns]
        valid = labels != IGNORED
        right = (outputs.argmax(1) == labels) & valid
        return {"accuracy": right.sum() / valid.sum().clamp(min=1)}

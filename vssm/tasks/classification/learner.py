"""The loss that a classifier is trained with."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.tasks.classification.mixing import Mixing

Guide = Callable[[Tensor, Tensor, Tensor], Tensor]


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Weights of classes with n_c images each: w_c = n / (k n_c) for n images in k classes, so that every class counts
    the same and the mean over all images is 1. A class without images gets 0."""
    sizes = torch.tensor(counts, dtype=torch.float64)
    present = sizes > 0
    return torch.where(present, sizes.sum() / (present.sum() * sizes.clamp(min=1)), 0.0).float()


class Classification(nn.Module):
    """A classifier with its loss, over batches that `mixing` may blend.

    With targets y (B, K) (one-hot for labels), class weights w and smoothing e, the loss is the mean over the batch of
    sum_c w_c y_c [(1 - e) (-log p_c) + e/K sum_k (-log p_k)]: each image counts by the weight of its class, also for
    what smoothing spreads over the others, and a blend of two images counts as the same blend of their losses.
    `guides` change the loss in turn: what each gives for (loss, images, logits).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        mixing: Mixing | None = None,
    ):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.mixing = mixing
        self.guides: list[Guide] = []
        self.register_buffer("class_weights", class_weights, persistent=False)

    def training_step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W), labels (B,) -> loss, logits (B, K)."""
        if self.mixing is not None:
            images, targets = self.mixing(images, targets)
        logits = self.model(images)
        loss = self.loss(logits, targets)
        for guide in self.guides:
            loss = guide(loss, images, logits)
        return loss, logits

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (B, K); targets: labels (B,) or distributions (B, K)."""
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        classes = logits.shape[-1]
        weighted = (F.one_hot(targets, classes) if targets.dim() == 1 else targets) * self.class_weights
        spread = weighted.sum(-1, keepdim=True) / classes
        return F.cross_entropy(logits, torch.lerp(weighted, spread.expand_as(weighted), self.label_smoothing))

    def running(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Top-1 of the batch; nothing when its images are blends."""
        if self.mixing is not None:
            return {}
        return {"top-1": (outputs.argmax(-1) == targets).float().mean()}

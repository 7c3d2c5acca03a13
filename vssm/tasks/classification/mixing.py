"""Mixup (Zhang 2018) and CutMix (Yun 2019): batches whose images and labels are blends of two."""

import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor

from vssm.settings import DataSettings


class Mixing:
    """timm's Mixup, one draw per batch from numpy's global generator, with the labels left to the loss to smooth.

    images (B, C, H, W), labels (B,) -> images, targets (B, classes) whose rows sum to 1. Image i is blended with
    image B - 1 - i, in place; the last of an odd batch stays as it is.
    """

    def __init__(self, settings: DataSettings, classes: int):
        self.classes = classes
        self.mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=settings.mixup_prob,
            switch_prob=settings.mixup_switch_prob,
            label_smoothing=0.0,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = F.one_hot(labels, self.classes).float()
        paired = len(images) // 2 * 2
        if paired:
            images[:paired], targets[:paired] = self.mixup(images[:paired], labels[:paired])
        return images, targets

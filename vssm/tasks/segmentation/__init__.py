"""Semantic segmentation: the heads over a backbone's feature maps."""

from vssm.tasks.segmentation.upernet import FCNHead, UPerNet, UPerNetHead

__all__ = ["FCNHead", "UPerNet", "UPerNetHead"]

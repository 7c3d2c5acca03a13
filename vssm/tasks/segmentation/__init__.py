"""Semantic segmentation: UPerNet on any backbone."""

from vssm.tasks.segmentation.network import upernet
from vssm.tasks.segmentation.upernet import FCNHead, UPerNet, UPerNetHead

__all__ = ["FCNHead", "UPerNet", "UPerNetHead", "upernet"]

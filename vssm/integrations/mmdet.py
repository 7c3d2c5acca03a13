"""Importing this registers `VSSMBackbone` in mmdet."""

from vssm.integrations.backbone import VSSMBackbone, register

__all__ = ["VSSMBackbone"]

register("mmdet")

"""Importing this registers `VSSMBackbone` in mmseg."""

from vssm.integrations.backbone import VSSMBackbone, register

__all__ = ["VSSMBackbone"]

register("mmseg")

"""The backbones in frameworks that build their networks from a registry.

Importing `vssm.integrations.mmdet` or `vssm.integrations.mmseg` registers `VSSMBackbone` there; a configuration has:

custom_imports = dict(imports=["vssm.integrations.mmdet"])
model = dict(backbone=dict(type="VSSMBackbone", name="vmamba_tiny", checkpoint="vssm1_tiny_0230s_ckpt_epoch_264.pth"))

Networks of the same kind that need neither framework are in `vssm.tasks.detection` and `vssm.tasks.segmentation`.
"""

# Modules, imported when asked for.
__all__ = ["backbone", "mmdet", "mmseg"]

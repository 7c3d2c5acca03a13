"""Names of what mmdetection and mmsegmentation put around a backbone, and ours: FPN, RPN, regions, UPerNet.

mmdet   neck (FPN), rpn_head (RPNHead), roi_head.bbox_head (Shared2FCBBoxHead, Shared4Conv1FCBBoxHead) and
        roi_head.mask_head (FCNMaskHead); those of a cascade with a number after them
mmseg   decode_head (UPerHead), auxiliary_head (FCNHead)
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from vssm.weights.names import check_distinct

__all__ = ["CLASSIFIERS", "is_head", "to_our_heads"]

_CONV_NORM = {"conv": "0", "bn": "1"}

# (official, ours) as patterns of whole names; {} of a template are the groups.
_RULES: list[tuple[str, str]] = [
    (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", "fpn.inner_blocks.{}.0.{}"),
    (r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)", "fpn.layer_blocks.{}.0.{}"),
    (r"rpn_head\.rpn_conv\.(\w+)", "rpn.head.conv.0.0.{}"),
    (r"rpn_head\.rpn_cls\.(\w+)", "rpn.head.cls_logits.{}"),
    (r"rpn_head\.rpn_reg\.(\w+)", "rpn.head.bbox_pred.{}"),
    (r"roi_head\.bbox_head\.(\d+)\.shared_convs\.(\d+)\.(conv|bn)\.(\w+)", "roi_heads.stages.{}.box.trunk.{}.{}.{}"),
    (r"roi_head\.bbox_head\.(\d+)\.fc_cls\.(\w+)", "roi_heads.stages.{}.box.cls.{}"),
    (r"roi_head\.bbox_head\.(\d+)\.fc_reg\.(\w+)", "roi_heads.stages.{}.box.reg.{}"),
    (r"roi_head\.mask_head\.(\d+)\.convs\.(\d+)\.conv\.(\w+)", "roi_heads.stages.{}.mask.convs.{}.0.{}"),
    (r"roi_head\.mask_head\.(\d+)\.upsample\.(\w+)", "roi_heads.stages.{}.mask.predictor.conv5_mask.{}"),
    (r"roi_head\.mask_head\.(\d+)\.conv_logits\.(\w+)", "roi_heads.stages.{}.mask.predictor.mask_fcn_logits.{}"),
    (r"decode_head\.psp_modules\.(\d+)\.1\.(conv|bn)\.(\w+)", "head.pooling.convs.{}.{}.{}"),
    (r"decode_head\.bottleneck\.(conv|bn)\.(\w+)", "head.pooling.bottleneck.{}.{}"),
    (r"decode_head\.lateral_convs\.(\d+)\.(conv|bn)\.(\w+)", "head.laterals.{}.{}.{}"),
    (r"decode_head\.fpn_convs\.(\d+)\.(conv|bn)\.(\w+)", "head.fpn_convs.{}.{}.{}"),
    (r"decode_head\.fpn_bottleneck\.(conv|bn)\.(\w+)", "head.fpn_bottleneck.{}.{}"),
    (r"decode_head\.conv_seg\.(\w+)", "head.classifier.{}"),
    (r"auxiliary_head\.convs\.0\.(conv|bn)\.(\w+)", "aux_head.conv.{}.{}"),
    (r"auxiliary_head\.conv_seg\.(\w+)", "aux_head.classifier.{}"),
]
_LINEAR = re.compile(r"roi_head\.bbox_head\.(\d+)\.shared_fcs\.(\d+)\.(\w+)")
_ONE_STAGE = re.compile(r"(roi_head\.(?:bbox|mask)_head)\.(?!\d)")
_HEADS = re.compile(r"(neck|rpn_head|roi_head|decode_head|auxiliary_head)\.")

# How the names of what depends on the number of classes begin, in our networks.
CLASSIFIERS = re.compile(
    r"(roi_heads\.stages\.\d+\.(box\.(cls|reg)|mask\.predictor\.mask_fcn_logits)|(head|aux_head)\.classifier)\."
)


def is_head(name: str) -> bool:
    """Whether a name is of a part that mmdet or mmseg put around a backbone."""
    return _HEADS.match(name) is not None


def to_our_heads(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The tensors under our names; names that no rule knows stay as they are.

    Raises CheckpointError for two names that become one; `origin` is what it calls the file.
    """
    indexed = {name: _ONE_STAGE.sub(r"\1.0.", name, count=1) for name in tensors}
    linears = {match[1] for name in indexed.values() if (match := _LINEAR.fullmatch(name)) and match[2] == "1"}
    names = {name: _our_name(full, linears) for name, full in indexed.items()}
    check_distinct(names, origin)
    return {ours: tensors[name] for name, ours in names.items()}


def _our_name(name: str, two_linears: Iterable[str]) -> str:
    """two_linears: the stages whose box head has two linear layers; else it has convolutions and one."""
    if match := _LINEAR.fullmatch(name):
        stage, layer, rest = match.groups()
        linear = f"fc{6 + int(layer)}" if stage in two_linears else "5"
        return f"roi_heads.stages.{stage}.box.trunk.{linear}.{rest}"
    for official, ours in _RULES:
        if match := re.fullmatch(official, name):
            return ours.format(*(_CONV_NORM.get(group, group) for group in match.groups()))
    return name

"""The detectors that a training can name, and their arguments as plain settings."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vssm.settings import ModelSettings
from vssm.tasks.detection.assign import Sampler
from vssm.tasks.detection.cascade import cascade_mask_rcnn
from vssm.tasks.detection.detr import d_fine, rt_detr_v2
from vssm.tasks.detection.mask_rcnn import mask_rcnn
from vssm.tasks.detection.roi_heads import StageConfig
from vssm.tasks.detection.rpn import RPNConfig
from vssm.tasks.networks import Factory, backbone_arguments, check_arguments, chosen_network

NETWORKS: dict[str, Factory] = {
    "mask_rcnn": mask_rcnn,
    "cascade_mask_rcnn": cascade_mask_rcnn,
    "rt_detr_v2": rt_detr_v2,
    "d_fine": d_fine,
}
# What a factory takes that settings do not name: given otherwise, or no plain value.
_OTHER = {"backbone", "num_classes", "pretrained", "backbone_args", "rpn", "stage", "stages"}
# Sizes for small images and slow machines: anchors and boxes of an image that train, proposals of an image.
_COUNTS = ("rpn_samples", "samples", "proposals")


def create_detector(settings: ModelSettings, classes: int, pretrained: bool = False) -> nn.Module:
    """The network `settings.network` (the first of `NETWORKS` by default) around the backbone `settings.name`.

    `settings.network_args` are the factory's widths and limits, and `rpn_samples`, `samples` (per stage) and
    `proposals` in place of 256, 512 and 1000. Raises ValueError that names what is unknown, or cannot be.
    """
    name, factory = chosen_network(NETWORKS, settings)
    common: dict[str, Any] = {"pretrained": pretrained, "backbone_args": backbone_arguments(settings)}
    if factory in (rt_detr_v2, d_fine):  # which name an option that they do not know themselves
        return factory(settings.name, classes, **common, **settings.network_args)
    parameters = inspect.signature(factory).parameters
    known = [*(argument for argument in parameters if argument not in _OTHER)]
    known += [count for count in _COUNTS if "rpn" in parameters]
    check_arguments(name, settings, known)
    given = {argument: value for argument, value in settings.network_args.items() if argument not in _COUNTS}
    given |= _counted(settings.network_args, parameters)
    return factory(settings.name, classes, **common, **given)


def learns_masks(settings: ModelSettings) -> bool:
    """Whether the network of these settings has a mask head, and so needs masks to train."""
    _, factory = chosen_network(NETWORKS, settings)
    parameter = inspect.signature(factory).parameters.get("masks")
    return parameter is not None and bool(settings.network_args.get("masks", parameter.default))


def _counted(arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The configurations of proposals and stages with other counts than their own."""
    counts = {name: arguments[name] for name in _COUNTS if name in arguments}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"model.network_args.{name} is {count!r}; expected a number of 1 or more")
    found: dict[str, Any] = {}
    if {"rpn_samples", "proposals"} & counts.keys():
        rpn: RPNConfig = parameters["rpn"].default or RPNConfig()
        if "rpn_samples" in counts:
            rpn = replace(rpn, sampler=Sampler(counts["rpn_samples"], 0.5))
        if "proposals" in counts:
            rpn = replace(rpn, before_nms=(2 * counts["proposals"],) * 2, kept=(counts["proposals"],) * 2)
        found["rpn"] = rpn
    if "samples" in counts:
        sampler = Sampler(counts["samples"], 0.25)
        if "stages" in parameters:
            found["stages"] = tuple(replace(stage, sampler=sampler) for stage in parameters["stages"].default)
        else:
            found["stage"] = StageConfig(sampler=sampler)
    return found

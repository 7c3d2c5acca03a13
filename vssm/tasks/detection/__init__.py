"""Object detection and instance segmentation on any backbone: two-stage networks, and transformers by `detr`."""

from vssm.tasks.detection.cascade import cascade_mask_rcnn
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.detr import d_fine, rt_detr_v2
from vssm.tasks.detection.mask_rcnn import mask_rcnn
from vssm.tasks.detection.two_stage import TwoStageDetector

__all__ = ["Detections", "TwoStageDetector", "cascade_mask_rcnn", "d_fine", "mask_rcnn", "rt_detr_v2"]

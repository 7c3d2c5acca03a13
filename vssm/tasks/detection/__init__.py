"""Object detection and instance segmentation: two-stage networks on any backbone."""

from vssm.tasks.detection.cascade import cascade_mask_rcnn
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.mask_rcnn import mask_rcnn
from vssm.tasks.detection.two_stage import TwoStageDetector

__all__ = ["Detections", "TwoStageDetector", "cascade_mask_rcnn", "mask_rcnn"]

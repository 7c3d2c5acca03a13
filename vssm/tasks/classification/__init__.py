"""Image classification: a timm model, cross entropy with label smoothing, top-1 and top-5 accuracy."""

from vssm.tasks.classification.learner import Classification, balanced_weights
from vssm.tasks.classification.model import check_image_size, check_model_name, class_names, create_classifier

__all__ = [
    "Classification",
    "balanced_weights",
    "check_image_size",
    "check_model_name",
    "class_names",
    "create_classifier",
]

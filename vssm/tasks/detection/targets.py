"""What is in an image, for training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vssm.data.padded import PaddedImages

# boxes (N, 4) float32: x1, y1, x2, y2 in pixels of the resized image. labels (N,) int64: 0..K-1. masks (N, h, w) bool
# of the resized image, or absent.
Target = Mapping[str, Tensor]


def check_targets(targets: Sequence[Target] | None, images: PaddedImages, num_classes: int, masks: bool) -> None:
    """Raises ValueError that names the image and the object for targets that no loss can be computed of."""
    if targets is None:
        raise ValueError("a network in training needs targets; call model.eval() to find objects")
    if len(targets) != len(images):
        raise ValueError(f"{len(images)} images, but targets of {len(targets)}")
    for index, (target, size) in enumerate(zip(targets, images.sizes)):
        where = f"the target of image {index}"
        absent = [key for key in ("boxes", "labels", *(("masks",) if masks else ())) if key not in target]
        if absent:
            hint = "; a network for boxes is built with masks=False" if absent == ["masks"] else ""
            raise ValueError(f"{where} has no {' and no '.join(absent)}{hint}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"{where}: boxes must be (N, 4) float, got {list(boxes.shape)} of {boxes.dtype}")
        if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"{where}: {len(boxes)} boxes need labels ({len(boxes)},) int64, got {labels.dtype} "
                             f"of {list(labels.shape)}")  # fmt: skip
        _check_values(where, boxes, labels, num_classes)
        if masks and (target["masks"].shape != (len(boxes), *size) or target["masks"].dtype != torch.bool):
            raise ValueError(
                f"{where}: masks must be {[len(boxes), *size]} bool, got {list(target['masks'].shape)} of "
                f"{target['masks'].dtype}"
            )


def _check_values(where: str, boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    broken = ~boxes.isfinite().all(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    unknown = (labels < 0) | (labels >= num_classes)
    if not bool((broken | unknown).any()):
        return
    if broken.any():
        at = int(torch.where(broken)[0][0])
        raise ValueError(f"{where}: box {at} is {boxes[at].tolist()}; x2 and y2 must be above x1 and y1, all finite")
    at = int(torch.where(unknown)[0][0])
    raise ValueError(
        f"{where}: label {at} is {int(labels[at])}; with {num_classes} classes it is in 0..{num_classes - 1}"
    )

"""A detector of two stages as a program of one image and one size: what depends on what is found, without branches.

Proposals are as many as the network keeps, padded with empty boxes that no object comes of; regions are taken from all
levels of the pyramid, those of other levels as empty boxes, which cost nothing. Only the objects found are of any
number.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from vssm.data.padded import PaddedImages
from vssm.tasks.detection.mask_head import MaskHead
from vssm.tasks.detection.roi import FINEST, RoIFeatures, level_of
from vssm.tasks.detection.two_stage import MULTIPLE, TwoStageDetector

__all__ = ["OUTPUTS", "Detector"]

OUTPUTS = ("boxes", "labels", "scores", "masks")


class Detector(nn.Module):
    """One image (1, C, H, W) -> boxes (N, 4), labels (N,), scores (N,) and, of a network for masks, masks (N, 1, m, m):
    what torchvision's detectors give, but masks as probabilities in the cells of each box, not pasted. Best first; in
    pixels of the input.

    Run as it is, it is the network itself; the program of `torch.export` is the form without branches.

    Raises ValueError for other networks, and for sides that are no multiple of the pyramid's stride, which the network
    would pad.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]):
        super().__init__()
        if not isinstance(model, TwoStageDetector):
            raise ValueError(
                f"of detectors, Mask R-CNN and Cascade Mask R-CNN can be exported, {type(model).__name__} cannot; its "
                "backbone can, with features"
            )
        if any(side % MULTIPLE for side in size):
            raise ValueError(
                f"images of {size[0]} x {size[1]} would be padded; export for sides that are multiples of {MULTIPLE}, "
                "and pad images with zeros after normalising them"
            )
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not torch.compiler.is_exporting():
            (found,) = self.model(x)
            results = (found.boxes, found.labels, found.scores)
            return results if found.masks is None else (*results, found.masks.unsqueeze(1))
        size = (x.shape[2], x.shape[3])
        images = PaddedImages(x, (size,), (size,))
        maps = self.model.maps(x)
        heads = self.model.roi_heads
        with _without_branches(self.model):
            ((boxes, scores, labels),) = heads.find(maps, self.model.rpn(maps, images)[0], images)
            found = [head for stage in heads.stages if isinstance(head := stage.mask, MaskHead)]
            if not found:
                return boxes, labels, scores
            features = heads.mask_features(maps, [boxes])
            masks = torch.stack([_of_class(head(features), labels).sigmoid() for head in found]).mean(dim=0)
        return boxes, labels, scores, masks


def _of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """(N, K, m, m) -> (N, 1, m, m)"""
    chosen = labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
    return masks.gather(1, chosen)


@contextmanager
def _without_branches(model: TwoStageDetector) -> Iterator[None]:
    """Inside, the three places of the detector that ask for numbers are computed without."""
    rpn, heads = model.rpn, model.roi_heads
    real: list[Tensor] = []  # which proposals are no padding

    def propose(anchors: Sequence[Tensor], scores: Sequence[Tensor], deltas: Sequence[Tensor], size) -> Tensor:
        config, boxes, values = rpn.config, [], []
        for level_anchors, score, delta in zip(anchors, scores, deltas, strict=True):
            best = score.topk(min(config.before_nms[1], score.shape[0]))
            box = rpn.coder.decode(level_anchors[best.indices], delta[best.indices], size)
            value = torch.where(((box[:, 2:] - box[:, :2]) > 0).all(1), best.values, -torch.inf)
            kept = nms(box, value, config.nms)
            # NMS of boxes without area is wasted, and harmless: they overlap nothing, and their value stays.
            chosen = torch.full_like(value, -torch.inf).index_put((kept,), value[kept])
            boxes.append(box)
            values.append(chosen)
        every = torch.cat(values)
        best = every.topk(min(config.kept[1], every.shape[0]))
        real.append(best.values > -torch.inf)
        return torch.where(real[0].unsqueeze(1), torch.cat(boxes)[best.indices], 0.0)

    def select(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at, labels = torch.nonzero((scores > heads.score) & real[0].unsqueeze(1)).unbind(1)
        boxes, scores = boxes[at, labels], scores[at, labels]
        # Classes side by side, as torchvision does with few boxes; no maximum of nothing.
        apart = labels.to(boxes) * (torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1)
        keep = nms(boxes + apart[:, None], scores, heads.nms)[: heads.kept]
        return boxes[keep], scores[keep], labels[keep]

    patched: list[tuple[nn.Module, str]] = [(rpn, "_propose"), (heads, "_select")]
    patched += [(module, "forward") for module in (heads.box_features, heads.mask_features)]
    try:
        vars(rpn)["_propose"], vars(heads)["_select"] = propose, select
        for module in (heads.box_features, heads.mask_features):
            vars(module)["forward"] = _Regions(module)
        yield
    finally:
        for module, name in patched:
            vars(module).pop(name, None)


class _Regions:
    """`RoIFeatures.forward` of one image."""

    def __init__(self, features: RoIFeatures):
        self.features = features

    def __call__(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        (regions,) = boxes
        strides, cells = self.features.strides, self.features.cells
        level = level_of(regions, FINEST * strides[0], len(strides)).unsqueeze(1)
        total = None
        for index, stride in enumerate(strides):
            own = torch.where(level == index, regions, 0.0)
            first = torch.cat([torch.zeros_like(own[:, :1]), own], dim=1)  # of image 0
            part = roi_align(maps[index], first, cells, 1 / stride, sampling_ratio=0, aligned=True)
            part = torch.where((level == index)[:, :, None, None], part, 0.0)
            total = part if total is None else total + part
        assert total is not None
        return total

"""The region proposal network (Ren et al. 2015, arXiv 1506.01497) as mmdet configures it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from vssm.data.padded import PaddedImages
from vssm.tasks.detection.anchors import RATIOS, Anchors
from vssm.tasks.detection.assign import Assigner, Sampler
from vssm.tasks.detection.coder import BoxCoder
from vssm.tasks.detection.targets import Target


@dataclass(frozen=True)
class RPNConfig:
    """assigner, sampler: which anchors are trained on.
    border: anchors may reach so many pixels beyond the image in training; -1 for any number.
    beta: where the loss of the deltas turns from quadratic to linear; 0 for L1.
    before_nms: proposals of each level that go into NMS, in (training, evaluation). nms: its IoU.
    kept: proposals of an image, in (training, evaluation).
    """

    assigner: Assigner = field(default=Assigner(0.7, 0.3, low_quality=True, minimum=0.3))
    sampler: Sampler = field(default=Sampler(256, 0.5))
    border: int = -1
    beta: float = 0.0
    before_nms: tuple[int, int] = (2000, 1000)
    nms: float = 0.7
    kept: tuple[int, int] = (1000, 1000)


class RPN(nn.Module):
    """Maps of the pyramid -> proposals of each image and, in training, the losses "rpn_cls" and "rpn_box".

    Args:
        channels: of the maps.
        strides: of the maps.
        config: see `RPNConfig`.
        multiple: what images are padded to.
    """

    def __init__(self, channels: int, strides: Sequence[int], config: RPNConfig, multiple: int = 32):
        super().__init__()
        self.config, self.multiple = config, multiple
        self.head = RPNHead(channels, len(RATIOS))
        self.anchors = Anchors(strides)
        self.coder = BoxCoder()

    def forward(
        self, maps: Sequence[Tensor], images: PaddedImages, targets: Sequence[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals (n, 4) of each image, the best first and without gradients, and the losses, {} without targets."""
        scores, deltas = self.head(list(maps))
        anchors = self.anchors(maps)
        scores = [_by_anchor(level, 1).squeeze(2) for level in scores]
        deltas = [_by_anchor(level, 4) for level in deltas]
        with torch.no_grad():
            proposals = [
                self._propose(anchors, [s[i] for s in scores], [d[i] for d in deltas], size)
                for i, size in enumerate(images.sizes)
            ]
        if targets is None:
            return proposals, {}
        usable = [self.anchors.usable(maps, anchors, size, self.multiple, self.config.border) for size in images.sizes]
        return proposals, self._losses(
            torch.cat(anchors), torch.cat(scores, dim=1), torch.cat(deltas, dim=1), usable, targets
        )

    def _propose(
        self, anchors: Sequence[Tensor], scores: Sequence[Tensor], deltas: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Proposals of one image: the best anchors of each level, decoded, clipped, without those of no area, NMS."""
        mode = 0 if self.training else 1
        best = [s.topk(min(self.config.before_nms[mode], len(s))) for s in scores]
        boxes = torch.cat(
            [self.coder.decode(a[b.indices], d[b.indices], size) for a, d, b in zip(anchors, deltas, best)]
        )
        level = torch.cat([torch.full_like(b.indices, index) for index, b in enumerate(best)])
        score = torch.cat([b.values for b in best])
        keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)  # mmdet's min_bbox_size 0; torchvision's is a thousandth
        boxes, score, level = boxes[keep], score[keep], level[keep]
        return boxes[batched_nms(boxes, score, level, self.config.nms)[: self.config.kept[mode]]]

    def _losses(
        self, anchors: Tensor, scores: Tensor, deltas: Tensor, usable: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """BCE of the scores and L1 (or smooth L1) of the deltas, both over the number of all samples of the batch."""
        count, score_loss, box_loss = 0, scores.sum() * 0, deltas.sum() * 0
        for score, delta, use, target in zip(scores, deltas, usable, targets):
            allowed = torch.where(use)[0]
            found = self.config.assigner(anchors[allowed], target["boxes"])
            positive, negative = self.config.sampler(found)
            objects = target["boxes"][found[positive]]
            positive, negative = allowed[positive], allowed[negative]
            sampled = torch.cat([positive, negative])
            wanted = torch.cat([score.new_ones(len(positive)), score.new_zeros(len(negative))])
            score_loss = score_loss + F.binary_cross_entropy_with_logits(score[sampled], wanted, reduction="sum")
            aims = self.coder.encode(anchors[positive], objects)
            box_loss = box_loss + F.smooth_l1_loss(delta[positive], aims, reduction="sum", beta=self.config.beta)
            count += max(len(positive), 1) + max(len(negative), 1)  # mmdet counts at least one of each
        return {"rpn_cls": score_loss / count, "rpn_box": box_loss / count}


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """(B, anchors * values, H, W) -> (B, H * W * anchors, values), float32: in the order of `Anchors`."""
    batch, _, height, width = x.shape
    x = x.view(batch, -1, values, height, width).permute(0, 3, 4, 1, 2)
    return x.reshape(batch, -1, values).float()

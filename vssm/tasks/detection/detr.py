"""The detection transformers of the package transformers, RT-DETRv2 and D-FINE, on any backbone of timm.

    RT-DETRv2   Lv et al. 2024, arXiv 2407.17140
    D-FINE      Peng et al. 2024, arXiv 2410.13842

Their networks, matching and losses are used as they are; here are their options by width, their images and their
results in the form of the other detectors. They find boxes, no masks.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from vssm.data.padded import PaddedImages
from vssm.tasks.backbone import as_backbone, check_widths, maps_of
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.targets import Target, check_targets

LEVELS = 3
MULTIPLE = 32


def rt_detr_v2(backbone: str, num_classes: int = 80, **options: Any) -> "Detr":
    """RT-DETRv2 on the last three maps of a backbone: see `Detr` for the options."""
    return Detr("RTDetrV2", backbone, num_classes, **options)


def d_fine(backbone: str, num_classes: int = 80, **options: Any) -> "Detr":
    """D-FINE on the last three maps of a backbone: see `Detr` for the options."""
    return Detr("DFine", backbone, num_classes, **options)


class Detr(nn.Module):
    """A detection transformer; called as `TwoStageDetector`, with targets of boxes.

    Boxes are shares of the padded image inside, and pixels of the original image in results.

    Args:
        kind: "RTDetrV2" or "DFine": how the classes of transformers begin.
        backbone: a timm name, see `vssm.tasks.backbone.create_backbone`.
        num_classes: a class for "nothing" is not needed.
        pretrained, backbone_args: of the backbone; its last three maps must keep their channels.
        width: of encoder and decoder; there is one attention head for each 32 channels.
        queries: objects that are looked for in an image.
        layers: of the decoder, 2 or more.
        score: objects of a lower score are not reported. kept: per image.
        config: other fields of `RTDetrV2Config` or `DFineConfig`.

    Raises:
        ValueError: transformers is not installed, an unknown backbone or option, a number that is not positive.
    """

    def __init__(
        self,
        kind: str,
        backbone: str,
        num_classes: int,
        *,
        pretrained: bool = False,
        backbone_args: Mapping[str, Any] | None = None,
        width: int = 256,
        queries: int = 300,
        layers: int = 6,
        score: float = 0.0,
        kept: int = 100,
        **config: Any,
    ):
        super().__init__()
        check_widths(num_classes=num_classes, width=width, queries=queries, layers=layers, kept=kept)
        if layers < 2:  # transformers ties the heads of the further layers to that of the first
            raise ValueError(f"layers must be at least 2, got {layers}")
        self.num_classes, self.score, self.kept = num_classes, score, kept
        arguments = dict(backbone_args or {})
        with torch.device("meta"):
            info: Any = as_backbone(backbone, False, arguments).feature_info
        if len(info.channels()) < LEVELS:
            raise ValueError(f"{backbone} has {len(info.channels())} maps; a DETR takes {LEVELS}")
        arguments["out_indices"] = tuple(info.out_indices[-LEVELS:])
        net = as_backbone(backbone, pretrained, arguments)
        fields: dict[str, Any] = {
            "num_labels": num_classes,
            "feat_strides": maps_of(net)[1],
            "num_queries": queries,
            "decoder_layers": layers,
            "decoder_in_channels": [width] * LEVELS,
            "freeze_backbone_batch_norms": False,
            **dict.fromkeys(("encoder_hidden_dim", "d_model"), width),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * width),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), max(width // 32, 1)),
        }
        self.net = _create(kind, backbone, arguments["out_indices"], fields | config)
        inner = self.net.model.backbone.model
        if list(inner.channels) != maps_of(net)[0]:
            raise ValueError(
                f"the maps of {backbone} have {list(inner.channels)} channels, with backbone_args {maps_of(net)[0]}; a "
                "DETR is built for the backbone as it is by name"
            )
        inner._backbone = net  # with its arguments, weights and norms, which transformers has no options for

    def forward(
        self, images: PaddedImages | Sequence[Tensor] | Tensor, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        if not isinstance(images, PaddedImages):
            images = PaddedImages.of(list(images), multiple=MULTIPLE)
        height, width = images.pixels.shape[-2:]
        mask = torch.zeros(len(images), height, width, dtype=torch.long, device=images.pixels.device)
        for inside, (h, w) in zip(mask, images.sizes):
            inside[:h, :w] = 1
        if not self.training:
            if targets is not None:
                raise ValueError("targets are for training; call model.train(), or leave them out to find objects")
            return self._results(self.net(pixel_values=images.pixels, pixel_mask=mask), images)
        check_targets(targets, images, self.num_classes, masks=False)
        assert targets is not None
        labels = [
            {
                "class_labels": target["labels"],
                "boxes": box_convert(target["boxes"], "xyxy", "cxcywh")
                / target["boxes"].new_tensor([width, height] * 2),
            }
            for target in targets
        ]
        return self.net(pixel_values=images.pixels, pixel_mask=mask, labels=labels).loss_dict

    def _results(self, outputs: Any, images: PaddedImages) -> list[Detections]:
        """The best pairs of a query and a class, by the sigmoid of their logit."""
        height, width = images.pixels.shape[-2:]
        found = []
        for logits, shares, (h, w), original in zip(
            outputs.logits.float(), outputs.pred_boxes.float(), images.sizes, images.originals
        ):
            scores, at = logits.sigmoid().flatten().topk(min(self.kept, logits.numel()))
            at = at[scores > self.score]
            boxes = box_convert(shares[at // self.num_classes], "cxcywh", "xyxy") * shares.new_tensor(
                [width, height] * 2
            )
            boxes = clip_boxes_to_image(boxes, (h, w)) * shares.new_tensor([original[1] / w, original[0] / h] * 2)
            found.append(Detections(boxes, scores[: len(at)], at % self.num_classes, original))
        return found


def _create(kind: str, backbone: str, indices: Sequence[int], fields: Mapping[str, Any]) -> Any:
    missing = [package for package in ("transformers", "scipy") if find_spec(package) is None]
    if missing:
        raise ValueError(f"{kind} needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}")
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    config_class = getattr(transformers, f"{kind}Config")
    known = set(config_class().to_dict())
    unknown = [name for name in fields if name not in known and name != "num_labels"]
    if unknown:
        raise ValueError(f"{config_class.__name__} has no field {unknown[0]!r}; see its documentation for those it has")
    timm_config = transformers.TimmBackboneConfig(backbone=backbone)
    timm_config.out_indices = list(indices)
    try:
        config = config_class(backbone_config=timm_config, **fields)
        return getattr(transformers, f"{kind}ForObjectDetection")(config)
    except (StrictDataclassError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{kind} cannot be built with {dict(fields)}: {error}") from error

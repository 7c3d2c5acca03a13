"""Mask2Former of transformers on a state space model, trained on objects with masks, and what it finds in an image.

vssm make-shapes shapes
python examples/mask2former.py shapes --model vmamba_nano --size 128 --width 64 --lr 1e-3 \
    --config '{"num_queries": 20, "encoder_layers": 2, "decoder_layers": 4, "train_num_points": 1024}'
"""

import argparse
import json
import random

import numpy as np
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, TimmBackboneConfig
from transformers import Mask2FormerImageProcessor as ImageProcessor

import vssm
from vssm.data.coco import CocoInstances
from vssm.data.layouts import find_layout


def create(backbone: str, width: int, **fields) -> Mask2FormerForUniversalSegmentation:
    maps = vssm.create_model(backbone, features_only=True).feature_info
    fields |= {"feature_strides": maps.reduction(), "common_stride": maps.reduction()[0]}
    fields |= dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), width)
    fields |= dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 4 * width)
    timm = TimmBackboneConfig(backbone=backbone, out_indices=list(maps.out_indices))
    config = Mask2FormerConfig(backbone_config=timm, num_attention_heads=width // 32, **fields)
    return Mask2FormerForUniversalSegmentation(config)


def sample(image, objects):
    """The image, the number of the object at each pixel (-1 for none), and the class of each number."""
    numbers = np.full(objects.size, -1, np.int32)
    for number in range(len(objects)):
        numbers[objects.mask(number)] = number
    return image, numbers, dict(enumerate(objects.labels.tolist()))


def main() -> tuple[list[float], torch.Tensor]:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="images with objects and masks in a COCO json")
    parser.add_argument("--model", default="vmamba_tiny")
    parser.add_argument("--weights", help="a checkpoint of the authors, for the backbone")
    parser.add_argument("--size", type=int, default=384, help="side that images are resized to")
    parser.add_argument("--width", type=int, default=256, help="channels of the decoders, a multiple of 32")
    parser.add_argument("--config", type=json.loads, default={}, help="other fields of Mask2FormerConfig, as JSON")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an object")
    args = parser.parse_args()

    source = find_layout(args.folder, "detection").splits["train"]
    train = CocoInstances(source.annotations, source.images, sample, masks=True, annotated=True)
    model, losses = create(args.model, args.width, num_labels=len(train.classes), **args.config), []
    if args.weights:
        print(vssm.load_checkpoint(model.model.pixel_level_module.encoder._backbone, args.weights, head="reset"))
    processor = ImageProcessor(size={"height": args.size, "width": args.size}, ignore_index=-1)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    for step in range(args.steps):
        chosen = random.sample(range(len(train)), 4)
        images, numbers, classes = map(list, zip(*(train[index] for index in chosen), strict=True))
        loss = model.train()(**processor(images, numbers, classes, return_tensors="pt")).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step}: loss {losses[-1]:.2f}")
    image, *_ = train[0]
    with torch.inference_mode():
        outputs = model.eval()(**processor(image, return_tensors="pt"))
    found = processor.post_process_instance_segmentation(
        outputs, args.threshold, target_sizes=[(image.height, image.width)], return_binary_maps=True
    )[0]
    print(f"{len(found['segments_info'])} objects in the first image:")
    for number, one in enumerate(found["segments_info"]):
        pixels = int(found["segmentation"][number].sum())
        print(f"{train.classes[one['label_id']]} {one['score']:.0%}, {pixels} pixels")
    return losses, found["segmentation"]


if __name__ == "__main__":
    main()

"""A U-Net of segmentation_models_pytorch on a state space model, trained on images with masks.

vssm make-shapes shapes
python examples/smp_unet.py shapes --model vmamba_nano --size 128 --lr 2e-3
"""

import argparse

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

import vssm
from vssm.data.keep_ratio import KeepRatio
from vssm.data.layouts import find_layout
from vssm.data.masks import SemanticMasks
from vssm.tasks.segmentation.transforms import CropTransform


def main() -> tuple[list[float], float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="ADE20K, Cityscapes, Pascal VOC, or images/ and masks/ with classes.txt")
    parser.add_argument("--model", default="vmamba_tiny")
    parser.add_argument("--weights", help="a checkpoint of the authors, for the encoder")
    parser.add_argument("--size", type=int, default=512, help="shorter side of the images, and side of the crops")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args()

    layout, preprocess = find_layout(args.folder, "segmentation"), KeepRatio(args.size, 4 * args.size)
    train = SemanticMasks.of(layout, "train", CropTransform(preprocess, args.size))
    val = SemanticMasks.of(layout, "val", CropTransform(preprocess, args.size, vary=False))
    classes, strides = len(train.classes), vssm.create_model(args.model, features_only=True).feature_info.reduction()
    depth = strides[-1].bit_length() - 1  # how often the encoder halves the image
    shape = {"encoder_depth": depth, "decoder_channels": (256, 128, 64, 32, 16)[-depth:], "classes": classes}
    net, losses = smp.Unet(f"tu-{args.model}", encoder_weights=None, **shape), []
    if args.weights:
        print(vssm.load_checkpoint(net.encoder.model, args.weights, head="reset"))
    optimizer = torch.optim.AdamW(net.parameters(), args.lr)
    for epoch in range(args.epochs):
        for images, labels in DataLoader(train, 8, shuffle=True):
            loss = torch.nn.functional.cross_entropy(net.train()(images), labels, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    kind = {"mode": "multiclass", "num_classes": classes, "ignore_index": 255}
    with torch.inference_mode():
        counts = [smp.metrics.get_stats(net.eval()(x[None]).argmax(1), y[None], **kind) for x, y in val]
    sums = [torch.cat(count).sum(0, keepdim=True) for count in zip(*counts, strict=True)]
    miou = smp.metrics.iou_score(*sums, reduction="macro").item()
    print(f"mIoU on the middles of {len(val)} images: {miou:.3f}")
    return losses, miou


if __name__ == "__main__":
    main()

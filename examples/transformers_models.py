"""A trained classifier in transformers: predictions, its maps as a backbone, a new head for other classes.

vssm push RUN_DIR owner/name --license apache-2.0 --dataset "my photos" --dry-run --out folder
python examples/transformers_models.py folder photo.jpg    # or owner/name, once it is on the Hub
"""

import argparse
from pathlib import Path

import timm
import torch
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForImageClassification, TimmBackboneConfig

import vssm  # noqa: F401 (registers the models with timm)


def main() -> tuple[dict[str, float], list[torch.Tensor], float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder of `vssm push --dry-run`, or OWNER/NAME on the Hub")
    parser.add_argument("image")
    parser.add_argument("--classes", type=int, default=10, help="of the new head")
    args = parser.parse_args()

    # TimmWrapper: weights, names of the classes and the preparation of images come from the folder.
    processor = AutoImageProcessor.from_pretrained(args.model)
    classifier = AutoModelForImageClassification.from_pretrained(args.model).eval()
    images = processor(Image.open(args.image).convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        probabilities = classifier(**images).logits.softmax(-1)[0]
    found = {classifier.config.id2label[index]: share.item() for index, share in enumerate(probabilities)}
    for name, share in sorted(found.items(), key=lambda pair: -pair[1])[:5]:
        print(f"{share:6.1%} {name}")

    # TimmBackbone: maps for the detectors and segmentation networks of transformers.
    name = f"local-dir:{args.model}" if Path(args.model).is_dir() else f"hf-hub:{args.model}"
    stages = list(range(len(timm.create_model(name, features_only=True).feature_info)))
    config = TimmBackboneConfig(backbone=name, out_indices=stages)
    backbone = AutoBackbone.from_config(config, pretrained=True).eval()
    with torch.inference_mode():
        maps = list(backbone(**images).feature_maps)
    for stage, x in enumerate(maps):
        print(f"stage {stage}: {tuple(x.shape)}")

    # The first step of a fine-tuning for other classes.
    tuned = AutoModelForImageClassification.from_pretrained(
        args.model, num_labels=args.classes, ignore_mismatched_sizes=True
    )
    loss = tuned(**images, labels=torch.tensor([0])).loss
    loss.backward()
    print(f"loss with a new head of {args.classes} classes: {loss.item():.3f}")
    return found, maps, loss.item()


if __name__ == "__main__":
    main()

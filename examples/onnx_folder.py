"""Classify a folder of images in batches with a file of `vssm export`, without vssm or torch; prints CSV.

python examples/onnx_folder.py model.onnx photos > found.csv
"""

import argparse
import csv
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, UnidentifiedImageError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def prepare(path, preprocess):
    """As in onnx_predict.py; None for a file that is no image, which is reported."""
    side = preprocess["input_size"][1]
    try:
        image = Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return None
    short, shorter = math.floor(side / preprocess["crop_pct"]), min(image.size)
    size = [short * length // shorter for length in image.size]
    image = image.resize(size, Image.Resampling[preprocess["interpolation"].upper()])
    left, top = (round((length - side) / 2) for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    return ((pixels - preprocess["mean"]) / preprocess["std"]).astype(np.float32).transpose(2, 0, 1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    preprocess, names = json.loads(about["preprocess"]), json.loads(about["classes"])
    if preprocess["input_size"][1] != preprocess["input_size"][2] or preprocess["crop_mode"] != "center":
        raise SystemExit("this example prepares squares from the centre; see vssm.data.preprocess for other ways")
    fixed = session.get_inputs()[0].shape[0]
    batch_size = fixed if isinstance(fixed, int) else args.batch_size  # a name: any number of images
    files = sorted(path for path in Path(args.folder).rglob("*") if path.suffix.lower() in ENDINGS)
    table, count = csv.writer(sys.stdout), 0
    table.writerow(["file", "class", "probability"])
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            images = threads.map(lambda path: prepare(path, preprocess), batch)
            read = [(path, image) for path, image in zip(batch, images, strict=True) if image is not None]
            if not read:
                continue
            images = np.stack([image for _, image in read])
            logits = np.asarray(session.run(["logits"], {"image": images})[0])
            odds = np.exp(logits - logits.max(1, keepdims=True))
            for (path, _), row in zip(read, odds / odds.sum(1, keepdims=True), strict=True):
                best = int(row.argmax())
                table.writerow([path, names[best] if names else best, f"{row[best]:.4f}"])
            count += len(read)
    return count


if __name__ == "__main__":
    main()

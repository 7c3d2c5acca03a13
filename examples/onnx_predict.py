"""Classify one image with a file of `vssm export`: onnxruntime, numpy and Pillow, without vssm or torch.

python examples/onnx_predict.py model.onnx photo.jpg
"""

import argparse
import json
import math

import numpy as np
import onnxruntime
from PIL import Image


def prepare(path, preprocess):
    """The image as the network's input (3, H, W): the shorter side resized, the centre cut out, normalised."""
    side = preprocess["input_size"][1]
    if preprocess["input_size"][2] != side or preprocess["crop_mode"] != "center":
        raise SystemExit("this example prepares squares from the centre; see vssm.data.preprocess for other ways")
    image = Image.open(path).convert("RGB")
    short, shorter = math.floor(side / preprocess["crop_pct"]), min(image.size)
    size = [short * length // shorter for length in image.size]
    image = image.resize(size, Image.Resampling[preprocess["interpolation"].upper()])
    left, top = (round((length - side) / 2) for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    return ((pixels - preprocess["mean"]) / preprocess["std"]).astype(np.float32).transpose(2, 0, 1)


def main() -> list[tuple[str, float]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("image")
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    image = prepare(args.image, json.loads(about["preprocess"]))
    logits = np.asarray(session.run(["logits"], {"image": image[None]})[0])
    odds = np.exp(logits[0] - logits[0].max())
    names = json.loads(about["classes"]) or [str(index) for index in range(len(odds))]
    best = [(names[index], float(odds[index] / odds.sum())) for index in np.argsort(-odds)[:5]]
    for name, probability in best:
        print(f"{probability:7.2%}  {name}")
    return best


if __name__ == "__main__":
    main()

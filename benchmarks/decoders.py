"""From JPEG files to 8-bit pixels at 224 x 224 on one core: this package, timm, and torchvision on Pillow images and on
tensors.

    python benchmarks/decoders.py [--rounds 9] [--images 96] [--size 500x375]

Training: random crop (bicubic), flip, colour jitter of 0.4 (brightness, contrast, saturation), and the same without the
jitter. Evaluation: resize, centre crop. Each side ends with 8-bit pixels, which all can normalise on the device.
Images per second of processor time, one thread; the sides alternate, and the table shows the medians and their ratio to
the first. "tensors" decodes with `torchvision.io.decode_jpeg` and computes with `transforms.v2` on uint8 tensors.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from input import make_images
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from vssm.data.image import open_image
from vssm.data.transforms import PixelTransform
from vssm.settings import DataSettings
from vssm.tasks.classification.transforms import preprocess_for, train_transform

BICUBIC = v2.InterpolationMode.BICUBIC


def ours(part, jitter):
    data = DataSettings(color_jitter=jitter)
    preprocess = preprocess_for(data, "vmamba_tiny")
    whole = train_transform(data, preprocess) if part == "train" else preprocess.transform()
    pixels = PixelTransform(whole)
    return lambda path: pixels(open_image(path, 3, pixels.min_side)), preprocess


def timms(part, jitter, preprocess):
    transform = create_transform(
        input_size=preprocess.input_size,
        is_training=part == "train",
        use_prefetcher=True,  # which normalises the batch
        interpolation="bicubic",
        color_jitter=jitter or None,
        crop_pct=preprocess.crop_pct,
    )

    def read(path):
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    return read


def torchvisions(part, jitter, preprocess, tensors):
    steps = []
    if part == "train":
        steps += [v2.RandomResizedCrop(224, interpolation=BICUBIC, antialias=True), v2.RandomHorizontalFlip()]
        steps += [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
    else:
        steps += [v2.Resize(int(224 / preprocess.crop_pct), interpolation=BICUBIC, antialias=True), v2.CenterCrop(224)]
    transform = v2.Compose(steps if tensors else [*steps, v2.PILToTensor()])

    def read_tensor(path):
        return transform(decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB))

    def read_pillow(path):
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    return read_tensor if tensors else read_pillow


def seconds(read, paths):
    """Of the processor, per image."""
    began = time.process_time()
    for path in paths:
        assert np.asarray(read(path)).dtype == np.uint8
    return (time.process_time() - began) / len(paths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", default="500x375")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| images/s of one core | vssm | timm | torchvision, Pillow | torchvision, tensors |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), args.images, tuple(map(int, args.size.split("x"))))
        paths = sorted((Path(folder) / "train").rglob("*.jpg"))
        for name, part, jitter in (("training", "train", 0.4), ("without jitter", "train", 0.0), ("evaluation", "", 0)):
            read, preprocess = ours(part, jitter)
            readers = [read, timms(part, jitter, preprocess)]
            readers += [torchvisions(part, jitter, preprocess, tensors) for tensors in (False, True)]
            times = [[] for _ in readers]
            for number in range(args.rounds + 1):
                for reader, found in zip(readers, times, strict=True):
                    torch.manual_seed(number)
                    taken = seconds(reader, paths)
                    if number:
                        found.append(taken)
            speeds = [1 / statistics.median(found) for found in times]
            cells = [f"{speed:.0f} ({speed / speeds[0]:.2f})" for speed in speeds]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""The input pipeline compared with timm's loader: images/s on the same JPEGs, with the same augmentation.

    python benchmarks/input.py [--workers 0 1 2] [--rounds 7] [--images 320] [--size 500x375]

Training and evaluation at 224 x 224, batches of 32, one thread per process. Images per second of one core, from the
processor time of the main process and the workers, which other programs hardly affect (Linux only). The loaders
alternate, one pass over all images each; the table shows the medians. The images are crops of the two photographs in
scikit-learn.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_dataset, create_loader

from vssm.data.splits import load_splits
from vssm.settings import DataSettings, Settings, TrainerSettings
from vssm.tasks.classification.transforms import preprocess_for, train_transform
from vssm.train.datamodule import Loaders
from vssm.train.fit import create_trainer

BATCH = 32


def make_images(root, count, size):
    """`count` JPEGs of quality 90, half to train and the same again to validate."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % 2]
        share = generator.uniform(0.6, 1)
        width, height = (int(side * share) for side in photograph.size)
        left, top = (int(generator.uniform(0, a - b)) for a, b in zip(photograph.size, (width, height), strict=True))
        image = photograph.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
        for split in ("train", "val"):
            path = root / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)


class Arriving:
    """One of our loaders, with the processing of its batches."""

    def __init__(self, loaders, split):
        self.loaders = loaders
        self.loader = getattr(loaders, f"{split}_dataloader")()

    def __iter__(self):
        batches = iter(self.loader)  # starts the workers now
        return (self.loaders.on_after_batch_transfer(batch, 0) for batch in batches)


def our_loaders(root, workers):
    data = DataSettings("imagefolder", root=str(root), batch_size=BATCH, workers=workers)
    preprocess = preprocess_for(data, "vmamba_tiny")
    splits = load_splits(data, preprocess, train_transform(data, preprocess))
    loaders = Loaders(splits, data, seed=0)
    loaders.trainer = create_trainer(Settings(data=data, trainer=TrainerSettings(accelerator="cpu", devices=1)))
    return {"train": Arriving(loaders, "train"), "eval": Arriving(loaders, "val")}, splits.preprocess


def timm_loaders(root, workers, preprocess, prefetcher):
    def loader(split, training):
        return create_loader(
            create_dataset("", root=str(root / split)),
            input_size=preprocess.input_size,
            batch_size=BATCH,
            is_training=training,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            crop_pct=preprocess.crop_pct,
            num_workers=workers,
            use_prefetcher=prefetcher,
            persistent_workers=workers > 0,
            device=torch.device("cpu"),
        )

    return {"train": loader("train", True), "eval": loader("val", False)}


def processor_seconds(workers):
    """User and system time of this process and of the workers."""
    ticks = 0
    for worker in workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def seconds(loader):
    """Per image, in one pass."""
    batches = iter(loader)
    workers = getattr(getattr(loader, "loader", loader)._iterator, "_workers", ())
    began = processor_seconds(workers)
    images = sum(len(batch[0]) for batch in batches)
    return (processor_seconds(workers) - began) / images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=320, help="a multiple of the batch of 32")
    parser.add_argument("--size", default="500x375")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")

    print("| images/s | vssm | timm | timm without prefetcher | vssm over the faster timm |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), args.images, tuple(map(int, args.size.split("x"))))
        for workers in args.workers:
            ours, preprocess = our_loaders(Path(folder), workers)
            sides = [
                ours,
                *(timm_loaders(Path(folder), workers, preprocess, prefetcher) for prefetcher in (True, False)),
            ]
            for part in ("train", "eval"):
                times = [[] for _ in sides]
                for round_number in range(args.rounds + 1):
                    for side, found in zip(sides, times, strict=True):
                        taken = seconds(side[part])
                        if round_number:  # the first starts the workers
                            found.append(taken)
                speeds = [1 / statistics.median(found) for found in times]
                cells = " | ".join(f"{speed:.0f}" for speed in speeds)
                print(f"| {part}, {workers} workers | {cells} | {speeds[0] / max(speeds[1:]):.2f} |", flush=True)


if __name__ == "__main__":
    main()

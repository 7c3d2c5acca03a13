"""What shards and their read-ahead do to the input of a training: images/s from a folder, from shards, and from shards
on a file system that answers each read after a delay.

    python benchmarks/shards.py [--delay 0.05] [--rounds 7] [--images 640] [--size 500x375] [--clock]

Training batches of 64 at 224 x 224 (decoding and augmentation as `vssm fit` does them), loaded by the main process.
The sides alternate, one pass over all images each, and the table shows the medians. An image takes the processor time
of the process, reading threads included, and the time that the process waits for bytes: their sum is what an idle core
needs, whatever else runs on the machine. `--clock` takes the time of the clock instead. "one by one" reads each image
when it is decoded, as without read-ahead.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from input import Arriving, make_images
from torch.utils.data import DataLoader

from vssm.data.readahead import ReadAhead
from vssm.data.sampling import SeededSamples
from vssm.data.shards.pack import pack
from vssm.data.splits import load_splits
from vssm.settings import DataSettings, Settings, TrainerSettings
from vssm.tasks.classification.transforms import preprocess_for, train_transform
from vssm.train.datamodule import Loaders
from vssm.train.fit import create_trainer

BATCH = 64
ONE_BY_ONE = "delayed, one by one"


class SlowFileSystem(LocalFileSystem):
    """The local files, each read after a delay: a network disk or an object store."""

    protocol = "slow"
    delay = 0.05

    def cat_file(self, path, start=None, end=None, **kwargs):
        time.sleep(self.delay)
        return super().cat_file(path, start=start, end=end, **kwargs)


def loaders_of(data):
    preprocess = preprocess_for(data, "vmamba_tiny")
    splits = load_splits(data, preprocess, train_transform(data, preprocess))
    loaders = Loaders(splits, data, seed=0)
    loaders.trainer = create_trainer(Settings(data=data, trainer=TrainerSettings(accelerator="cpu", devices=1)))
    return Arriving(loaders, "train")


def without_ahead(arriving):
    """The same loader, whose data set is told nothing."""
    loader = arriving.loader
    samples = SeededSamples(loader.dataset.dataset, loader.dataset.seed)
    sampler, collate = loader.batch_sampler.sampler, loader.collate_fn
    arriving.loader = DataLoader(samples, BATCH, sampler=sampler, drop_last=True, collate_fn=collate)
    return arriving


def sides(folder):
    def data(name, root):
        return DataSettings(name, root=str(root), batch_size=BATCH)

    packed = folder / "packed"
    return {
        "folder": loaders_of(data("imagefolder", folder / "images")),
        "shards": loaders_of(data("shards", packed)),
        "delayed": loaders_of(data("shards", f"slow://{packed}")),
        ONE_BY_ONE: without_ahead(loaders_of(data("shards", f"slow://{packed}"))),
    }


class Waiting:
    """Seconds that this process has waited for the bytes of images."""

    def __init__(self):
        self.seconds, take = 0.0, ReadAhead.take

        def timed(reader, position):
            if (future := reader._begun.get(position)) is not None and future.done():
                return take(reader, position)
            began = time.perf_counter()
            content = take(reader, position)
            self.seconds += time.perf_counter() - began
            return content

        ReadAhead.take = timed


def one_pass(loader, waiting, clock):
    """(seconds, of which waited) per image."""
    began, waited = time.perf_counter() if clock else time.process_time(), waiting.seconds
    images = sum(len(batch[0]) for batch in loader)
    taken = (time.perf_counter() if clock else time.process_time()) - began
    waited = waiting.seconds - waited
    return (taken if clock else taken + waited) / images, waited / images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=640, help=f"a multiple of the batch of {BATCH}")
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--clock", action="store_true", help="time of the clock; needs an idle machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    SlowFileSystem.delay = args.delay
    fsspec.register_implementation("slow", SlowFileSystem)
    waiting = Waiting()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", args.images, tuple(map(int, args.size.split("x"))))
        pack(folder / "images", folder / "packed", shard_bytes=2**21)
        measured = sides(folder)
        found = {side: [] for side in measured}
        for number in range(args.rounds):
            for side, loader in measured.items():
                if side != ONE_BY_ONE or number == 0:  # that one is slow and steady
                    found[side].append(one_pass(loader, waiting, args.clock))
    print("| | images/s | waiting, ms per image | share of the speed from local shards |\n|---|---|---|---|")
    local = statistics.median(seconds for seconds, _ in found["shards"])
    for side, passes in found.items():
        seconds, waited = (statistics.median(column) for column in zip(*passes, strict=True))
        print(f"| {side} | {1 / seconds:.0f} | {1000 * waited:.2f} | {local / seconds:.2f} |")


if __name__ == "__main__":
    main()

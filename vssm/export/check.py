"""An exported file against the network it was made of, in a process that has only the file."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from vssm.data.image import open_image
from vssm.data.photographs import photographs
from vssm.data.preprocess import Preparation
from vssm.export.formats import FORMATS
from vssm.export.sizes import Shape
from vssm.ops.native import cpu_threads

__all__ = ["Checked", "check", "has_photographs"]

ALONE = Path(__file__).with_name("alone.py")
ROUNDS = 3


@dataclass(frozen=True)
class Checked:
    """One comparison on `batch` images of `size` (H, W), "random" ones or "photographs".

    error: largest difference over the largest result. seconds, eager: of the batch on one thread, in the runtime and by
    the network itself, medians of 3.
    """

    runtime: str
    batch: int
    error: float
    seconds: float
    eager: float
    size: tuple[int, int] = (0, 0)
    images: str = "random"

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.runtime}, batch {self.batch}, {height} x {width}, {self.images}: error {self.error:.1e}, "
            f"{self.seconds * 1000:.1f} ms; eager {self.eager * 1000:.1f} ms (one thread)"
        )


def has_photographs() -> bool:
    """Whether a package with photographs (scikit-image, scikit-learn) is installed."""
    try:
        return bool(photographs(1))
    except ValueError:
        return False


def check(
    network: nn.Module, path: Path, format: str, shapes: Sequence[Shape], preprocess: Preparation
) -> Iterator[Checked]:
    """Run the file on random images of each shape (B, C, H, W), and on photographs at the shapes of more than one image
    and at the last.

    Raises ValueError with the last line of what the runtime says when it cannot run the file.
    """
    inputs = _inputs(shapes, preprocess)
    for number, (_, x) in enumerate(inputs):
        np.save(path.parent / f"{number}.npy", x.numpy())
    seconds = _run_alone(path, format, len(inputs))
    for number, (kind, x) in enumerate(inputs):
        with np.load(path.parent / f"{number}.npz") as stored:
            found = [torch.from_numpy(stored[name]) for name in stored.files]
        want, eager = _eager(network, x)
        error = max(_error(one, other) for one, other in zip(found, want, strict=True))
        size = (x.shape[2], x.shape[3])
        yield Checked(FORMATS[format].runtime, len(x), error, seconds[number], eager, size, kind)


def _inputs(shapes: Sequence[Shape], preprocess: Preparation) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [("random", torch.randn(*shape, generator=generator)) for shape in shapes]
    if has_photographs():
        shown = [shape for shape in shapes if shape[0] > 1 or shape == shapes[-1]]
        made += [("photographs", _photographs(shape, preprocess)) for shape in shown]
    return made


def _photographs(shape: Shape, preprocess: Preparation) -> Tensor:
    """Resized to the size without keeping their aspect ratio, and normalised."""
    batch, channels, height, width = shape
    files = photographs(batch)
    pixels = [open_image(files[i % len(files)], channels).resize((width, height)) for i in range(batch)]
    values = torch.from_numpy(np.stack([np.asarray(one, np.float32) / 255 for one in pixels]))
    values = (values.view(batch, height, width, channels) - torch.tensor(preprocess.mean)) / torch.tensor(
        preprocess.std
    )
    return values.permute(0, 3, 1, 2).float().contiguous()


def _run_alone(path: Path, format: str, cases: int) -> list[float]:
    """The median seconds of each case."""
    numbers = [str(number) for number in range(cases)]
    argv = [sys.executable, "-P", str(ALONE), format, str(path), str(path.parent), str(ROUNDS), *numbers]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(
            f"{FORMATS[format].runtime} cannot run the exported file: {said[-1] if said else 'it was killed'}"
        )
    return [float(line.split()[1]) for line in done.stdout.splitlines()]


def _eager(network: nn.Module, x: Tensor) -> tuple[list[Tensor], float]:
    seconds, y = [], None
    device = next(network.parameters()).device
    with torch.inference_mode(), cpu_threads(1):
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            y = network(x.to(device))
            seconds.append(time.perf_counter() - start)
    results = y if isinstance(y, list | tuple) else [y]
    return [one.cpu() for one in results], median(seconds[1:])  # type: ignore[union-attr]


def _error(found: Tensor, want: Tensor) -> float:
    if found.shape != want.shape:
        return float("inf")
    if not want.numel():  # nothing was found, by neither
        return 0.0
    return float((found - want).abs().max() / want.float().abs().max().clamp_min(1e-12))

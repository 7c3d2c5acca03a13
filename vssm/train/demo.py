"""Two small models learn to read handwritten digits: what `vssm demo` trains, measures and draws."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vssm.data.digits import MEAN, STD, Digits
from vssm.settings import Settings
from vssm.train.callbacks import read_metrics
from vssm.train.fit import Experiment, build, fit, start_run


@dataclass(frozen=True)
class ReadDigit:
    """A test image (H, W) in 0..1, what it is, what it was read as, and how sure the model was."""

    image: np.ndarray
    truth: int
    read: int
    confidence: float


@dataclass(frozen=True)
class DemoResult:
    """One trained model on the test digits, read with the final averaged weights (none chosen by the test).

    wrong: the misread digits, most confident mistake first. unsure: digits read rightly, least confident first.
    """

    model: str
    run: Path
    accuracy: float
    parameters: int
    train_images_per_second: float
    test_images_per_second: float
    tested: int
    wrong: tuple[ReadDigit, ...]
    unsure: tuple[ReadDigit, ...]
    operators: tuple[str, ...]
    curves: list[dict[str, str]]


def train_digits(
    settings: Settings,
    announce: Callable[[Experiment], None],
    callbacks: Sequence[Callback] = (),
) -> DemoResult:
    """Trains one model by the path of `vssm fit` and reads the test digits with it."""
    experiment = build(settings)
    run = start_run(settings)
    announce(experiment)
    fit(experiment, run, callbacks=callbacks)
    run.close()
    model = experiment.model.eval()
    test = cast(Digits, experiment.splits.val)
    # The first pass warms up; the second is timed.
    read_digits(model, test)
    began = time.perf_counter()
    probabilities = read_digits(model, test)
    seconds = time.perf_counter() - began
    curves = read_metrics(run.metrics)
    speeds = [float(row["images_per_second"]) for row in curves if row["images_per_second"]]
    wrong, unsure = hardest_digits(test, probabilities)
    return DemoResult(
        settings.model.name,
        run.path,
        1 - len(wrong) / len(test),
        sum(parameter.numel() for parameter in model.parameters()),
        float(np.median(speeds)),
        len(test) / seconds,
        len(test),
        wrong,
        unsure,
        operators_of(model, test.images[:1]),
        curves,
    )


@torch.inference_mode()
def read_digits(model: nn.Module, test: Digits, batch_size: int = 120) -> torch.Tensor:
    """Probabilities (images, 10) of the test digits, on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(batch.to(device)).float().softmax(-1).cpu() for batch in test.images.split(batch_size)])


@torch.inference_mode()
def operators_of(model: nn.Module, images: torch.Tensor) -> tuple[str, ...]:
    """Names of this package's operators that a forward of `images` calls, sorted."""
    seen: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "vssm":
                seen.add(func._schema.name.removeprefix("vssm::"))
            return func(*args, **(kwargs or {}))

    with Record():
        model(images.to(next(model.parameters()).device))
    return tuple(sorted(seen))


def hardest_digits(
    test: Digits, probabilities: torch.Tensor, unsure: int = 8
) -> tuple[tuple[ReadDigit, ...], tuple[ReadDigit, ...]]:
    """All misread digits, most confident mistake first, and the `unsure` least confident of the others."""
    confidence, read = probabilities.max(-1)
    pixels = (test.images * STD[0] + MEAN[0]).clamp(0, 1).numpy()
    order = confidence.argsort(descending=True).tolist()
    digits = [ReadDigit(pixels[i, 0], int(test.labels[i]), int(read[i]), float(confidence[i])) for i in order]
    wrong = [digit for digit in digits if digit.read != digit.truth]
    right = [digit for digit in digits if digit.read == digit.truth]
    return tuple(wrong), tuple(right[::-1][:unsure])

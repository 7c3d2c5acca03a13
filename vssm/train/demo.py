"""Two small models learn to read handwritten digits: what `vssm demo` trains, measures and draws."""

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
from vssm.inference.evaluate import evaluate
from vssm.settings import Settings
from vssm.tasks.classification.metrics import Answer, Details
from vssm.train.callbacks import read_metrics
from vssm.train.fit import Experiment, build, fit, start_run

UNSURE = 8


@dataclass(frozen=True)
class ReadDigit:
    """A test image (H, W) in 0..1, what it is, what it was read as, and the model's confidence."""

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
    for _ in range(2):
        tested = evaluate(model, experiment.task, experiment.splits, batch_size=120, details=len(test), kind="test")
    quality = tested.quality
    assert isinstance(quality, Details)
    curves = read_metrics(run.metrics)
    speeds = [float(row["images_per_second"]) for row in curves if row["images_per_second"]]
    return DemoResult(
        settings.model.name,
        run.path,
        quality.top1,
        sum(parameter.numel() for parameter in model.parameters()),
        float(np.median(speeds)),
        tested.images_per_second,
        len(test),
        tuple(shown_digit(test, answer) for answer in quality.mistakes),
        tuple(shown_digit(test, answer) for answer in quality.unsure[:UNSURE]),
        operators_of(model, test.images[:1]),
        curves,
    )


def shown_digit(test: Digits, answer: Answer) -> ReadDigit:
    """With the pixels of the scan: the normalisation undone."""
    pixels = (test.images[answer.index, 0] * STD[0] + MEAN[0]).clamp(0, 1).numpy()
    return ReadDigit(pixels, answer.truth, answer.read, answer.confidence)


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

"""From a run directory to the facts of its report: reads what the run wrote, evaluates its checkpoint."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vssm._words import same_names
from vssm.analysis.one_image import multiply_adds
from vssm.data.digits import Digits
from vssm.data.imagefolder import ImageFolder, some
from vssm.data.loaders import size_of
from vssm.data.unreadable import read_unreadable, reasons
from vssm.inference.checkpoint import TrainedModel, read_checkpoint
from vssm.inference.evaluate import Evaluation, Progress
from vssm.inference.predictor import Predictor
from vssm.inference.run_dir import RunDir, checkpoint_file
from vssm.report.history import History, read_history
from vssm.settings import Settings
from vssm.tasks.classification.metrics import Answer, Details
from vssm.tasks.task import Quality, Task

THUMBNAIL, EXAMPLE = 160, 400


@dataclass(frozen=True)
class FinishedRun:
    """What can be read of a run without any image: its files are there and hold what they should."""

    run: RunDir
    checkpoint: Path
    stored: TrainedModel
    history: History
    environment: dict[str, Any]
    unreadable: dict[str, str]

    @property
    def name(self) -> str:
        return self.run.path.resolve().name


@dataclass(frozen=True)
class Picture:
    """A mistake to look at: a data URI of the image as the model saw it, its size, and its file where there is one."""

    mistake: Answer
    uri: str
    side: int
    file: str | None = None


@dataclass(frozen=True)
class Drawn:
    """An image with what was found, and with what is true, as data URIs, and its file."""

    found: str
    truth: str
    file: str


@dataclass(frozen=True)
class Report:
    """Everything a page reports about one run.

    multiply_adds: of one image, as `vssm.complexity` counts; None where it cannot
    quality: `Details` of a classifier
    pictures, examples: of a classifier, and of the other tasks
    trained_on: training images (objects) per class; None where they are not there to be counted
    images_id: equal for two runs that were evaluated on the same images
    unreadable: (file, reason) of images that training and evaluation had to leave out
    notes: sentences that a reader must not miss
    """

    name: str
    path: Path
    checkpoint: str
    settings: Settings
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    parameters: int
    multiply_adds: int | None
    trained_on: tuple[int, ...] | None
    environment: dict[str, Any]
    history: History
    task: Task
    quality: Any  # a Quality
    images_per_second: float
    images_id: str
    pictures: tuple[Picture, ...]
    examples: tuple[Drawn, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def training_seconds(self) -> float | None:
        settings = self.settings
        return self.history.seconds(settings.data.batch_size * settings.trainer.accumulate_grad_batches)


def open_run(path: str | Path) -> FinishedRun:
    """Raises OSError or ValueError that names the folder and what it lacks."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected the run directory of an earlier `vssm fit`")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected a run directory")
    run = RunDir(path)
    if not run.config.exists():
        raise FileNotFoundError(f"{path} is not a run directory: it has no {run.config.name}, which `vssm fit` writes")
    history = read_history(run.metrics)
    checkpoint = checkpoint_file(path)
    unreadable = read_unreadable(run.unreadable) if run.unreadable.exists() else {}
    return FinishedRun(run, checkpoint, read_checkpoint(checkpoint), history, run.read_environment(), unreadable)


def evaluate_run(
    found: FinishedRun,
    device: torch.device | str = "cpu",
    data_root: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluates the checkpoint on the validation images of its training, and gathers the rest.

    `data_root` names where an image folder lies now; `progress(done, all)` is called after every batch. Raises OSError
    or ValueError when the images are not there or do not fit.
    """
    stored, settings = found.stored, found.stored.settings
    if data_root is not None:
        settings.data.root = data_root
        settings.data.train = settings.data.val = settings.data.test = None
    predictor = Predictor.of(stored).to(device)
    limit = settings.trainer.limit_val_batches
    evaluation = predictor.evaluate(settings.data, limit_batches=limit, progress=progress)
    quality, dataset = evaluation.quality, evaluation.splits.val
    unreadable = found.unreadable | reasons(evaluation.unreadable)
    return Report(
        name=found.name,
        path=found.run.path,
        checkpoint=found.checkpoint.name,
        settings=settings,
        classes=stored.classes,
        input_size=stored.preprocess.input_size,
        parameters=sum(parameter.numel() for parameter in predictor.model.parameters()),
        multiply_adds=multiply_adds(predictor.model, stored.preprocess.input_size)[0],
        trained_on=_trained_on(predictor, settings, stored.classes),
        environment=found.environment,
        history=found.history,
        task=predictor.task,
        quality=quality,
        images_per_second=evaluation.images_per_second,
        images_id=_images_id(dataset, evaluation.planned),
        pictures=tuple(_picture(predictor, dataset, mistake) for mistake in _mistakes(quality)),
        examples=tuple(
            Drawn(_uri(one.found, EXAMPLE), _uri(one.truth, EXAMPLE), one.file)
            for one in predictor.task.examples(quality, evaluation.splits, stored.classes)
        ),
        unreadable=tuple(unreadable.items()),
        notes=_notes(found, evaluation, quality),
    )


def _mistakes(quality: Quality) -> tuple[Answer, ...]:
    return quality.mistakes if isinstance(quality, Details) else ()


def _trained_on(predictor: Predictor, settings: Settings, classes: Sequence[str]) -> tuple[int, ...] | None:
    try:
        found = predictor.task.load_splits(settings.data, predictor.preprocess)
    except (OSError, ValueError):  # gone or changed since; the report is about the validation images
        return None
    counts = found.class_counts().get("train")
    return tuple(counts) if counts is not None and same_names(found.classes, classes) else None


def _images_id(dataset: Any, planned: int) -> str:
    """Names, sizes and labels of the images, without where their folder lies."""
    if isinstance(dataset, ImageFolder):
        samples = dataset.samples[:planned]
        entries = [(path.relative_to(dataset.folder).as_posix(), path.stat().st_size, k) for path, k in samples]
    elif not isinstance(dataset, Digits):
        return f"{dataset.fingerprint()} {planned}"
    else:
        entries = [("digits", dataset.images.shape[-1], n) for n in dataset.positions[:planned].tolist()]
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def _notes(found: FinishedRun, evaluation: Evaluation, quality: Quality) -> tuple[str, ...]:
    history, notes = found.history, list[str]()
    planned, images, unreadable = evaluation.planned, size_of(evaluation.splits.val), len(evaluation.unreadable)
    broken = history.first_not_finite()
    if broken is not None:
        column, step = broken
        notes.append(
            f"The {'training' if column == 'train_loss' else 'validation'} loss became NaN or infinite at step {step}. "
            "The curves leave such points out; try a lower learning rate or gradient clipping."
        )
    if isinstance(quality, Details) and quality.not_finite:
        notes.append(
            f"The model gave NaN or infinity for {quality.not_finite} of {quality.images} images. They count as wrong "
            "in top-1 and top-5 and are left out of everything else."
        )
    if history.dropped:
        lines = "1 line" if history.dropped == 1 else f"{history.dropped} lines"
        notes.append(
            f"metrics.csv: {lines} cut off or damaged, as after a killed process; only the whole ones are used."
        )
    if unreadable:
        notes.append(f"{unreadable} of {planned} validation images could not be read and are left out of the figures.")
    if planned < images:
        notes.append(
            f"Evaluated on the first {planned} of {images} validation images, as trainer.limit_val_batches sets."
        )
    support = quality.support.tolist() if isinstance(quality, Details) else []
    absent = [name for name, count in zip(found.stored.classes, support) if not count]
    if absent:
        notes.append(f"No validation image is of {some(absent)}: their recall is unknown.")
    epochs, planned = history.epochs, found.stored.settings.trainer.max_epochs
    if epochs < planned and found.stored.settings.trainer.max_steps < 0:
        notes.append(
            f"Training reached epoch {epochs} of {planned}: it was interrupted, stopped early, or is still running."
        )
    if found.checkpoint.name == "last.ckpt":
        notes.append("There is no best.ckpt; this is last.ckpt, the weights of the last epoch saved.")
    return tuple(notes)


def _picture(predictor: Predictor, dataset: Any, mistake: Answer) -> Picture:
    """The image as the model saw it: resized and cropped, with its normalisation undone."""
    tensor, preprocess = dataset[mistake.index][0], predictor.preprocess
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = ((tensor * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    uri = _uri(image, THUMBNAIL)
    samples: Sequence[tuple[Path, int]] | None = getattr(dataset, "samples", None)
    file = None
    if samples is not None:
        path = samples[mistake.index][0]
        file = "/".join(path.parts[-2:])
    return Picture(mistake, uri, min(max(image.size), THUMBNAIL), file)


def _uri(image: Image.Image, side: int) -> str:
    """An image of at most this side as a data URI."""
    image = image.copy()
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    small = max(image.size) <= 64
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

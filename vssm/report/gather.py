"""From a run directory to the facts of its report: reads what the run wrote, judges its checkpoint."""

import base64
import hashlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vssm.data.batches import Forgiving, Unreadable, collate
from vssm.data.imagefolder import ImageFolder, some
from vssm.data.preprocess import Preprocess
from vssm.report.history import History, read_history
from vssm.report.measures import Measure, Mistake, Quality
from vssm.settings import Settings
from vssm.train.checkpoint import TrainedModel, read_checkpoint
from vssm.train.plan import multiply_adds
from vssm.train.run_dir import RunDir, checkpoint_file
from vssm.train.splits import load_splits
from vssm.train.unreadable import read_unreadable

THUMBNAIL = 160
Progress = Callable[[int, int], None]


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

    mistake: Mistake
    uri: str
    side: int
    file: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything a page says about one run.

    multiply_adds: of one image, as `vssm.complexity` counts; None where it cannot
    trained_on: training images per class; None where they are not there to be counted
    images_id: equal for two runs that were judged on the same images
    unreadable: (file, reason) of images that training and judging had to leave out
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
    quality: Quality
    images_per_second: float
    images_id: str
    pictures: tuple[Picture, ...]
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


def judge(
    found: FinishedRun,
    device: torch.device | str = "cpu",
    data_root: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Runs the checkpoint over the validation images that training was judged by, and gathers the rest.

    `data_root` says where an image folder lies now; `progress(done, all)` is told after every batch. Raises OSError or
    ValueError when the images are not there or do not fit.
    """
    stored, settings = found.stored, found.stored.settings
    if data_root is not None:
        settings.data.root = data_root
    splits = load_splits(settings.data, settings.model.name, stored.classes)
    judged = _limit(len(splits.val), settings.data.batch_size, settings.trainer.limit_val_batches)  # type: ignore[arg-type]
    model = stored.create_model().to(device)
    measure = Measure(len(stored.classes))
    loader = DataLoader(
        Forgiving(_Numbered(splits.val, judged)),
        batch_size=settings.data.batch_size,
        num_workers=settings.data.workers,
        collate_fn=collate,
    )
    unreadable: list[Unreadable] = []
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            unreadable += batch.unreadable
            if len(batch.labels):
                labels, numbers = batch.labels.unbind(1)
                measure.update(model(batch.images.to(device)), labels, numbers)
            if progress is not None:
                progress(measure.images + len(unreadable), judged)
    seconds = time.perf_counter() - began
    if len(unreadable) == judged:
        path, reason, _ = unreadable[0]
        raise ValueError(f"none of the {judged} validation images can be read, for example {path}: {reason}")
    quality = measure.result()
    return Report(
        name=found.name,
        path=found.run.path,
        checkpoint=found.checkpoint.name,
        settings=settings,
        classes=stored.classes,
        input_size=stored.preprocess.input_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=multiply_adds(model, stored.preprocess.input_size)[0],
        trained_on=_trained_on(settings, stored.classes),
        environment=found.environment,
        history=found.history,
        quality=quality,
        images_per_second=quality.images / seconds,
        images_id=_images_id(splits.val, judged),
        pictures=tuple(_picture(splits.val, mistake, stored.preprocess) for mistake in quality.mistakes),
        unreadable=tuple((found.unreadable | {path: reason for path, reason, _ in unreadable}).items()),
        notes=_notes(found, quality, judged, len(unreadable), len(splits.val)),  # type: ignore[arg-type]
    )


def _trained_on(settings: Settings, classes: Sequence[str]) -> tuple[int, ...] | None:
    try:
        found = load_splits(settings.data, settings.model.name)
    except (OSError, ValueError):  # gone or changed since; the report is about the validation images
        return None
    return tuple(found.class_counts()["train"]) if found.classes == tuple(classes) else None


def _images_id(dataset: Any, judged: int) -> str:
    """Names, sizes and labels of the images, without where their folder lies."""
    if isinstance(dataset, ImageFolder):
        samples = dataset.samples[:judged]
        entries = [(path.relative_to(dataset.folder).as_posix(), path.stat().st_size, k) for path, k in samples]
    else:
        entries = [("digits", dataset.images.shape[-1], n) for n in dataset.positions[:judged].tolist()]
    return hashlib.sha256(repr(entries).encode()).hexdigest()


class _Numbered(Dataset):
    """The first images of a data set, each with (label, number)."""

    def __init__(self, dataset: Dataset, length: int):
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        image, label = self.dataset[index]
        return image, torch.tensor([label, index])


def _limit(images: int, batch_size: int, limit: int | float | None) -> int:
    """How many images Lightning's limit_val_batches leaves: a number of batches, or a share of them."""
    batches = -(-images // batch_size)
    if isinstance(limit, float):
        limit = int(batches * limit)
    return images if limit is None else min(images, limit * batch_size)


def _notes(found: FinishedRun, quality: Quality, judged: int, unreadable: int, images: int) -> tuple[str, ...]:
    history, notes = found.history, []
    broken = history.first_not_finite()
    if broken is not None:
        column, step = broken
        notes.append(
            f"The {'training' if column == 'train_loss' else 'validation'} loss became NaN or infinite at step {step}. "
            "The curves leave such points out; try a lower learning rate or gradient clipping."
        )
    if quality.not_finite:
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
        notes.append(f"{unreadable} of {judged} validation images could not be read; the figures are about the others.")
    if judged < images:
        notes.append(f"Judged on the first {judged} of {images} validation images, as trainer.limit_val_batches says.")
    absent = [name for name, count in zip(found.stored.classes, quality.support.tolist(), strict=True) if not count]
    if absent:
        notes.append(f"No validation image is of {some(absent)}: recall cannot be said there.")
    epochs, planned = history.epochs, found.stored.settings.trainer.max_epochs
    if epochs < planned and found.stored.settings.trainer.max_steps < 0:
        notes.append(
            f"Training came to epoch {epochs} of {planned}: it was interrupted, stopped early, or has not ended."
        )
    if found.checkpoint.name == "last.ckpt":
        notes.append("There is no best.ckpt; this is last.ckpt, the weights of the last epoch saved.")
    return tuple(notes)


def _picture(dataset: Any, mistake: Mistake, preprocess: Preprocess) -> Picture:
    """The image as the model saw it: resized and cropped, with its normalisation undone."""
    tensor = dataset[mistake.index][0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = ((tensor * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small = max(image.size) <= 64
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    samples: Sequence[tuple[Path, int]] | None = getattr(dataset, "samples", None)
    file = None
    if samples is not None:
        path = samples[mistake.index][0]
        file = "/".join(path.parts[-2:])
    return Picture(mistake, uri, max(image.size), file)

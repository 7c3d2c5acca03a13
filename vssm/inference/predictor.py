"""A network that is ready to use, from wherever its weights come: `vssm.load`."""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import nn

from vssm.data.image import StoredImage, UnreadableImage
from vssm.data.masks import SemanticMasks
from vssm.data.preprocess import Preparation, published_preprocess
from vssm.data.sources import find_frames
from vssm.data.splits import Splits
from vssm.data.video import Frame
from vssm.inference.checkpoint import TrainedModel, at_size, is_ours, load_weights, read_checkpoint
from vssm.inference.device import pick_device
from vssm.inference.evaluate import Evaluation, Progress, evaluate
from vssm.inference.predict import Prediction, predict
from vssm.inference.results import StoredResults
from vssm.settings import DATA_NAMES, DataSettings
from vssm.tasks import TASKS, find_task
from vssm.tasks.classification import check_model_name, class_names, create_classifier
from vssm.tasks.task import Task

if TYPE_CHECKING:
    from vssm.export import Exported

Images = str | PathLike[str] | Image.Image | Iterable[str | PathLike[str] | Image.Image]
# Settings of how a network is applied to images.
_APPLIED = ("test_scales", "test_flip", "test_window", "test_stride")
_FILES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Predictor:
    """A network in evaluation mode, its task, how images are prepared for it, the names of its classes, and the images
    that it was trained with, where that is known."""

    name: str
    model: nn.Module
    preprocess: Preparation
    classes: tuple[str, ...]
    task: Task = TASKS["classification"]
    data: DataSettings | None = None
    channels_last: bool = False

    @classmethod
    def of(cls, stored: TrainedModel) -> "Predictor":
        """From a checkpoint that was read."""
        settings = stored.settings
        model = stored.create_model()
        if settings.model.channels_last:
            model = cast(Any, model).to(memory_format=torch.channels_last)
        return cls(
            settings.model.name,
            model,
            stored.preprocess,
            stored.classes,
            find_task(settings.task),
            settings.data,
            settings.model.channels_last,
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def at_size(self, image_size: int) -> "Predictor":
        """The same at another image size. Raises ValueError when the network cannot take it."""
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        preprocess = at_size(self.preprocess, image_size)
        self.task.check_model(self.model, self.name, preprocess.input_size)
        return replace(self, preprocess=preprocess)

    def to(self, device: torch.device | str) -> "Predictor":
        return replace(self, model=self.model.to(device))

    def predict(
        self, images: Images, top_k: int = 5, batch_size: int = 32, threads: int | None = None, every: int = 1
    ) -> Generator[Prediction, None, None]:
        """Yields one Prediction per image, in order: `classes` (name, probability), or the `error`.

        `images` are files, folders, patterns, shards, parquet files (`vssm.data.sources.find_frames`) or PIL images,
        one or many, found and read as the predictions are asked for; `threads` (one per core) read ahead. Of a video
        each `every`-th frame is an image.
        """
        if isinstance(images, str | PathLike | Image.Image):
            images = [images]
        return self.predict_files(_found(images, every), top_k, batch_size, threads)

    def predict_files(
        self,
        files: Iterable[Path | UnreadableImage | StoredImage | Image.Image | Frame],
        top_k: int = 5,
        batch_size: int = 32,
        threads: int | None = None,
    ) -> Generator[Prediction, None, None]:
        """`predict` for files that were found already."""
        return predict(
            self.model, self.preprocess, self.classes, files, top_k, batch_size, threads, self.task, self.data
        )

    def evaluate(
        self,
        data: DataSettings | str | PathLike[str] | None = None,
        split: str = "val",
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        limit_batches: int | float | None = None,
        precision: str = "32-true",
        details: int = 24,
        progress: Progress | None = None,
        results: str | PathLike[str] | None = None,
    ) -> Evaluation:
        """Evaluates on labelled images: `.quality` has loss, top1, top5, per class figures, confusion and calibration.

        Args:
            data: a folder as `--data.root` takes it, or settings; the images it was trained with when not given
            split: "val", or "test" for FOLDER/test/CLASS/IMAGE
            batch_size, workers: those of the settings when not given
            limit_batches, precision, details, progress: as in `vssm.inference.evaluate.evaluate`
            results: a json file for what was found: of detection in COCO's format, of segmentation the confusion
                matrix. While it grows, FILE.partial has what is done, and an evaluation that was interrupted goes on
                there

        Raises OSError or ValueError when the images are not there, are of other classes, or cannot be read.
        """
        if split not in ("val", "test"):
            raise ValueError(f"split is {split!r}; expected 'val' or 'test'")
        chosen = self._data(data)
        splits = self.task.load_splits(chosen, self.preprocess, classes=self.classes, split=split)
        return evaluate(
            self.model,
            self.task,
            splits,
            batch_size=batch_size or chosen.batch_size,
            workers=chosen.workers if workers is None else workers,
            limit_batches=limit_batches,
            precision=precision,
            channels_last=self.channels_last,
            details=details,
            kind={"val": "validation", "test": "test"}[split],
            progress=progress,
            data=chosen,
            results=None if results is None else self._results(Path(results), splits, chosen, precision),
        )

    def export(
        self,
        path: str | PathLike[str],
        format: str | None = None,
        *,
        dynamic: Sequence[str] | None = None,
        features: bool = False,
        image_size: tuple[int, int] | None = None,
        plain_ops: bool = False,
        dtype: str = "fp32",
    ) -> "Exported":
        """Writes the network as a file for runtimes without this package, with its classes and preprocessing, after
        comparing both. See `vssm.export.export`.

        Args:
            path: .onnx, .pt2, or .xml of OpenVINO
            dynamic: sizes that stay free; None: "batch", for segmentation "height" and "width" too, for detection none
            features: the maps of the backbone, not the answers of the whole network
            format, image_size, plain_ops, dtype: as in `vssm.export.export`

        Raises OSError or ValueError; no file is left then.
        """
        from vssm.export import export

        task = "" if features else self.task.name
        if dynamic is None:
            free = {"segmentation": ("batch",) if plain_ops else ("batch", "height", "width"), "detection": ()}
            dynamic = free.get(task, ("batch",))
        model = getattr(self.model, "backbone", self.model) if features else self.model
        return export(
            model,
            self.preprocess,
            Path(path),
            format,
            dynamic,
            self.classes,
            self.name,
            features,
            task=self.task.name,
            image_size=image_size,
            plain_ops=plain_ops,
            dtype=dtype,
        )

    def _results(self, file: Path, splits: Splits, data: DataSettings, precision: str) -> StoredResults:
        write = self.task.results_writer(self.classes)
        if write is None:
            raise ValueError(f"results are written for detection and segmentation, not {self.task.name}; vssm predict")
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        about = {
            "weights": digest.hexdigest(),
            "images": splits.fingerprints(),
            "masks": splits.val.masks_fingerprint() if isinstance(splits.val, SemanticMasks) else None,
            "preprocessing": splits.preprocess.as_dict(),
            "settings": {name: getattr(data, name) for name in _APPLIED} | {"precision": precision},
        }
        return StoredResults(file, about, write)

    def _data(self, data: DataSettings | str | PathLike[str] | None) -> DataSettings:
        if isinstance(data, DataSettings):
            return data
        known = self.data or DataSettings()
        if data is not None:
            moved = replace(known, name=None, root=str(data), train=None, val=None, test=None)
            kind = moved.kind_of_images() if self.task.name == "classification" else DATA_NAMES[self.task.name][0]
            return replace(moved, name=cast(Any, kind))
        if self.data is None:
            raise ValueError(f"{self.name} comes without images to evaluate on; name a folder: evaluate(FOLDER)")
        return known


def load(
    source: str | PathLike[str],
    model: str | None = None,
    device: torch.device | str = "cpu",
    image_size: int | None = None,
) -> Predictor:
    """A network that is ready to predict and to be evaluated.

        predictor = vssm.load("runs/vmamba_tiny-imagefolder")
        for found in predictor.predict("photos/*.jpg"):
            print(found.path, found.classes)
        print(predictor.evaluate().quality.top1)

    Args:
        source: a run directory of `vssm fit`, a checkpoint file (of a run, official, or any state dict of `model`), or
            the name of a model, whose published weights are then loaded
        model: the name of the model, for a checkpoint that `vssm fit` did not write
        device: where it computes; "auto" for the first accelerator, else the CPU
        image_size: side in pixels, where it is not to be the one it was trained at

    Raises OSError or ValueError that names the file or the model when it is not there or does not fit.
    """
    text = str(source)
    is_file = model is not None or Path(text).exists() or looks_like_a_path(text)
    found = load_predictor(text, model) if is_file else load_predictor(None, text)
    found = found if image_size is None else found.at_size(image_size)
    return found.to(pick_device(str(device)))


def looks_like_a_path(text: str) -> bool:
    """Whether a source that is not there would have been a file, not the name of a model."""
    hub = text.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    return not hub and ("/" in text or "\\" in text or Path(text).suffix in _FILES)


def load_predictor(checkpoint: str | Path | None, model_name: str | None = None) -> Predictor:
    """From a checkpoint of `vssm fit`, from another with the model's name, or a model's published weights.

    Raises OSError or ValueError that names the file or the model when they are not there or do not fit.
    """
    if checkpoint is not None and (model_name is None or is_ours(checkpoint)):
        stored = read_checkpoint(checkpoint)
        if model_name not in (None, stored.settings.model.name):
            raise ValueError(f"{checkpoint} holds a {stored.settings.model.name}, not a {model_name}")
        return Predictor.of(stored)
    if model_name is None:
        raise ValueError("neither a checkpoint nor the name of a model")
    check_model_name(model_name)
    model = create_classifier(model_name, pretrained=checkpoint is None).eval()
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return Predictor(model_name, model, published_preprocess(model, use_test_size=True), class_names(model))


def _found(
    images: Iterable[str | PathLike[str] | Image.Image], every: int
) -> Iterator[Path | UnreadableImage | StoredImage | Image.Image | Frame]:
    for image in images:
        if isinstance(image, Image.Image):
            yield image
        else:
            yield from find_frames([str(image)], every)

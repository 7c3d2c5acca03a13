"""Reading the checkpoints that `vssm fit` wrote. Needs torch and timm, not Lightning."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vssm._sharded import is_sharded
from vssm._words import same_names, spelled
from vssm.data.imagefolder import some
from vssm.data.keep_ratio import KeepRatio
from vssm.data.preprocess import Preparation, Preprocess, stored_preprocess
from vssm.inference.run_dir import RunDir, checkpoint_file
from vssm.settings import Settings
from vssm.tasks import find_task
from vssm.tasks.adaptors import attach_adaptors
from vssm.weights import load_checkpoint
from vssm.weights.archive import check_intact
from vssm.weights.errors import CheckpointError
from vssm.weights.match import check_match
from vssm.weights.read import read_content

PREFIX = "task.model."
FORMAT = 1


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint of `vssm fit` knows: the settings, the classes, the preprocessing, the (averaged) weights.

    `images` counts the images of each class that it was trained and validated on, `fingerprints` stand for their names;
    both are empty when it has none. `teacher` stands for the weights of the model that it learnt from.
    `images_per_batch`: of all devices together; None where the run is of a version that did not write it.
    """

    file: Path
    settings: Settings
    classes: tuple[str, ...]
    preprocess: Preparation
    weights: dict[str, Tensor]
    images: dict[str, list[int]]
    fingerprints: dict[str, str]
    teacher: str | None = None
    images_per_batch: int | None = None

    def changed(self, settings: Settings) -> "TrainedModel":
        """The same under other settings, with the image size, interpolation and crop that they change."""
        preprocess, before, now = self.preprocess, self.settings.data, settings.data
        if now.image_size != before.image_size and now.image_size is not None:
            preprocess = at_size(preprocess, now.image_size)
        changes: dict[str, Any] = {}
        if isinstance(preprocess, KeepRatio):
            if now.max_side != before.max_side and now.max_side is not None:
                preprocess = replace(preprocess, long_side=now.max_side)
            return replace(self, settings=settings, preprocess=preprocess)
        assert isinstance(preprocess, Preprocess)
        for name in ("interpolation", "crop_pct"):
            if getattr(now, name) != getattr(before, name) and getattr(now, name) is not None:
                changes[name] = getattr(now, name)
        return replace(self, settings=settings, preprocess=replace(preprocess, **changes))

    def create_model(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        task = find_task(self.settings.task)
        model = task.create_model(self.settings.model, len(self.classes), self.preprocess.channels)
        attach_adaptors(model, self.settings.model.adaptors)
        self.load_into(model)
        return model.eval()

    def load_into(self, model: nn.Module) -> None:
        """Raises ValueError that names the file when the model has other weights."""
        self.check_fits(model)
        model.load_state_dict(self.weights)

    def check_fits(self, model: nn.Module) -> None:
        check_match(self.file, self.weights, model.state_dict())


def read_checkpoint(path: str | Path, shapes_only: bool = False) -> TrainedModel:
    """Raises OSError or ValueError that names the file when it is not a checkpoint of `vssm fit` that can be read.

    The checksums are compared; the error for a damaged file names an intact one beside it. With `shapes_only` the
    weights may be zeros, as of `read_content`.
    """
    file = checkpoint_file(path)
    content = read_intact(file, shapes_only)
    file_content = cast(dict[str, Any], content if isinstance(content, dict) else {})
    about = file_content.get("vssm")
    if not isinstance(about, dict):
        raise ValueError(f"{file} was not written by `vssm fit`; for other weights name the model too (--model NAME)")
    about = cast(dict[str, Any], about)
    if about.get("format") != FORMAT:
        raise ValueError(f"{file} has format {about.get('format')!r}, expected {FORMAT}; {_versions(about)}")
    try:
        return TrainedModel(
            file,
            Settings.from_stored(about["settings"]),
            tuple(about["classes"]),
            stored_preprocess(about["preprocess"]),
            _without_prefix(file_content["state_dict"]),
            about.get("images", {}),
            about.get("fingerprints", {}),
            about.get("teacher"),
            about.get("images_per_batch"),
        )
    except KeyError as error:
        raise ValueError(f"{file} lacks {error.args[0]!r}; {_versions(about)}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}; {_versions(about)}") from error


def read_intact(file: Path, shapes_only: bool = False) -> Any:
    """All that a checkpoint holds, after its checksums were compared. Errors as `read_checkpoint`."""
    try:
        content = read_content(file, shapes_only=shapes_only)
        if isinstance(content, dict) and "vssm" in content and not is_sharded(file):  # it was compared as it was read
            check_intact(file)
        return cast(Any, content)
    except CheckpointError as error:
        run = RunDir(file.parent.parent)
        beside = [other for other in (run.best, *run.resumable) if other != file and _is_intact(other)]
        if not beside or file.parent.name != run.checkpoints.name:
            raise
        raise CheckpointError(f"{error}; {beside[0]} of the same run is intact") from error


def _is_intact(file: Path) -> bool:
    try:
        check_intact(file)
    except (CheckpointError, FileNotFoundError):
        return False
    return True


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the network, under its own names."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def _versions(about: dict[str, Any]) -> str:
    """Which version wrote a checkpoint, which wants to read it, and what to do, for a message."""
    wrote = about.get("version", "of a version that it does not name")
    return f"it was written by vssm {wrote}, this is vssm {version('vssm')}: use that version, or train again"


def check_unchanged(stored: TrainedModel, description: dict[str, Any], model: nn.Module) -> None:
    """Raises ValueError when the images or the model are not those that a run was trained with so far."""
    remedy = f"put them back as they were, or start a new run from it: --init-from {stored.file}"
    now = tuple(description["classes"])
    if not same_names(stored.classes, now):
        differing = sorted(set(map(spelled, stored.classes)) ^ set(map(spelled, now)))
        raise ValueError(
            f"{stored.file} was trained on {len(stored.classes)} classes, the images are now of {len(now)} "
            f"({some(differing)} on one side only); {remedy}"
        )
    for split, before in stored.images.items():
        for name, old, new in zip(now, before, description["images"].get(split, before), strict=True):
            if old != new:
                raise ValueError(
                    f"{stored.file} was trained with {old} {split} images of {name}, there are now {new}; {remedy}"
                )
    for split, before in stored.fingerprints.items():
        if description["fingerprints"].get(split, before) != before:
            raise ValueError(
                f"{stored.file} was trained with as many {split} images, but of other names (some were renamed or "
                f"replaced since); {remedy}"
            )
    images = description.get("images_per_batch")
    if None not in (images, stored.images_per_batch) and images != stored.images_per_batch:
        raise ValueError(
            f"{stored.file} was trained on batches of {stored.images_per_batch} images on all devices together, now "
            f"they have {images}; change data.batch_size or trainer.devices so that the product is as before"
        )
    if stored.teacher != description.get("teacher"):
        raise ValueError(
            f"{stored.file} was trained with another teacher than optim.distill_teacher now has weights of; {remedy}"
        )
    stored.check_fits(model)


def at_size(preprocess: Preparation, image_size: int) -> Preparation:
    """The same for another image size: the side of a square, or the shorter side where the aspect ratio is kept."""
    if isinstance(preprocess, KeepRatio):
        longer = round(preprocess.long_side * image_size / preprocess.short_side)
        return replace(preprocess, short_side=image_size, long_side=longer)
    assert isinstance(preprocess, Preprocess)
    return replace(preprocess, input_size=(preprocess.channels, image_size, image_size))


def is_ours(path: str | Path) -> bool:
    """Whether a file or folder was written by `vssm fit`."""
    file = checkpoint_file(path)
    if file.suffix == ".safetensors":
        return False
    content = read_content(file, shapes_only=True)
    return isinstance(content, dict) and "vssm" in content


def load_weights(model: nn.Module, path: str | Path, head: str = "strict") -> None:
    """Starts `model` from the weights of a run or a file, as `vssm.load_checkpoint` does."""
    load_checkpoint(model, checkpoint_file(path), head=head)

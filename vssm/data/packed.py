"""From data settings to the data sets of shards and of parquet files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from vssm.data.preprocess import Preprocess
from vssm.data.shards.dataset import ShardImages
from vssm.data.shards.index import INDEX
from vssm.data.shards.reading import is_remote
from vssm.data.split import hold_out
from vssm.data.splits import Splits, Transform, held_out_note, notes_of_hold_out
from vssm.settings import DataSettings

__all__ = ["load_packed", "source_of"]


def load_packed(
    settings: DataSettings,
    preprocess: Preprocess,
    train_transform: Transform | None = None,
    classes: tuple[str, ...] | None = None,
    split: str = "val",
) -> Splits:
    """As `vssm.data.splits.load_splits`, of what `data.train`, `data.val`, `data.test` or `data.root` name."""
    evaluated = preprocess.transform()
    source = source_of(settings, split)
    if split == "test" and source is None:
        raise ValueError("no test images given: --data.test SHARDS (vssm validate takes the validation images)")
    if classes is not None and source is not None:
        return Splits(None, _open(settings, source, evaluated, classes), classes, preprocess)
    train_source = source_of(settings, "train")
    if train_source is None:
        where = settings.root or "no folder"
        raise ValueError(
            f"{where} has no training images; give --data.train SHARDS, as `vssm pack FOLDER SHARDS` wrote"
        )
    found = _open(settings, train_source, train_transform or evaluated, classes)
    if len(found.classes) == 1:
        raise ValueError(f"{train_source} has only one class, {found.classes[0]}; a classifier needs two or more")
    if source is not None:
        val = _open(settings, source, evaluated, found.classes)
        return Splits(found, val, found.classes, preprocess)
    return _held_out(settings, found, evaluated, train_source, preprocess, keep_train=classes is None)


def source_of(settings: DataSettings, split: str) -> str | None:
    """Where the images of a split ("train", "val", "test") lie: a folder, a file or a URL; None where nothing says."""
    named: str | None = getattr(settings, split)
    root = settings.root
    if named is not None or root is None:
        return named
    if is_remote(root):
        return f"{root.rstrip('/')}/{split}"
    if (Path(root) / split).is_dir():
        return str(Path(root) / split)
    return root if split == "train" else None


def _open(
    settings: DataSettings, source: str, transform: Callable[[Image.Image], object], classes: tuple[str, ...] | None
) -> Any:
    if settings.name == "parquet":
        from vssm.data.parquet import ParquetImages

        return ParquetImages(source, transform, classes=classes)
    if not is_remote(source) and not Path(source).is_dir():
        raise FileNotFoundError(
            f"{source} is no folder; expected one with {INDEX}, as `vssm pack FOLDER {source}` writes"
        )
    return ShardImages(source, transform, classes=classes)


def _held_out(
    settings: DataSettings, found: Any, evaluated: Transform, source: str, preprocess: Preprocess, keep_train: bool
) -> Splits:
    """Without validation images: a share of each class, drawn by the keys of the images."""
    positions = {key: position for position, key in enumerate(found.keys)}
    samples = [(Path(key), int(label)) for key, label in zip(positions, found.labels, strict=True)]
    train, val, alone = hold_out(samples, Path(), settings.val_share, settings.split_seed)
    if not val:
        raise ValueError(f"{source} has one image per class: none can be held out to validate; add images")

    def part(of: list[tuple[Path, int]], transform: Any) -> Any:
        return found.with_samples([positions[path.as_posix()] for path, _ in of], transform)

    return Splits(
        part(train, found.transform) if keep_train else None,
        part(val, evaluated),
        found.classes,
        preprocess,
        notes_of_hold_out(held_out_note(settings, source, "each class"), [found.classes[label] for label in alone]),
    )

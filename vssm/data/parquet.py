"""Images in parquet files, as Hugging Face's datasets are stored; needs the extra `parquet`."""

import copy
import hashlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from vssm.data.image import UnreadableImage, read_image
from vssm.data.imagefolder import renumbered

__all__ = ["ParquetImages"]

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")


class ParquetImages(Dataset[tuple[object, int]]):
    """Images and classes of one split, in the order of the files and their rows.

    Args:
        source: a .parquet file, or a folder of such files
        transform: what is done to the PIL image; one with `min_side` allows large JPEGs to be decoded smaller
        channels: 3 reads RGB, 1 reads grey
        classes: the names and order to use; those that the file records, or the sorted values, when not given
        labelled: false for images alone: no column of classes is looked for, and there are none

    `datasets` keeps an uncompressed copy in its cache (HF_DATASETS_CACHE), which is mapped, not read into memory.
    Raises ModuleNotFoundError without `datasets`; OSError or ValueError for files or columns that are not there. A
    sample raises UnreadableImage, named FILE or FOLDER#ROW, when its bytes cannot be decoded.
    """

    def __init__(
        self,
        source: str,
        transform: Callable[[Image.Image], object],
        channels: int = 3,
        classes: Sequence[str] | None = None,
        labelled: bool = True,
    ):
        datasets = _datasets()
        files = _files(Path(source))
        self.source, self.transform, self.channels = source, transform, channels
        datasets.disable_progress_bars()
        try:
            table = datasets.Dataset.from_parquet([str(file) for file in files])
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            raise ValueError(f"{source}: cannot be read as parquet ({error.__cause__ or error})") from None
        self.column = _column(table.features, source, "images", "Image", IMAGE_COLUMNS)
        if isinstance(table.features[self.column], datasets.Image):
            table = table.cast_column(self.column, datasets.Image(decode=False))
        self._rows = table.select_columns([self.column])
        found, labels = (), np.zeros(len(table), np.int64)
        if labelled:
            column = _column(table.features, source, "classes", "ClassLabel", LABEL_COLUMNS)
            found, labels = _labels(table, column, source)
        self.classes, self.labels = renumbered(found, labels, classes, source) if labelled else ((), labels)
        self.images: NDArray[np.int64] = np.arange(len(labels))
        self._digest = hashlib.sha256(repr([(file.name, file.stat().st_size) for file in files]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[object, int]:
        min_side: int | None = getattr(self.transform, "min_side", None)
        image = read_image(self.content(position), self.key(position), self.channels, min_side)
        return self.transform(image), int(self.labels[position])

    def key(self, position: int) -> str:
        """SOURCE#ROW of a sample, for messages."""
        return f"{self.source}#{int(self.images[position])}"

    def content(self, position: int) -> bytes:
        """The bytes of an image file. Raises UnreadableImage when the row has none."""
        value = self._rows[int(self.images[position])][self.column]
        content = cast(dict[str, Any], value).get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise UnreadableImage(self.key(position), "the row holds no bytes of an image")
        return content

    @property
    def keys(self) -> list[str]:
        return [f"{row:08d}" for row in self.images.tolist()]

    def fingerprint(self) -> str:
        return hashlib.sha256(self._digest.encode() + self.images.astype("<i8").tobytes()).hexdigest()

    def with_samples(
        self, positions: Sequence[int] | NDArray[np.int64], transform: Callable[[Image.Image], object]
    ) -> "ParquetImages":
        """The same files with some of the rows only, in their order, and another transform."""
        part = copy.copy(self)
        chosen = np.sort(np.asarray(positions, dtype=np.int64))
        part.images, part.labels, part.transform = self.images[chosen], self.labels[chosen], transform
        return part

    def with_transform(self, transform: Callable[[Image.Image], object]) -> "ParquetImages":
        return self.with_samples(np.arange(len(self)), transform)


def _datasets() -> Any:
    return importlib.import_module("datasets")  # untyped


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a .parquet file or a folder of them")
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise FileNotFoundError(f"{source} holds no .parquet file")
    return files


def _column(features: Any, source: str, what: str, kind: str, names: Sequence[str]) -> str:
    """The first column of a type of `datasets`, else of one of the names."""
    found = [name for name, of in features.items() if isinstance(of, getattr(_datasets(), kind))]
    found = found or [name for name in names if name in features]
    if not found:
        raise ValueError(
            f"{source} has the columns {', '.join(features)}, none of {what}; expected one called {' or '.join(names)}"
        )
    return found[0]


def _labels(table: Any, column: str, source: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the classes, and the class of each row."""
    datasets = _datasets()
    values = np.asarray(table[column])
    kind = table.features[column]
    if isinstance(kind, datasets.ClassLabel):
        names: list[str] = list(kind.names)
        if values.size and not 0 <= values.min() <= values.max() < len(names):
            raise ValueError(f"{source}: {column} has values outside of its {len(names)} classes")
        return tuple(names), values.astype(np.int64)
    if values.dtype.kind not in "iuU":
        raise ValueError(f"{source}: {column} must hold whole numbers or names of classes, not {values.dtype}")
    found, labels = np.unique(values, return_inverse=True)
    return tuple(map(str, found.tolist())), labels

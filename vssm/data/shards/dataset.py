"""A data set of images in shards: any sample is one read of a range of bytes."""

import copy
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from vssm.data.image import UnreadableImage, read_image
from vssm.data.imagefolder import renumbered
from vssm.data.readahead import ReadAhead
from vssm.data.shards.index import INDEX, parse_index
from vssm.data.shards.reading import open_ranges, read_index

__all__ = ["ShardImages"]


class ShardImages(Dataset[tuple[object, int]]):
    """Images of one split in shards, in the order of the shards.

    Args:
        location: a folder that `vssm pack` wrote, or a URL of one that fsspec can open (http://, s3://, ...)
        transform: what is done to the PIL image; one with `min_side` allows large JPEGs to be decoded smaller
        channels: 3 reads RGB, 1 reads grey
        classes: the names and order to use; those of the index when not given

    Raises OSError where there is no index; ValueError for an index that is not right, or (with `classes`) of a class
    that is not among them. A sample raises UnreadableImage, named SHARD/KEY, when its bytes cannot be had or decoded.
    """

    def __init__(
        self,
        location: str,
        transform: Callable[[Image.Image], object],
        channels: int = 3,
        classes: Sequence[str] | None = None,
    ):
        self.location, self.transform, self.channels = location, transform, channels
        self.index = parse_index(read_index(location), f"{location.rstrip('/')}/{INDEX}")
        self.classes, labels = renumbered(self.index.classes, self.index.labels, classes, location)
        self.labels: NDArray[np.int64] = labels
        self.images: NDArray[np.int64] = np.arange(len(self.index))
        self._ranges = open_ranges(location)
        self._ahead = ReadAhead(self._read)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[object, int]:
        min_side: int | None = getattr(self.transform, "min_side", None)
        return self.transform(read_image(self.content(position), self.key(position), self.channels, min_side)), int(
            self.labels[position]
        )

    def content(self, position: int) -> bytes:
        """The bytes of an image file. Raises UnreadableImage when they cannot be had."""
        return self._ahead.take(position)

    def expect(self, positions: Sequence[int]) -> None:
        """Begins to read these samples, in order, which will be asked for next; others are given up."""
        self._ahead.expect(positions)

    def key(self, position: int) -> str:
        """SHARD/KEY of a sample, for messages."""
        image = int(self.images[position])
        return f"{self.index.shards[self.index.shard_of(image)].name}/{self.index.keys[image].decode()}"

    @property
    def keys(self) -> list[str]:
        """KEY of every sample."""
        return [key.decode() for key in self.index.keys[self.images].tolist()]

    @property
    def group_sizes(self) -> NDArray[np.int64]:
        """How many samples, one after the other, lie in each shard."""
        return np.diff(np.searchsorted(self.images, self.index.starts))

    def fingerprint(self) -> str:
        """The same for the same images in the same order, wherever they lie."""
        return hashlib.sha256(f"{self.index.digest} {hash_of(self.images)}".encode()).hexdigest()

    def with_samples(
        self, positions: Sequence[int] | NDArray[np.int64], transform: Callable[[Image.Image], object]
    ) -> "ShardImages":
        """The same shards with some of the samples only, in the order of the shards, and another transform."""
        part = copy.copy(self)
        chosen = np.sort(np.asarray(positions, dtype=np.int64))
        part.images, part.labels, part.transform = self.images[chosen], self.labels[chosen], transform
        part._ahead = ReadAhead(part._read)
        return part

    def with_transform(self, transform: Callable[[Image.Image], object]) -> "ShardImages":
        return self.with_samples(np.arange(len(self)), transform)

    def _read(self, position: int) -> bytes:
        image = int(self.images[position])
        shard = self.index.shards[self.index.shard_of(image)]
        offset, length = int(self.index.offsets[image]), int(self.index.lengths[image])
        try:
            content = self._ranges.read(shard.name, offset, length)
        except OSError as error:
            raise UnreadableImage(self.key(position), error.strerror or str(error)) from None
        if len(content) != length:
            reason = f"{len(content)} bytes came instead of {length}: a shard cut off, or a server without ranges"
            raise UnreadableImage(self.key(position), reason)
        return content


def hash_of(images: NDArray[np.int64]) -> str:
    return hashlib.sha256(images.astype("<i8").tobytes()).hexdigest()

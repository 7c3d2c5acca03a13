"""The images in shards and in parquet files, without their classes, for whoever takes image files."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vssm.data.files import image_files
from vssm.data.image import StoredImage
from vssm.data.shards.reading import is_remote
from vssm.data.shards.verify import packed_folders

__all__ = ["stored_images"]


def stored_images(source: str) -> Iterator[StoredImage] | None:
    """Those of a folder or a URL that `vssm pack` wrote to, of all its splits, and of a .parquet file or a folder of
    such files and no image files; None for anything else.

    Raises OSError or ValueError when the index of the shards or the parquet file cannot be read.
    """
    if is_remote(source):
        return _of_shards([source])
    if os.path.isdir(source):  # noqa: PTH112 (called for each file of a list)
        path = Path(source)
        folders = packed_folders(path)
        if folders:
            return _of_shards([str(folder) for folder in folders])
        if not any(path.glob("*.parquet")) or next(iter(image_files(path)), None) is not None:
            return None
    elif not source.endswith(".parquet") or not Path(source).is_file():
        return None
    return _of_parquet(source)


def _of_shards(locations: list[str]) -> Iterator[StoredImage]:
    from vssm.data.shards.dataset import ShardImages

    for location in locations:
        found = ShardImages(location, _as_it_is)
        for position in range(len(found)):
            yield StoredImage(Path(location) / found.key(position), partial(found.content, position))


def _of_parquet(source: str) -> Iterator[StoredImage]:
    from vssm.data.parquet import ParquetImages

    found = ParquetImages(source, _as_it_is, labelled=False)
    for position in range(len(found)):
        yield StoredImage(Path(found.key(position)), partial(found.content, position))


def _as_it_is(image: Any) -> Any:
    return image

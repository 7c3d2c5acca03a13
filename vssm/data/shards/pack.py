"""From folders of images to tar shards with an index."""

import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vssm._locking import locked
from vssm._words import spelled
from vssm._writing import naming, sync, sync_folder
from vssm.data.image import UnreadableImage, read_image
from vssm.data.imagefolder import ImageFolder
from vssm.data.inspection import MIN_SIDE
from vssm.data.parallel import map_ahead
from vssm.data.shards.index import INDEX, MAX_IMAGE_BYTES, write_index
from vssm.data.split import training_and_validation

__all__ = ["SHARD_BYTES", "Packed", "pack"]

SHARD_BYTES = 256 * 2**20
_BLOCK = 512
_SAFE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Packed:
    """What was written: images, shards and bytes of a split."""

    images: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class _Member:
    key: str
    path: Path
    label: int


def pack(
    root: str | Path,
    out: str | Path,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Packed]:
    """Packs root/train/CLASS (and val, test where they are) into out/train, ..., or root/CLASS into out itself.

    Each image becomes KEY.jpg (or .png, ...), the bytes of its file, and KEY.cls, the number of its class in decimal.
    Images lie in an order drawn from their names, so that a shard has images of all classes; the same folder gives the
    same bytes. KEY is the place in that order and the name of the file. `progress` is called after each image.

    `out` appears when all is written. Raises OSError, or ValueError that names what is wrong: a folder that `vssm fit`
    would refuse, an image that cannot be read, an `out` that holds something.
    """
    root, out = Path(root), Path(out)
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} lies in {root}, whose images are packed; name a folder outside of it")
    splits = _splits(root)
    with _appearing(out) as new:
        return {
            name: _pack_split(found, new / name, shard_bytes, threads or os.cpu_count() or 1, progress, root)
            for name, found in splits.items()
        }


def images_of(root: str | Path) -> int:
    """How many images `pack` would pack."""
    return sum(map(len, _splits(Path(root)).values()))


def _splits(root: Path) -> dict[str, ImageFolder]:
    """By the name of the folder below `out`: "" for the only one."""
    train, val = training_and_validation(root)
    found = ImageFolder(train, lambda image: image)
    if train == root:
        return {"": found}
    splits = {"train": found}
    for name, folder in (("val", val), ("test", root / "test")):
        if folder is not None and folder.is_dir():
            splits[name] = ImageFolder(folder, found.transform, classes=found.classes)
    return splits


def _pack_split(
    folder: ImageFolder, out: Path, shard_bytes: int, threads: int, progress: Callable[[], object], root: Path
) -> Packed:
    out.mkdir(exist_ok=True)
    shards = _divide(_members(folder), shard_bytes)

    def write(number: int) -> dict[str, Any]:
        try:
            return _write_shard(out / f"{number:06d}.tar", shards[number], progress)
        except UnreadableImage as error:
            raise ValueError(f"{error}; repair or remove it (`vssm check {root}` lists all such images)") from None

    entries = list(map_ahead(write, range(len(shards)), threads, ahead=2 * threads))
    (out / INDEX).write_bytes(write_index(folder.classes, entries))
    sync(out / INDEX)
    sync_folder(out)
    return Packed(len(folder), len(shards), sum(entry["bytes"] for entry in entries))


def _members(folder: ImageFolder) -> list[_Member]:
    """In the order of a hash of the names below the folder."""
    drawn = sorted((_draw(path.relative_to(folder.folder)), path, label) for path, label in folder.samples)
    return [
        _Member(f"{number:08d}-{_SAFE.sub('_', path.stem)[:60]}", path, label)
        for number, (_, path, label) in enumerate(drawn)
    ]


def _draw(name: Path) -> bytes:
    text = spelled(name.as_posix()).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _divide(members: Sequence[_Member], shard_bytes: int) -> list[list[_Member]]:
    """Shards of `shard_bytes` or a little less each; an image that is larger has one of its own."""
    shards: list[list[_Member]] = [[]]
    size = 0
    for member in members:
        found = member.path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{member.path} is not a regular file; remove it")
        if found.st_size > MAX_IMAGE_BYTES:
            raise ValueError(f"{member.path} has {found.st_size} bytes, more than {MAX_IMAGE_BYTES}; make it smaller")
        own = 3 * _BLOCK + -(-found.st_size // _BLOCK) * _BLOCK
        if shards[-1] and size + own > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(member)
        size += own
    return shards


class _Hashing(io.RawIOBase):
    """A file that is written once from its start, and the SHA-256 of what was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def _write_shard(path: Path, members: Sequence[_Member], progress: Callable[[], object]) -> dict[str, Any]:
    """The entry of the shard in the index."""
    offsets: list[int] = []
    lengths: list[int] = []
    with path.open("wb") as file:
        hashing = _Hashing(file)
        with tarfile.open(fileobj=hashing, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for member in members:
                content = member.path.read_bytes()
                read_image(content, str(member.path), min_side=MIN_SIDE)
                offsets.append(hashing.size + _BLOCK)
                lengths.append(len(content))
                _add(tar, f"{member.key}.{_suffix(member.path)}", content)
                _add(tar, f"{member.key}.cls", str(member.label).encode())
                progress()
        file.flush()
        os.fsync(file.fileno())
    return {
        "name": path.name,
        "bytes": hashing.size,
        "sha256": hashing.digest.hexdigest(),
        "keys": [member.key for member in members],
        "offsets": offsets,
        "lengths": lengths,
        "labels": [member.label for member in members],
    }


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # of no owner and of the year 1970: the same images give the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    return "jpg" if suffix == "jpeg" else suffix


@contextmanager
def _appearing(out: Path) -> Generator[Path, None, None]:
    """A folder beside `out` that takes its name when all went well; what an earlier process left there is removed."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name a new folder, or remove it to pack again")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.packing")
    with locked(out.with_name(f"{work.name}.lock"), f"another vssm pack writes {out}; wait for it, or end it"):
        shutil.rmtree(work, ignore_errors=True)
        try:
            with naming(out):
                work.mkdir()
                yield work
                sync_folder(work)
                work.replace(out)
                sync_folder(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)

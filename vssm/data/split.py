"""Which images of a folder train and which validate: two folders, or a share of each class held out.

Standard library only.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vssm._words import spelled
from vssm.data.imagefolder import require_folder

__all__ = ["LAYOUT", "Sample", "hold_out", "training_and_validation"]

LAYOUT = "train/CLASS/IMAGE and val/CLASS/IMAGE, or CLASS/IMAGE alone"
_OTHER_NAMES = ("valid", "validation", "dev", "eval")

Sample = tuple[Path, int]


def training_and_validation(root: str | Path) -> tuple[Path, Path | None]:
    """The folder of the training classes and that of the validation classes.

    The second is None where there is none, and a share of the first has to be held out: `root/train` without
    `root/val`, or class folders in `root` itself. Raises OSError or ValueError with the remedy for anything else.
    """
    root = Path(root)
    require_folder(root, LAYOUT)
    train, val = root / "train", root / "val"
    if val.exists() and not train.exists():
        raise FileNotFoundError(f"{root} has val but no folder train; expected {LAYOUT}")
    if not train.exists():
        test = root / "test"
        if test.is_dir() and any(entry.is_dir() for entry in test.iterdir()):
            raise ValueError(f"{root} has test/CLASS but no train; move the folders of the training classes into train")
        return root, None
    require_folder(train, "one folder of images per class")
    if val.exists():
        require_folder(val, "one folder of images per class")
        return train, val
    for name in _OTHER_NAMES:
        if (root / name).is_dir():
            raise ValueError(
                f"{root} has train and {name}, but no val; rename {name} to val, "
                "or move it away to hold out a share of train"
            )
    return train, None


def hold_out(
    samples: Sequence[Sample], folder: Path, share: float, seed: int
) -> tuple[list[Sample], list[Sample], list[int]]:
    """Splits (path, label) pairs into training and validation, `share` of each class, rounded, for the latter.

    The images of a class are ranked by a hash of `seed` and their path below `folder`, and the first validate: the same
    ones on every machine, and few change sides when images are added or removed. A class with two images or more has
    at least one on each side. Returns also the labels of classes with one image, which trains.
    """
    by_class: dict[int, list[tuple[float, Sample]]] = {}
    for path, label in samples:
        by_class.setdefault(label, []).append((_draw(path.relative_to(folder), seed), (path, label)))
    train: list[Sample] = []
    val: list[Sample] = []
    alone: list[int] = []
    for label, drawn in by_class.items():
        if len(drawn) == 1:
            alone.append(label)
            train.append(drawn[0][1])
            continue
        held = min(max(round(share * len(drawn)), 1), len(drawn) - 1)
        last = sorted(drawn)[held - 1]
        for value, sample in drawn:
            (val if (value, sample) <= last else train).append(sample)
    return train, val, alone


def _draw(name: Path, seed: int) -> float:
    """A number in [0, 1) that looks random; the same for both ways in which systems write an accented letter."""
    text = spelled(f"{seed}/{name.as_posix()}")
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

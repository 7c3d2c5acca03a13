"""From samples to a batch, with a place for the images that could not be read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from vssm.data.files import plain_name
from vssm.data.image import UnreadableImage


class Unreadable(NamedTuple):
    """Takes the place of a sample whose file cannot be used; `instead` is the sample to take for it, if any."""

    path: str
    reason: str
    instead: Any = None

    @classmethod
    def of(cls, error: UnreadableImage, instead: Any = None) -> "Unreadable":
        return cls(plain_name(error.path), error.reason, instead)


class Batch(NamedTuple):
    """Images (B, C, H, W) and labels (B,) of what could be read, and what could not. B is 0 when nothing could."""

    images: Tensor
    labels: Tensor
    unreadable: tuple[Unreadable, ...] = ()


class Forgiving(Dataset):
    """A data set that gives an Unreadable where it would raise UnreadableImage, so that judging goes on without it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UnreadableImage as error:
            return Unreadable.of(error)


def collate(samples: Sequence[Any]) -> Batch:
    """Stacks (image, label) pairs; an Unreadable is named, and its `instead` stacked where there is one."""
    unreadable = tuple(sample for sample in samples if isinstance(sample, Unreadable))
    read = [sample.instead if isinstance(sample, Unreadable) else sample for sample in samples]
    read = [sample for sample in read if sample is not None]
    images, labels = default_collate(read) if read else (torch.empty(0), torch.empty(0, dtype=torch.long))
    return Batch(images, labels, tuple(damaged._replace(instead=None) for damaged in unreadable))

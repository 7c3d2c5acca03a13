"""From samples to a batch, with the images that could not be read listed beside it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate  # pyright: ignore[reportUnknownVariableType]

from vssm.data.unreadable import Indexed, Unreadable

__all__ = ["Batch", "Collate", "Pair", "Stack", "collate", "stack_labels"]

Pair = tuple[Any, Any]
Stack = Callable[[Sequence[Pair]], tuple[Any, Any]]


class Batch(NamedTuple):
    """Images (B, C, H, W) and their targets, labels (B,) for classification, of what could be read, and what could not.

    B is 0 when nothing could. `indices` (B,) are the images' positions in the data set; empty in training.
    """

    images: Any
    targets: Any
    unreadable: tuple[Unreadable, ...] = ()
    indices: Tensor = torch.empty(0, dtype=torch.long)


def stack_labels(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Stacks (image, label) pairs: (B, ...) and (B,)."""
    if not pairs:
        return torch.empty(0), torch.empty(0, dtype=torch.long)
    images, labels = default_collate(list(pairs))
    return images, labels


class Collate:
    """Makes a Batch of samples: names an Unreadable, takes its `instead` where there is one, and stacks the rest.

    `stack` turns (image, target) pairs, none perhaps, into the images and targets of a batch.
    """

    def __init__(self, stack: Stack = stack_labels):
        self.stack = stack

    def __call__(self, samples: Sequence[Any]) -> Batch:
        unreadable = tuple(sample for sample in samples if isinstance(sample, Unreadable))
        read = [sample.instead if isinstance(sample, Unreadable) else sample for sample in samples]
        read = [sample for sample in read if sample is not None]
        indices = [sample.position for sample in read if isinstance(sample, Indexed)]
        images, targets = self.stack([sample.sample if isinstance(sample, Indexed) else sample for sample in read])
        named = tuple(damaged._replace(instead=None) for damaged in unreadable)
        return Batch(images, targets, named, torch.tensor(indices, dtype=torch.long))


collate = Collate()

"""From data sets to batches, for training and for evaluation."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vssm.data.batches import Batch, Collate, collate
from vssm.data.readahead import AheadBatches
from vssm.data.sampling import ResumableSampler, SeededSamples, ShardSampler
from vssm.data.transforms import PixelTransform
from vssm.data.unreadable import SkipUnreadable

__all__ = ["batches_within", "evaluation_loader", "normalised", "size_of", "training_loader"]


def size_of(dataset: Dataset[Any]) -> int:
    """How many samples; torch's Dataset promises no length, ours all have one."""
    return len(dataset)  # type: ignore[arg-type]


def training_loader(
    dataset: Dataset[Any],
    sampler: ResumableSampler,
    seed: int,
    batch_size: int,
    *,
    drop_last: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    collate: Collate = collate,
) -> DataLoader[Any]:
    """Batches whose augmentation is a function of (seed, epoch, index), in the order of `sampler`."""
    samples = SeededSamples(_as_pixels(dataset), seed)
    return _loader(samples, sampler, batch_size, drop_last, workers, pin_memory, collate)


def evaluation_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    collate: Collate = collate,
) -> DataLoader[Any]:
    """Every image once, in order, with its index; what cannot be read is named in its batch and left out."""
    sampler = ShardSampler(size_of(dataset), rank, world)
    return _loader(SkipUnreadable(_as_pixels(dataset)), sampler, batch_size, False, workers, pin_memory, collate)


def normalised(batch: Batch, normalise: Callable[[Tensor], Tensor]) -> Batch:
    """Normalises what a loader left as pixels, on the device where it is."""
    if not isinstance(batch.images, Tensor) or batch.images.dtype != torch.uint8:
        return batch
    return batch._replace(images=normalise(batch.images))


def batches_within(batches: int, limit: int | float | None) -> int:
    """How many of `batches` a limit leaves, in Lightning's way: a count, or a share rounded down."""
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def _as_pixels(dataset: Dataset[Any]) -> Dataset[Any]:
    """The same images before normalisation, where that is the last step."""
    known: Any = dataset
    if hasattr(dataset, "with_transform") and PixelTransform.possible(known.transform):
        return known.with_transform(PixelTransform(known.transform))
    return dataset


def _loader(
    dataset: Dataset[Any],
    sampler: Sampler[Any],
    batch_size: int,
    drop_last: bool,
    workers: int,
    pin_memory: bool,
    collate: Collate,
) -> DataLoader[Any]:
    """`dataset` is one of the two that wrap: where the data set inside can read ahead, it is told what comes next."""
    if hasattr(cast(Any, dataset).dataset, "expect"):
        order: dict[str, Any] = {"batch_sampler": AheadBatches(sampler, batch_size, drop_last, workers)}
    else:
        order = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    return DataLoader(
        dataset,
        **order,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        pin_memory=pin_memory,
    )

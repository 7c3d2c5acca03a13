"""The order of samples and the randomness of each, as functions of (seed, epoch, index).

Nothing here depends on what ran before, on the number of workers or on the process: a run that was killed and
resumed in the middle of an epoch sees the very images that the uninterrupted run would have seen.
"""

import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from vssm.data.batches import Unreadable
from vssm.data.image import UnreadableImage
from vssm.data.readahead import Keys

__all__ = [
    "REPLACEMENT_TRIES",
    "ResumableSampler",
    "SeededSamples",
    "ShardSampler",
    "epoch_order",
    "generators_kept",
    "seed_all",
]

# Were half of the images unreadable, all tries would fail with a probability of 2e-10.
REPLACEMENT_TRIES = 32


@contextmanager
def generators_kept() -> Generator[None, None, None]:
    """Puts the random, numpy and torch (CPU) generators back to where they were before the block."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def seed_all(*key: int) -> None:
    """Seeds the three CPU generators from integers. The hash of a tuple of integers is the same in every process."""
    seed = hash(key) & 0xFFFF_FFFF
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


def epoch_order(
    length: int, seed: int, epoch: int, groups: Sequence[int] | NDArray[np.int64] | None = None, window: int = 1
) -> NDArray[np.int64]:
    """The order (length,) of the samples of an epoch, a function of its arguments alone.

    Without `groups` it is a permutation of all. `groups` are the sizes of the shards that hold the samples one after
    the other: shards are permuted, `window` of them at a time are opened, and the samples of these are permuted, so
    that only so many shards are read from at once.
    """
    generator = torch.Generator().manual_seed(hash((seed, epoch)) & 0xFFFF_FFFF)
    if groups is None:
        return torch.randperm(length, generator=generator).numpy()
    ends: list[int] = np.cumsum(groups).tolist()
    assert ends and ends[-1] == length, "the groups hold all samples"
    starts = [0, *ends[:-1]]
    shards: list[int] = torch.randperm(len(ends), generator=generator).numpy().tolist()
    parts: list[NDArray[np.int64]] = []
    for first in range(0, len(shards), window):
        opened = [np.arange(starts[shard], ends[shard], dtype=np.int64) for shard in shards[first : first + window]]
        inside = np.concatenate(opened)
        parts.append(inside[torch.randperm(len(inside), generator=generator).numpy()])
    return np.concatenate(parts)


class SeededSamples(Dataset[Any]):
    """A data set whose random augmentation of sample `index` in `epoch` is always the same; keys are (epoch, index), or
    (epoch, index, copy) for a further copy of an image in an epoch, which is augmented in another way.

    An image that cannot be read comes as an Unreadable with another sample, drawn from (seed, epoch, index) too. Where
    the keys are those of `AheadBatches`, the data set is told what comes after them.
    """

    def __init__(self, dataset: Dataset[Any], seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, ...]]) -> list[Any]:
        if isinstance(keys, Keys):
            cast(Any, self.dataset).expect([key[1] for key in (*keys, *keys.ahead)])
        with generators_kept():
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, index: int, *copy: int) -> Any:
        seed_all(self.seed, epoch, index, *copy)
        try:
            return self.dataset[index]
        except UnreadableImage as error:
            return Unreadable.of(error, instead=self._another())

    def _another(self) -> Any:
        """A sample drawn at random for one that cannot be read; None when none of the tries could be read.

        The generators were seeded for the sample it stands for, so the draw is a function of (seed, epoch, index).
        """
        for _ in range(REPLACEMENT_TRIES):
            try:
                return self.dataset[random.randrange(len(self))]
            except UnreadableImage:
                continue
        return None


class ResumableSampler(Sampler[tuple[int, ...]]):
    """A shuffle per epoch, split over `world` processes, that can start in the middle of an epoch.

    Yields (epoch, index). `start` samples of this process are left out in `epoch` only: the next `set_epoch` clears
    it. The length is always that of the whole epoch, so that progress and schedules do not change on a resume.

    With `repeats` R each image follows R times in a row, as (epoch, index), (epoch, index, 1), ..., and the processes
    take turns, so that copies come to different ones (Hoffer et al. 2020; the order is DeiT's). The length stays: an
    epoch has one R-th of the images.

    `groups` and `window` are those of `epoch_order`: samples in shards.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        groups: Sequence[int] | NDArray[np.int64] | None = None,
        window: int = 1,
    ):
        self.total = length // world if world > 1 else length
        self.samples, self.seed, self.epoch, self.start = length, seed, epoch, start
        self.rank, self.world, self.repeats = rank, world, repeats
        self.groups, self.window = groups, window

    def __len__(self) -> int:
        return self.total

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        epoch = self.epoch
        order = epoch_order(self.samples, self.seed, epoch, self.groups, self.window)
        places = range(self.rank, self.samples, self.world)[: self.total][self.start :]
        split = (divmod(place, self.repeats) for place in places)
        return iter([(epoch, int(order[image]), copy) if copy else (epoch, int(order[image])) for image, copy in split])


class ShardSampler(Sampler[int]):
    """Every sample once, in order, split over `world` processes without repeating any (unlike DistributedSampler)."""

    def __init__(self, length: int, rank: int = 0, world: int = 1):
        self.indices = range(rank, length, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

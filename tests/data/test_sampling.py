import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vssm.data.sampling import ResumableSampler, SeededSamples, ShardSampler, epoch_order


class Noise(Dataset):
    """Draws from all three generators that augmentations use."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002


def batches(workers=0, epoch=0, start=0, seed=3):
    sampler = ResumableSampler(12, seed, epoch, start)
    loader = DataLoader(SeededSamples(Noise(), seed), batch_size=4, sampler=sampler, num_workers=workers)
    return list(loader)


def test_each_epoch_has_an_order_of_its_own():
    orders = [[int(i) for batch in batches(epoch=epoch) for i in batch[:, 0]] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]


def test_a_resumed_epoch_is_the_tail_of_the_whole_one():
    whole, tail = batches(epoch=2), batches(epoch=2, start=4)
    assert len(tail) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], tail, strict=True))


def test_the_start_holds_for_its_own_epoch_only():
    sampler = ResumableSampler(12, 0, epoch=2, start=4)
    assert len(sampler) == 12
    sampler.set_epoch(2)
    assert len(list(sampler)) == 8
    sampler.set_epoch(3)
    assert len(list(sampler)) == 12


def test_randomness_does_not_depend_on_workers():
    assert all(torch.equal(a, b) for a, b in zip(batches(), batches(workers=2), strict=True))


def test_randomness_depends_on_epoch_and_seed():
    samples = SeededSamples(Noise(), 0)
    assert torch.equal(samples[0, 5], samples[0, 5])
    assert not torch.equal(samples[0, 5], samples[1, 5])
    assert not torch.equal(samples[0, 5], SeededSamples(Noise(), 1)[0, 5])


def test_the_generators_are_left_as_they_were():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    SeededSamples(Noise(), 0).__getitems__([(0, 1), (0, 2)])
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("length", [12, 13])
def test_processes_share_the_samples(length):
    shards = [[i for _, i in ResumableSampler(length, 0, rank=rank, world=3)] for rank in range(3)]
    assert [len(shard) for shard in shards] == [4, 4, 4]
    assert len({i for shard in shards for i in shard}) == 12
    whole = [i for rank in range(3) for i in ShardSampler(length, rank, 3)]
    assert sorted(whole) == list(range(length))


def test_repeated_augmentation():
    """Copies follow each other, an epoch is as long as before, and a start in its middle gives the rest."""
    whole = list(ResumableSampler(12, 0, epoch=1, repeats=3))
    assert [key[2:] for key in whole] == [(), (1,), (2,)] * 4
    images = [key[1] for key in whole]
    assert images == [i for i in images[::3] for _ in range(3)] and len(set(images)) == 4
    assert images[::3] == [i for _, i in ResumableSampler(12, 0, epoch=1)][:4]
    assert list(ResumableSampler(12, 0, epoch=1, start=5, repeats=3)) == whole[5:]
    shards = [list(ResumableSampler(14, 0, rank=rank, world=3, repeats=3)) for rank in range(3)]
    assert [len(shard) for shard in shards] == [4, 4, 4]
    assert [key for turn in zip(*shards, strict=True) for key in turn] == list(ResumableSampler(14, 0, repeats=3))[:12]


def test_copies_of_an_image_vary():
    samples = SeededSamples(Noise(), 0)
    first, second, again = samples.__getitems__([(0, 5), (0, 5, 1), (0, 5, 1)])
    assert torch.equal(second, again) and not torch.equal(first, second)
    assert torch.equal(first, samples[0, 5])


GROUPS = (5, 0, 7, 3, 8, 1)  # 24 samples in shards


def in_shards(epoch=0, window=2, seed=0, **place):
    return ResumableSampler(24, seed, epoch, groups=GROUPS, window=window, **place)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 6, 16])
def test_an_epoch_of_shards_has_every_sample_once(world, window):
    ranks = [list(in_shards(window=window, rank=rank, world=world)) for rank in range(world)]
    assert sorted(index for own in ranks for _, index in own) == list(range(24)), "disjoint, and all"
    for rank, own in enumerate(ranks):
        for start in range(len(own) + 1):
            assert list(in_shards(window=window, rank=rank, world=world, start=start)) == own[start:]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_few_shards_are_open_at_once(window):
    shard = np.repeat(np.arange(len(GROUPS)), GROUPS)
    for epoch in range(4):
        order = shard[epoch_order(24, 5, epoch, GROUPS, window)]
        last = {one: int(np.flatnonzero(order == one).max()) for one in set(order.tolist())}
        first = {one: int(np.flatnonzero(order == one).min()) for one in last}
        opened = [sum(first[one] <= place <= last[one] for one in last) for place in range(24)]
        assert max(opened) <= window


def test_the_order_of_shards_changes_with_epoch_and_seed():
    orders = [tuple(in_shards(epoch, seed=seed)) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(index for _, index in order) for order in orders}) == 3
    assert list(in_shards()) == list(in_shards())
    mixed = epoch_order(24, 0, 0, GROUPS, 6)
    assert np.unique(np.diff(mixed)).size > 5, "samples are permuted too"

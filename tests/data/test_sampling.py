import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vssm.data.sampling import ResumableSampler, SeededSamples, ShardSampler


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

"""Reads that begin before they are asked for: the right bytes, bounded, in every process."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from vssm.data.readahead import AHEAD, AheadBatches, ReadAhead
from vssm.data.sampling import ResumableSampler, SeededSamples
from vssm.data.unreadable import SkipUnreadable


def test_each_is_read_once_and_what_is_not_expected_any_more_is_forgotten():
    read, gate = [], threading.Event()

    def reader(position):
        gate.wait(10)
        read.append(position)
        return bytes([position])

    ahead = ReadAhead(reader)
    ahead.expect([3, 1, 3, 2])
    ahead.expect([1, 2, 4])
    gate.set()
    assert [ahead.take(position) for position in (1, 2, 4, 2, 5)] == [b"\1", b"\2", b"\4", b"\2", b"\5"]
    assert sorted(position for position in read if position != 3) == [1, 2, 4, 5]
    assert set(ahead._begun) == {1, 2, 4}


def test_the_error_of_a_read_comes_with_its_sample():
    def reader(position):
        raise OSError(f"no {position}")

    ahead = ReadAhead(reader)
    ahead.expect([7])
    with pytest.raises(OSError, match="no 7"):
        ahead.take(7)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_what_is_ahead_is_what_the_same_worker_gets_next(workers):
    batches = list(AheadBatches(SequentialSampler(range(1000)), 50, drop_last=False, workers=workers))
    assert [key for batch in batches for key in batch] == list(range(1000))
    step = max(workers, 1)
    for number, batch in enumerate(batches):
        own = [key for later in batches[number + step :: step] for key in later]
        assert batch.ahead == own[:150] and AHEAD <= 150
    assert len(list(AheadBatches(SequentialSampler(range(1000)), 300, drop_last=True))) == 3


class Remembers(Dataset):
    """Gives, for each sample, whether it was expected."""

    def __init__(self):
        self.expected = set()

    def __len__(self):
        return 40

    def expect(self, positions):
        self.expected = set(positions)

    def __getitem__(self, index):
        return torch.tensor([index, index in self.expected, len(self.expected)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrapped", ["train", "evaluate"])
def test_the_loaders_announce(workers, wrapped):
    if wrapped == "train":
        dataset, sampler = SeededSamples(Remembers(), 0), ResumableSampler(40, 0)
    else:
        dataset, sampler = SkipUnreadable(Remembers()), SequentialSampler(range(40))
    loader = DataLoader(
        dataset,
        batch_sampler=AheadBatches(sampler, 4, False, workers),
        num_workers=workers,
        collate_fn=lambda samples: [getattr(sample, "sample", sample) for sample in samples],
    )
    samples = torch.stack([sample for batch in loader for sample in batch])
    assert sorted(samples[:, 0].tolist()) == list(range(40)) and samples[:, 1].all()
    own = 20 if workers else 40
    assert samples[0, 2] == own and samples[-1, 2] == 4

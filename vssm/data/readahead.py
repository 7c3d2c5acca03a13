"""Reading what comes next while the present batch is decoded, so that the latency of a disk or server is hidden.

The batches of a loader know the order, so each tells its data set what the same process will be asked for after it.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import BatchSampler, Sampler

__all__ = ["READERS", "AheadBatches", "Keys", "ReadAhead"]

# Threads of a process, and samples that they are ahead: 32 reads of 50 ms each are 640 images/s.
READERS = 32
AHEAD = 128


class ReadAhead:
    """`read(position)` by threads, begun before it is asked for.

    What was read and not yet asked for is at most what the last `expect` named. Each process has threads of its own.
    """

    def __init__(self, read: Callable[[int], bytes]):
        self._read = read
        self._process: int | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_read": self._read, "_process": None, "_pool": None, "_begun": {}}

    def expect(self, positions: Sequence[int]) -> None:
        """Begins to read what is not being read yet, in this order, and forgets the rest."""
        if self._process != os.getpid():  # forked: the threads stayed behind
            self._process, self._begun = os.getpid(), {}
            self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read_ahead")
        wanted = dict.fromkeys(positions)
        for position in self._begun.keys() - wanted.keys():
            self._begun.pop(position).cancel()
        assert self._pool is not None
        for position in wanted:
            if position not in self._begun:
                self._begun[position] = self._pool.submit(self._read, position)

    def take(self, position: int) -> bytes:
        """The bytes, or the error of reading them; read now where nobody expected it."""
        future = self._begun.get(position) if self._process == os.getpid() else None
        return self._read(position) if future is None else future.result()


class Keys(list[Any]):
    """The keys of a batch; `ahead` are those of the batches that the same process makes after it."""

    ahead: Sequence[Any] = ()


class AheadBatches(BatchSampler):
    """torch's BatchSampler whose batches are Keys.

    Batch i of a DataLoader is made by worker i modulo `workers`, so the batches after it are i + workers, ...; as many
    as hold AHEAD samples, and one at least.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int, drop_last: bool, workers: int = 0):
        super().__init__(sampler, batch_size, drop_last)
        self.step = max(workers, 1)
        self.depth = max(1, -(-AHEAD // batch_size))

    def __iter__(self) -> Iterator[Keys]:
        waiting: deque[Keys] = deque()
        for batch in super().__iter__():
            waiting.append(Keys(batch))
            if len(waiting) > self.step * self.depth:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[Keys]) -> Keys:
        following = [waiting[place] for place in range(self.step, len(waiting), self.step)]
        batch = waiting.popleft()
        batch.ahead = [key for later in following for key in later]
        return batch

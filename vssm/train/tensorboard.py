"""The rows of metrics.csv for TensorBoard too. Needs the package tensorboard, which vssm does not install."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path


class TensorBoard:
    """Writes scalars under the names of metrics.csv's columns into `folder`.

    Raises ValueError with the remedy when tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        require()
        self.folder = folder
        self._writer = None

    def open(self) -> None:
        pass

    def start(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Points that an earlier process wrote after `step` are no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        assert self._writer is not None
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def require() -> None:
    """Raises ValueError with the remedy when tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            "log: csv+tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        )

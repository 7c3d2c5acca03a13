"""The rows of metrics.csv for TensorBoard too. Needs the package tensorboard, which vssm does not install."""

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

    def start(self, step: int) -> None:
        """Points that an earlier process wrote after `step` are no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def write(self, row: dict[str, float]) -> None:
        assert self._writer is not None
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def require() -> None:
    """Raises ValueError with the remedy when tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            "log: csv+tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        )

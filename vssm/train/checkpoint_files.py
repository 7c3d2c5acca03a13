"""How checkpoints get on the disk, and which one a training goes on from."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vssm._writing import replacing
from vssm.inference.run_dir import LAST, RunDir, earlier_checkpoints
from vssm.weights.archive import check_intact
from vssm.weights.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file and replaces it at the end: a killed process leaves the last good one.

    The last.ckpt that is replaced stays as step-N.ckpt, N being its optimizer steps; with it `keep` checkpoints are
    kept. Older ones are removed only after the new one is on the disk.
    """

    def __init__(self, keep: int = 1):
        self.keep = keep
        self._step: int | None = None  # of the last.ckpt in place, once this process has written or read it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError with the name of the file when it cannot be written, the disk being full for example."""
        path = Path(path)
        with replacing(path) as new:
            _write(checkpoint, new)
            if path.name == LAST and self._step is not None and self.keep > 1:
                _name_too(path, path.with_name(f"step-{self._step}.ckpt"))
        if path.name == LAST:
            self._step = checkpoint.get("global_step")
            self._remove_old(path.parent)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        content = super().load_checkpoint(path, *args, **kwargs)
        # After a step-N.ckpt was read, the last.ckpt beside it is damaged: not to be kept.
        self._step = content.get("global_step") if Path(path).name == LAST else None
        return content

    def _remove_old(self, folder: Path) -> None:
        """All but `keep`; also what is as new as last.ckpt, left by a training that went on from further back."""
        step = self._step or 0
        older = [file for file in earlier_checkpoints(folder) if int(file.stem.removeprefix("step-")) < step]
        kept = older[: self.keep - 1]
        for file in earlier_checkpoints(folder):
            if file not in kept:
                file.unlink()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's own complaint about a file that did not grow as it should hides the reason.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _name_too(file: Path, further: Path) -> None:
    """A second name for a file that is about to be replaced under its first one."""
    further.unlink(missing_ok=True)  # of this step already, from before a kill
    try:
        further.hardlink_to(file)
    except OSError:  # a file system without hard links
        with replacing(further) as new:
            shutil.copyfile(file, new)


def checkpoint_to_resume(run: RunDir) -> Path | None:
    """The newest checkpoint of a run that is intact, or None when it has none yet.

    Every byte is compared with its checksum. Warns when last.ckpt is damaged and an earlier one takes its place.
    Raises CheckpointError when all are damaged.
    """
    damaged: list[str] = []
    for file in run.resumable:
        try:
            check_intact(file)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{'; '.join(damaged)}; resuming from {file}, the one before", stacklevel=2)
        return file
    if damaged:
        best = f", or start a new run from the best: --init-from {run.best}" if run.best.exists() else ""
        raise CheckpointError(f"{'; '.join(damaged)}; no earlier one is left to resume from. Restore it{best}")
    return None

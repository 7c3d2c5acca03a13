"""How checkpoints get on the disk, and which one a training goes on from."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vssm._sharded import is_sharded
from vssm._writing import replacing, sync_folder
from vssm.inference.run_dir import LAST, RunDir, earlier_checkpoints, remove_checkpoint
from vssm.weights.archive import check_intact
from vssm.weights.errors import CheckpointError
from vssm.weights.sharded import read_sharded


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
            write(checkpoint, new)
            replaced = self._make_way(path) if path.is_dir() else None
            if self._keeps(path):
                _name_too(path, self._earlier(path))
        self._taken(path, checkpoint.get("global_step"), replaced)

    def take(self, new: Path, path: Path, step: int | None) -> None:
        """Puts a checkpoint in shards, a folder that is on the disk, into the place of the one before, at `step`."""
        replaced = self._make_way(path)
        new.replace(path)
        sync_folder(path.parent)
        self._taken(path, step, replaced)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """One in shards is put together in this process."""
        if is_sharded(Path(path)):
            content = read_sharded(Path(path), self.read_file)
        else:
            content = super().load_checkpoint(path, *args, **kwargs)
        self.goes_on_from(path, content.get("global_step"))
        return content

    def read_file(self, path: Path) -> Any:
        return super().load_checkpoint(path, weights_only=True)

    def goes_on_from(self, path: Any, step: int | None) -> None:
        # After a step-N.ckpt was read, the last.ckpt beside it is damaged: not to be kept.
        self._step = step if Path(path).name == LAST else None

    def _keeps(self, path: Path) -> bool:
        return path.name == LAST and self._step is not None and self.keep > 1 and path.exists()

    def _earlier(self, path: Path) -> Path:
        return path.with_name(f"step-{self._step}.ckpt")

    def _make_way(self, path: Path) -> Path | None:
        """Gives the checkpoint at `path` another name, because a folder cannot be replaced in one step as a file can.

        A last.ckpt becomes step-N.ckpt, from which a process that is killed before the new one has its name goes on. A
        best.ckpt gets a name to be removed under, which is returned: killed then, the process repeats the epoch and
        writes it again, as last.ckpt does not know of it yet.
        """
        if not path.exists():
            return None
        is_last = path.name == LAST and self._step is not None
        away = self._earlier(path) if is_last else path.with_name(f".{path.name}.old.tmp")
        _remove(away)  # of this step already, from before a kill
        path.rename(away)
        return None if is_last else away

    def _taken(self, path: Path, step: int | None, replaced: Path | None) -> None:
        if replaced is not None:
            _remove(replaced)
        if path.name == LAST:
            self._step = step
            self._remove_old(path.parent)

    def _remove_old(self, folder: Path) -> None:
        """All but `keep`; also what is as new as last.ckpt, left by a training that went on from further back."""
        step = self._step or 0
        older = [file for file in earlier_checkpoints(folder) if int(file.stem.removeprefix("step-")) < step]
        kept = older[: self.keep - 1]
        for file in earlier_checkpoints(folder):
            if file not in kept:
                _remove(file)


def _remove(path: Path) -> None:
    """A folder first loses its name: a process that is killed in between leaves no half of it to be found."""
    if path.is_dir() and not path.name.endswith(".tmp"):
        path = path.rename(path.with_name(f".{path.name}.old.tmp"))
    remove_checkpoint(path)


def write(checkpoint: dict[str, Any], path: Path) -> None:
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

"""A run directory: config.yaml, environment.yaml, metrics.csv, report.html, and in checkpoints/ last.ckpt, best.ckpt
and the step-N.ckpt that were last.ckpt before, each a file, or a folder of shards.

One process at a time trains in it. Standard library and yaml only.
"""

import os
import shutil
import weakref
from pathlib import Path
from typing import IO, Any

from vssm._locking import lock_file
from vssm._ranks import job_id, launched_together
from vssm._sharded import is_sharded
from vssm._yaml import read_yaml, write_yaml

CONFIG, ENVIRONMENT, METRICS, REPORT = "config.yaml", "environment.yaml", "metrics.csv", "report.html"
UNREADABLE, LAST = "unreadable.csv", "last.ckpt"

# A lock belongs to the open file, which worker processes inherit: orphans of a killed process would hold it on.
_LOCKS: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()


def _drop_locks() -> None:
    for lock in _LOCKS:
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)


class RunDir:
    """Paths inside one run directory, and the lock that keeps a second process out.

    `create` refuses a directory that holds anything; `reopen` refuses one that no run was started in. Both hold the
    lock until `close` or the end of the process, however it ends.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def unreadable(self) -> Path:
        """The images that could not be read, with the reason; there only when there were any."""
        return self.path / UNREADABLE

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def loggers(self) -> Path:
        """The runs of wandb and mlflow that a resumed training continues; there only with these."""
        return self.path / "loggers.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / LAST

    @property
    def resumable(self) -> list[Path]:
        """The checkpoints that a training can go on from, the newest first: last.ckpt and the step-N.ckpt before it."""
        return [file for file in (self.last, *earlier_checkpoints(self.checkpoints)) if file.exists()]

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def adaptors(self) -> Path:
        """What was trained around a frozen base; there only when it was."""
        return self.checkpoints / "adaptors.safetensors"

    @classmethod
    def create(cls, path: str | Path) -> "RunDir":
        run = cls(path)
        run.check_free()
        run.checkpoints.mkdir(parents=True)
        run._take_lock()
        return run

    def check_free(self) -> None:
        """Raises OSError when there is a file or a directory that holds anything, without creating one."""
        _refuse_file(self.path)
        if self.path.exists() and any(self.path.iterdir()):
            if self.last.exists():
                remedy = f"continue it with --resume {self.path}, or choose another --out"
            elif self.config.exists():
                remedy = f"start it again with --resume {self.path}, choose another --out, or remove it"
            else:
                remedy = "choose another --out, or remove it"
            raise FileExistsError(f"{self.path} is already in use (it is not empty); {remedy}")

    @classmethod
    def reopen(cls, path: str | Path) -> "RunDir":
        run = cls(path)
        _refuse_file(run.path)
        if not run.path.exists():
            raise FileNotFoundError(f"{run.path} does not exist; --resume takes the directory of an earlier run")
        if not run.config.exists():
            raise FileNotFoundError(
                f"{run.path} has no {CONFIG}: there is nothing to resume from; start again with another --out"
            )
        run._take_lock()
        run.checkpoints.mkdir(exist_ok=True)
        for folder in (run.path, run.checkpoints):
            for unfinished in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                remove_checkpoint(unfinished)
        return run

    def read_config(self) -> dict[str, Any]:
        return read_yaml(self.config)

    def write_config(self, plain: dict[str, Any]) -> None:
        write_yaml(self.config, plain)

    def read_environment(self) -> dict[str, Any]:
        """Versions, hardware and start of the training; empty for a run without them."""
        file = self.path / ENVIRONMENT
        return read_yaml(file) if file.exists() else {}

    def write_environment(self, plain: dict[str, str]) -> None:
        write_yaml(self.path / ENVIRONMENT, plain)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        lock.seek(0)
        try:
            lock_file(lock)
        except OSError:
            holder = "" if os.name == "nt" else lock.read(20).strip()  # Windows lets nobody read what is locked
            lock.close()
            raise FileExistsError(
                f"{self.path} is in use by another process{f' ({holder})' if holder.isdigit() else ''}; wait for it to "
                "end, or choose another --out"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        _LOCKS.add(lock)


def earlier_checkpoints(folder: Path) -> list[Path]:
    """The step-N.ckpt in a folder, the newest first."""
    numbered = [(file.stem.removeprefix("step-"), file) for file in folder.glob("step-*.ckpt")]
    return [file for _, file in sorted(((int(n), file) for n, file in numbered if n.isdigit()), reverse=True)]


def remove_checkpoint(path: Path) -> None:
    """A file, or a folder of shards with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint itself, or for a run directory its best.ckpt, else its last.ckpt."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a checkpoint or a run directory")
    if not path.is_dir() or is_sharded(path):
        return path
    run = RunDir(path)
    for file in (run.best, run.last):
        if file.exists():
            return file
    raise FileNotFoundError(f"{path} is a folder without checkpoints/best.ckpt or checkpoints/last.ckpt")


def default_path(path: str | Path) -> Path:
    """Where a run goes that was given no directory: a free path, or, where a launcher started several processes at
    once, one with the name of its job, on which all agree without asking each other."""
    if not launched_together():
        return free_path(path)
    job = job_id()
    return Path(path) if job is None else Path(f"{path}-{job}")


def free_path(path: str | Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist."""
    path = Path(path)
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected a run directory")

"""The checkpoints that the page may choose: those directly in one folder, by name."""

from pathlib import Path

from vssm._sharded import is_sharded
from vssm.inference.run_dir import RunDir, checkpoint_file
from vssm.lens.refused import Refused

__all__ = ["SUFFIXES", "Checkpoints"]

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


class Checkpoints:
    """Checkpoint files and run directories in a folder; None for no folder.

    A name is looked up in the listing and never joined to the folder, so that no name leads out of it; neither does a
    link. NotADirectoryError when the folder is not there.
    """

    def __init__(self, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; --checkpoints takes a folder of checkpoints or runs")
        self.folder = None if folder is None else folder.resolve()

    def names(self) -> list[str]:
        return list(self._found())

    def find(self, name: str) -> Path:
        """The checkpoint file of that name. Refused when it is not in the listing."""
        found = self._found()
        if name not in found:
            raise Refused("there is no such checkpoint in the folder that was given at the start", 404)
        return found[name]

    def _found(self) -> dict[str, Path]:
        if self.folder is None:
            return {}
        found: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()):
            run = RunDir(path)
            if path.is_dir() and (run.best.exists() or run.last.exists()):
                file = checkpoint_file(path)
            elif path.suffix in SUFFIXES and (path.is_file() or is_sharded(path)):
                file = path
            else:
                continue
            if file.resolve().is_relative_to(self.folder):
                found[path.name] = file
        return found

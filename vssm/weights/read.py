"""Reading the tensors of a checkpoint file, and refusing what is not one."""

import pickle
import re
import stat
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vssm._sharded import is_sharded
from vssm.weights.archive import check_archive, check_legacy
from vssm.weights.errors import CheckpointError
from vssm.weights.sharded import read_sharded
from vssm.weights.tensors import check_plain

__all__ = ["MAX_BYTES", "Checkpoint", "read_checkpoint", "read_content", "read_safetensors", "take_state_dict"]

MAX_BYTES = 16 << 30

# Where files keep the weights, in the order in which they are looked for; EMA entries only on demand.
_ENTRIES = ("model", "state_dict")
_EMA_ENTRIES = ("model_ema", "state_dict_ema")

# How torch.save begins a file: a zip archive, or in old versions a pickle.
_BEGINNINGS = (b"PK\x03\x04", b"\x80")

# What released files hold beside tensors: configurations, logs, numpy scalars. None of it is needed, so these names
# become placeholders and nothing of theirs runs.
_IGNORED_MAPPINGS = ("yacs.config.CfgNode", "mmengine.config.config.ConfigDict")
_IGNORED_OBJECTS = (
    "argparse.Namespace",
    "_codecs.encode",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
)


class _Mapping:
    """Makes plain dictionaries of what a file declares to be a dictionary class."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict[Any, Any]()


class _Object:
    """Stands for an object of a file and takes nothing from it."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


_PLACEHOLDERS: list[Any] = [
    *((_Mapping, name) for name in _IGNORED_MAPPINGS),
    *((_Object, name) for name in _IGNORED_OBJECTS),
]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file under the file's own names, and the entry they came from ("" for a plain state dict)."""

    path: Path
    entry: str
    tensors: dict[str, Tensor]


def read_checkpoint(path: str | Path, ema: bool = False, max_bytes: int = MAX_BYTES) -> Checkpoint:
    """Read a .pth or .safetensors file on the CPU, never running code from it (`weights_only=True`).

    Args:
        path: the file, or the folder of a checkpoint in shards. Weights are looked for under "model", then
            "state_dict", then at the top level; in a file of averaged weights alone also where `ema` looks.
        ema: take the averaged weights ("model_ema" or "state_dict_ema") instead.
        max_bytes: refuse a larger file.

    Raises:
        FileNotFoundError, IsADirectoryError: no file there.
        CheckpointError: empty, truncated, too large, not a checkpoint, or in need of code to be read.
    """
    path = Path(path)
    tensors, entry = take_state_dict(read_content(path, max_bytes), ema, str(path))
    return Checkpoint(path, entry, tensors)


def read_content(path: Path, max_bytes: int = MAX_BYTES, shapes_only: bool = False) -> Any:
    """All that a file, or a checkpoint in shards, holds: plain types and tensors. Errors as `read_checkpoint`.

    With `shapes_only` the tensors of a checkpoint in shards are zeros that take no memory: no process has to put them
    together.
    """
    if is_sharded(path):
        return read_sharded(path, lambda rest: read_content(rest, max_bytes), max_bytes, shapes_only=shapes_only)
    _check_file(path, max_bytes)
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        tensors, _ = read_safetensors(path, max_bytes)
        return tensors
    return _read_pickle(path, max_bytes)


def read_safetensors(path: Path, max_bytes: int = MAX_BYTES) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a .safetensors file. Errors as `read_checkpoint`."""
    _check_file(path, max_bytes)
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file, or not of torch's types ({_first_line(error)}); download it again"
        ) from error


def take_state_dict(content: Any, ema: bool, origin: str) -> tuple[dict[str, Tensor], str]:
    """The state dict inside a file's content, and the entry that held it."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{origin} holds a {type(content).__name__}, not a dictionary of weights")
    held = cast(Mapping[Any, Any], content)
    wanted = _EMA_ENTRIES if ema else _ENTRIES
    if not ema and not any(isinstance(value, Tensor) for value in held.values()):
        wanted += _EMA_ENTRIES  # a file of averaged weights alone
    entry = next((name for name in wanted if isinstance(held.get(name), Mapping)), "")
    if ema and not entry:
        raise CheckpointError(f"{origin} has no averaged weights ({' or '.join(_EMA_ENTRIES)}); pass ema=False")
    held = cast(Mapping[Any, Any], held[entry]) if entry else held
    tensors = {name: t.detach() for name, t in held.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if not tensors:
        names = ", ".join(name[:80] for name in list(held)[:5] if isinstance(name, str)) or "nothing with a name"
        raise CheckpointError(f"{origin} holds no tensors{f' under {entry}' if entry else ''}; it holds {names}")
    check_plain(origin, tensors)
    return tensors, entry


def _check_file(path: Path, max_bytes: int) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the checkpoint file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe or a device may wait for ever
        raise CheckpointError(f"{path} is not a regular file; give the checkpoint file itself")
    size = found.st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty; download it again")
    if size > max_bytes:
        raise CheckpointError(f"{path} has {size} bytes, more than the {max_bytes} allowed; pass a larger max_bytes")
    with path.open("rb") as file:
        head = file.read(512).lstrip()
    if head.startswith(b"<"):
        raise CheckpointError(
            f"{path} is a web page, not weights: the download was answered with HTML (a login, a warning, or an "
            "error page). Open the address in a browser and save the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch the file itself with git lfs pull")


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_pickle(path: Path, max_bytes: int) -> Any:
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(_BEGINNINGS):
        raise CheckpointError(f"{path} is no checkpoint: it begins with {head!r}; download it again")
    if head.startswith(b"PK"):
        check_archive(path, max_bytes)
    else:
        check_legacy(path)
    with torch.serialization.safe_globals(_PLACEHOLDERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is refused: it is not plain weights ({_refusal(error)}). The file may be damaged or "
                "malicious; if you trust its source, save its state dict alone and load that"
            ) from error
        except (MemoryError, RecursionError) as error:
            raise CheckpointError(f"{path} is refused: too large or too deep to be read ({error})") from error
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            EOFError,
            ImportError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(
                f"{path} is truncated or no checkpoint ({_first_line(error)}); download it again"
            ) from error


def _refusal(error: pickle.UnpicklingError) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"reading it would run {found[1]}"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return found[1] if found else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]

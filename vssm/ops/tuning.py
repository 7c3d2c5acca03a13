"""Which of a few tiles is the quickest on the GPU at hand: measured at a first call, kept on disk.

Off with `VSSM_TUNE=0`, under torch.use_deterministic_algorithms (tiles decide how sums are cut, so that another choice
gives other bits) and on the CPU: then the first candidate is taken. While a CUDA graph is captured nothing is measured:
the tile is that of the calls before, whose kernels are loaded; a capture cannot load any. The file is `vssm/tiles.json`
in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`); deleting it is safe.
"""

import json
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vssm._writing import replacing

Tile = tuple[int, int]
RUNS = 5

_chosen: dict[str, Tile] = {}


def cache_file() -> Path:
    """Where choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vssm" / "tiles.json"


def is_on(device: torch.device) -> bool:
    """Whether tiles are measured on `device`."""
    wanted = os.environ.get("VSSM_TUNE") != "0" and not torch.are_deterministic_algorithms_enabled()
    return wanted and device.type == "cuda"


def size_class(count: int) -> int:
    """Sizes within a power of two share a choice."""
    return max(count - 1, 0).bit_length()


def choose(key: str, device: torch.device, tiles: Sequence[Tile], run: Callable[[Tile], object]) -> Tile:
    """The quickest of `tiles` to `run` for a case named `key`, the first one where tuning is off."""
    if len(tiles) == 1 or not is_on(device):
        return tiles[0]
    name = f"{torch.cuda.get_device_name(device)} | {key}"
    if name not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return tiles[0]
        kept = _read().get(name)
        if kept is None or kept not in tiles:
            kept = min(tiles, key=lambda tile: milliseconds(lambda: run(tile), device))
            _keep(name, kept)
        _chosen[name] = kept
    return _chosen[name]


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Median time of a call after one that compiles; infinite for a tile that the GPU cannot take."""
    try:
        function()
    except ValueError:  # gpu.launch: it needs more of something than the GPU has
        return float("inf")
    times = []
    for _ in range(RUNS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _read() -> dict[str, Tile]:
    """Choices on disk; none, with a warning, where the file cannot be understood."""
    file = cache_file()
    try:
        return {name: (int(T), int(BC)) for name, (T, BC) in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"vssm: {file} cannot be read ({error}); tiles are measured anew", stacklevel=2)
        return {}


def _keep(name: str, tile: Tile) -> None:
    """Add a choice to the file, which other processes see whole or not at all."""
    file = cache_file()
    with warnings.catch_warnings(action="ignore"):  # reported when it was read
        choices = _read() | {name: tile}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as new:
            new.write_text(json.dumps(choices, indent=1))
    except OSError as error:
        warnings.warn(f"vssm: {file} cannot be written ({error}); tiles are measured in every process", stacklevel=2)

"""Triton on this machine: whether its kernels can run, what they run with, and how one is launched.

Triton comes with torch on Linux; nothing is built at install time. This module imports it when the first kernel is
launched, so that `import vssm` stays light. Kernels are in the `triton*.py` files of the operators' folders.
"""

import contextlib
import importlib.util
import math
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor


class KernelError(RuntimeError):
    """A Triton kernel does not compile or does not run. Nothing else runs in its place."""


# Pixels of a tile of the kernels on maps; and programs that share them where each leaves a part of a sum over pixels:
# enough to fill a large GPU. Constants, not the GPU's size, so that sums are cut alike everywhere.
PIXELS = 32
SHARES = 512
# (T, BC), the pixels and channels of a tile of the scan, instead of the choice below. Tests and tuning set it.
SCAN_TILE: tuple[int, int] | None = None
# Whether the forward scan is sequential along the routes, instead of asking the GPU. Tests set it.
SCAN_SEQUENTIAL: bool | None = None


def interpreted() -> bool:
    """Whether kernels are interpreted (TRITON_INTERPRET=1): on the CPU, for tests, very slowly."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on", "y", "yes")


@cache
def missing_reason() -> str | None:
    """Why Triton cannot be imported and how to get it, or None."""
    if importlib.util.find_spec("triton") is not None:
        return None
    return "Triton is not installed; `pip install triton` (Linux; it comes with torch's CUDA and ROCm builds)"


def scan_tiles(channels: int, rank: int, backward: bool) -> list[tuple[int, int]]:
    """(T, BC), pixels and channels, of the tiles that the scan may take. First the one to take without measuring: the
    fewest instructions on sm_90 with few spills. Those that the current GPU cannot hold are left out."""
    if SCAN_TILE is not None:
        return [SCAN_TILE]
    if rank == 0:  # sequences: a thread's pixels are far apart, which takes registers for their addresses
        return [(8 if backward else 16, 32)]
    wide = [BC for BC in (32, 64, 128) if BC == 32 or channels % BC == 0]
    if backward:  # products on the tensor cores take sixteen pixels
        tiles = [(16, BC) for BC in wide if BC <= 64]
        return [tile for tile in tiles if _shared_memory(*tile, rank) <= _limit_of_shared_memory()] or tiles[:1]
    # A thread has BC / 32 channels: several of them share what they read of a pixel's row, few leave room for pixels.
    tiles = [(1024 // BC, BC) for BC in wide]
    return tiles if rank <= 12 else tiles[::-1]


def _shared_memory(T: int, BC: int, rank: int) -> int:
    """Bytes, about, in which the backward's products keep their factors. The only limit that GPUs differ in and that
    a tile comes near: the other tiles of this package fit in the 48 KiB that every GPU gives, and a thread has 255
    registers everywhere."""
    return 4 * BC * (3 * max(16, 1 << (rank + 1).bit_length()) + T)


def _limit_of_shared_memory() -> float:
    """Bytes that a program may take on the current GPU; none without one."""
    return _shared_memory_of(torch.cuda.current_device()) if torch.cuda.is_initialized() else math.inf


@cache
def _shared_memory_of(device: int) -> int:
    limits = torch.cuda.get_device_properties(device)
    return getattr(limits, "shared_memory_per_block_optin", limits.shared_memory_per_block)  # ROCm has the second alone


def fills_gpu(programs: int, device: torch.device) -> bool:
    """Whether so many programs of one warp keep the four schedulers of every multiprocessor busy."""
    if SCAN_SEQUENTIAL is not None or device.type != "cuda":
        return bool(SCAN_SEQUENTIAL)
    return programs >= 4 * torch.cuda.get_device_properties(device).multi_processor_count


@cache
def dot_precision(device: torch.device, half: bool = False) -> str:
    """How tl.dot multiplies float32 where there are tensor cores: as three tf32 products, to 1e-6, or as one, to 2e-3,
    if the gradients are `half` anyway. A GPU cuts off the bits that tf32 has no room for."""
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0):
        return "tf32" if half else "tf32x3"
    return "ieee"


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which `device` is the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch(kernel: Any, grid: tuple[int, int, int], device: torch.device, **arguments: Any) -> None:
    """Run a kernel on the current stream of `device`. A grid or a tile that the GPU cannot take is a clear error."""
    if grid[0] >= 2**31 or grid[1] >= 2**16 or grid[2] >= 2**16:
        raise ValueError(f"a launch of {grid} programs exceeds the GPU's (2147483647, 65535, 65535); split the batch")
    from triton.errors import TritonError
    from triton.runtime.errors import OutOfResources

    try:
        with current(device):
            kernel[grid](**arguments)
    except OutOfResources as error:
        raise ValueError(
            f"the Triton kernel {kernel.fn.__name__} needs {error.required} of {error.name}, this GPU has "
            f"{error.limit}; take smaller sizes (N, R, dilations), or the torch path: `with vssm.ops.use('torch')`"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except (TritonError, RuntimeError) as error:
        raise KernelError(
            f"the Triton kernel {kernel.fn.__name__} of {kernel.fn.__module__} failed on {device}: {error}; "
            "the torch path does without it: `with vssm.ops.use('torch')`; please report this"
        ) from error


def check_scan_fits(state: int, rank: int) -> None:
    """One ValueError for sizes beyond what a tile of the backward holds in registers. Asked by the operators before
    anything runs, forward and backward alike."""
    for name, size in (("N", state), ("R", rank)):
        if size > 256:
            raise ValueError(
                f"{name} = {size} is too large for the Triton scan, which takes up to 256; "
                "use the torch path: `with vssm.ops.use('torch')`"
            )


def channel_block(channels: int, most: int = 64) -> int:
    """Channels of a tile: a power of two, of which as few as possible are beyond the last one."""
    return min(most, max(16, 1 << (channels - 1).bit_length()))


def map_tile(elements: int, channels: int) -> dict[str, Any]:
    """How a kernel cuts maps of so many elements, the channels of a pixel contiguous: its arguments."""
    return {"pixels": elements // channels, "CHANNELS": channels, "P": PIXELS, "BC": channel_block(channels)}


def map_grid(tile: dict[str, Any], shared: bool = False) -> tuple[int, int, int]:
    """Programs for the tiles of `map_tile`: one for each, or, `shared`, as many as may leave sums over pixels."""
    blocks, groups = -(-tile["pixels"] // tile["P"]), -(-tile["CHANNELS"] // tile["BC"])
    return (max(1, min(blocks, SHARES // groups)) if shared else blocks), groups, 1


def map_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> contiguous (B, H*W, C): no copy for channels_last memory."""
    return x.permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1, x.shape[1])

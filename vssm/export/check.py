"""An exported file against the network it was made of, in a process that has only the file."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

__all__ = ["Checked", "check"]

# Runs a file on the inputs of a folder. This package cannot be imported there.
_ALONE = """
import sys, time
sys.modules["vssm"] = None
import numpy as np
kind, file, folder, rounds = sys.argv[1:5]
if kind == "onnx":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    run = lambda x: session.run(None, {session.get_inputs()[0].name: x})
else:
    import torch
    torch.set_num_threads(1)
    module = torch.export.load(file).module()
    def run(x):
        with torch.no_grad():
            y = module(torch.from_numpy(x))
        return [each.numpy() for each in (y if isinstance(y, (list, tuple)) else [y])]
for batch in sys.argv[5:]:
    x = np.load(f"{folder}/{batch}.npy")
    found = run(x)
    seconds = []
    for _ in range(int(rounds)):
        start = time.perf_counter()
        run(x)
        seconds.append(time.perf_counter() - start)
    np.savez(f"{folder}/{batch}.npz", *found)
    print(batch, sorted(seconds)[len(seconds) // 2])
"""
RUNTIMES = {"onnx": "onnxruntime", "pt2": "torch"}
ROUNDS = 3


@dataclass(frozen=True)
class Checked:
    """One batch size. error: largest difference over the largest result. seconds, eager: of one batch on one thread, in
    the runtime and by the network itself, medians of 3."""

    runtime: str
    batch: int
    error: float
    seconds: float
    eager: float


def check(
    network: nn.Module, path: Path, format: str, batches: Sequence[int], size: tuple[int, int, int]
) -> Iterator[Checked]:
    """Run the file on random images (B, *size), each batch size in turn.

    Raises ValueError with the last line of what the runtime says when it cannot run the file.
    """
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    inputs = {batch: torch.randn(batch, *size, generator=generator) for batch in batches}
    for batch, x in inputs.items():
        np.save(path.parent / f"{batch}.npy", x.numpy())
    names = [str(batch) for batch in batches]
    argv = [sys.executable, "-c", _ALONE, format, str(path), str(path.parent), str(ROUNDS), *names]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(f"{RUNTIMES[format]} cannot run the exported file: {said[-1] if said else 'it was killed'}")
    for line in done.stdout.splitlines():
        batch, seconds = line.split()
        with np.load(path.parent / f"{batch}.npz") as stored:
            found = [torch.from_numpy(stored[name]) for name in stored.files]
        want, eager = _eager(network, inputs[int(batch)])
        error = max(_error(one, other) for one, other in zip(found, want, strict=True))
        yield Checked(RUNTIMES[format], int(batch), error, float(seconds), eager)


def _eager(network: nn.Module, x: Tensor) -> tuple[list[Tensor], float]:
    threads, seconds, y = torch.get_num_threads(), [], None
    device = next(network.parameters()).device
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(ROUNDS + 1):
                start = time.perf_counter()
                y = network(x.to(device))
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    results = y if isinstance(y, list | tuple) else [y]
    return [one.cpu() for one in results], median(seconds[1:])  # type: ignore[union-attr]


def _error(found: Tensor, want: Tensor) -> float:
    if found.shape != want.shape:
        return float("inf")
    return float((found - want).abs().max() / want.abs().max().clamp_min(1e-12))

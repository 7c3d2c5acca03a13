"""What studies of many small trainings share: cells that are run once, in processes of one thread, and their summary.

A cell is one training of one arm with one seed, and a json file in the folder of the study. A file of other settings
does not count as finished.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from vssm._writing import replacing

Train = Callable[[str, int], dict[str, Any]]  # of (arm, seed): at least "top1", a share


@dataclass(frozen=True)
class Study:
    """arms, seeds: every arm is trained with seeds 0 to seeds - 1. about: the settings that all cells share. train: a
    function of a module, so that other processes can import it."""

    arms: Sequence[str]
    seeds: int
    about: dict[str, Any]
    train: Train
    folder: Path

    def path(self, arm: str, seed: int) -> Path:
        return self.folder / "cells" / f"{''.join(c if c.isalnum() else '-' for c in arm)}-{seed}.json"

    def stored(self, arm: str, seed: int) -> dict[str, Any] | None:
        """A finished cell with these settings."""
        path = self.path(arm, seed)
        if not path.exists():
            return None
        cell = json.loads(path.read_text(encoding="utf-8"))
        return cell if self.settings(arm, seed).items() <= cell.items() else None

    def settings(self, arm: str, seed: int) -> dict[str, Any]:
        return {"arm": arm, "seed": seed, **json.loads(json.dumps(self.about))}

    def run(self, processes: int) -> None:
        """Every missing cell, seed by seed for all arms, so that an interrupted run is still a fair comparison."""
        wanted = [(arm, seed) for seed in range(self.seeds) for arm in self.arms]
        missing = [cell for cell in wanted if self.stored(*cell) is None]
        print(f"{len(wanted)} cells, {len(wanted) - len(missing)} there already", flush=True)
        self.path("", 0).parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            cells = [pool.submit(_run, self, *cell) for cell in missing]
            for done, future in enumerate(as_completed(cells), 1):
                cell, minutes = future.result(), (time.perf_counter() - start) / 60
                left = minutes * (len(missing) / done - 1)
                print(
                    f"{cell['arm']:<24} seed {cell['seed']}  {cell['top1']:.1%}  {cell['seconds']:.0f} s   "
                    f"{done} of {len(missing)}, {minutes:.1f} min, about {left:.0f} to go",
                    flush=True,
                )

    def summary(self) -> list[dict[str, Any]]:
        """Per arm with finished cells: top-1 of every seed, mean and standard deviation; the same for the difference to
        the first arm with the same seed; the first cell's other figures, and the mean of the processor's seconds."""
        base = {seed: cell["top1"] for seed in range(self.seeds) if (cell := self.stored(self.arms[0], seed))}
        found = []
        for arm in self.arms:
            cells = [cell for seed in range(self.seeds) if (cell := self.stored(arm, seed)) is not None]
            if not cells:
                continue
            scores = [cell["top1"] for cell in cells]
            gains = [cell["top1"] - base[cell["seed"]] for cell in cells if cell["seed"] in base]
            others = {k: v for k, v in cells[0].items() if k not in self.settings(arm, 0) and k != "top1"}
            seconds = statistics.fmean(cell["seconds"] for cell in cells)
            spread = {"top1_sd": _deviation(scores), "gain": _mean(gains), "gain_sd": _deviation(gains)}
            row = {"arm": arm, "seeds": len(cells), "top1": _mean(scores), **spread}
            found.append({**row, "scores": scores, **others, "seconds": seconds})
        return found


def _run(study: Study, arm: str, seed: int) -> dict[str, Any]:
    """Train one cell and leave it in its file, whole or not at all."""
    torch.set_num_threads(1)
    start = time.process_time()  # what other programs hardly affect
    found = study.train(arm, seed)
    cell = study.settings(arm, seed) | {"seconds": round(time.process_time() - start, 1)} | found
    with replacing(study.path(arm, seed)) as new:
        new.write_text(json.dumps(cell, indent=1), encoding="utf-8")
    return cell


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def percent(value: float | None, signed: bool = False) -> str:
    """A share in percent, one digit; a dash where there is none."""
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.1f}"

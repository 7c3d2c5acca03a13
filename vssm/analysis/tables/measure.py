"""Throughput and peak memory of a table's rows on this machine, memory in a process of its own per row."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch

from vssm.analysis.tables.count import build
from vssm.analysis.tables.table import Row
from vssm.analysis.throughput import Conditions, Measured, Runner, in_turns, peak_of
from vssm.ops.native import cpu_threads


class MeasureError(RuntimeError):
    """A row could not be measured here."""


def measure(rows: Sequence[Row], reference: Row, conditions: Conditions) -> Iterator[tuple[str, Measured]]:
    """(name, what was measured) for every one of the rows that can be built, one after the other.

    Raises:
        ValueError: no package has the reference.
        MeasureError: a row does not fit into the memory, or its process ended otherwise.
    """
    if conditions.training and any(row.detector for row in (reference, *rows)):
        raise ValueError("training steps of a detector depend on the objects in the images; measure inference instead")
    if reference.model is None:
        raise ValueError(f"row {reference.name} cannot be measured, as no package has it; choose another to relate to")
    with cpu_threads(conditions.threads):
        baseline = _runner(reference, conditions)
        for row in rows:
            if row.model is None:
                continue
            peak = peak_memory(row, conditions)
            try:
                runner = baseline if row.name == reference.name else _runner(row, conditions)
                yield row.name, in_turns(runner, baseline, peak, conditions)
            except torch.OutOfMemoryError as error:
                raise MeasureError(f"row {row.name} does not fit beside {reference.name}; a smaller --batch") from error


def peak_memory(row: Row, conditions: Conditions) -> float | None:
    """Peak MB of a row, as `vssm.analysis.throughput.peak_of` finds it in a fresh process."""
    message = {"row": [row.model, row.options, row.upernet, row.detector, row.size], "conditions": vars(conditions)}
    command = [sys.executable, "-m", "vssm.analysis.tables.measure", json.dumps(message)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MeasureError(f"row {row.name} could not be measured ({last}); a smaller --batch takes less memory")
    return json.loads(done.stdout.splitlines()[-1])


def _runner(row: Row, conditions: Conditions) -> Runner:
    size = row.size if conditions.image_size is None else conditions.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return Runner(build(row, conditions.image_size), (height, width), conditions)


def _own_peak_memory(message: str) -> float | None:
    stored = json.loads(message)
    conditions = Conditions(**stored["conditions"])
    model, options, upernet, detector, size = stored["row"]
    row = Row("", model, options, upernet, detector, tuple(size) if isinstance(size, list) else size)
    return peak_of(lambda: _runner(row, conditions), conditions)


if __name__ == "__main__":
    print(json.dumps(_own_peak_memory(sys.argv[1])))

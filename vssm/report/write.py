"""From run directories to a file."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vssm._writing import replacing
from vssm.inference.evaluate import Progress
from vssm.report.comparison import comparison_page
from vssm.report.gather import FinishedRun, Report, evaluate_run, open_run
from vssm.report.page import run_page


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    device: torch.device | str = "cpu",
    data_root: str | None = None,
    progress: Progress | None = None,
) -> list[Report]:
    """Evaluates the runs and writes one page about them to `out`, replacing an older one only when all went well.

    All runs are opened before the first is evaluated. Raises OSError or ValueError with the remedy for a folder that is
    no finished run, images that are gone, or a place where nothing can be written.
    """
    out = Path(out)
    found: list[FinishedRun] = [open_run(path) for path in runs]
    _check_target(out)
    reports = [evaluate_run(run, device, data_root, progress) for run in found]
    with replacing(out) as new:
        new.write_text(run_page(reports[0]) if len(reports) == 1 else comparison_page(reports), encoding="utf-8")
    return reports


def _check_target(out: Path) -> None:
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; --out takes the file to write, for example {out / 'report.html'}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} does not exist; the report is written into an existing folder")

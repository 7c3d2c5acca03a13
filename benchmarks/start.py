"""Wall time of commands from start to exit, each in a separate process.

    python benchmarks/start.py [--rounds 5]

The files are read once before, so the times do not include disk access. The checkpoint is a
`vmamba_nano`, trained for one step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command; the median is printed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image, run = Path(folder, "photo.png"), Path(folder, "run")
        Image.effect_noise((640, 480), 64).convert("RGB").save(image)
        vssm = [sys.executable, "-m", "vssm_cli"]
        fit = [*vssm, "fit", "--config", "digits", "--out", str(run), "--trainer.max-steps", "1", "--epochs", "1"]
        subprocess.run(fit, check=True, capture_output=True)
        commands = {
            "`vssm --help`": [*vssm, "--help"],
            "`vssm fit --help`": [*vssm, "fit", "--help"],
            "`vssm predict photo.png --checkpoint RUN`": [*vssm, "predict", str(image), "--checkpoint", str(run)],
            "`vssm models`": [*vssm, "models"],
            "for comparison: `python -c 'import torch'`": [sys.executable, "-c", "import torch"],
            "for comparison: `python -c 'import timm'`": [sys.executable, "-c", "import timm"],
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(args.rounds + 1):
            for name, command in commands.items():
                measured[name].append(_seconds(command))
                if turn == 0:
                    measured[name].clear()
    print("| command | seconds | processor seconds |\n|---|---|---|")
    for name, times in measured.items():
        wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {wall:.2f} | {processor:.2f} |")


def _seconds(command: list[str]) -> tuple[float, float]:
    """Wall and processor time of one process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()

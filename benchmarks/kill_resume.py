"""Kills `vssm fit` with SIGKILL at random moments, resumes it with `--resume` alone, and compares with a run in one go.

    python benchmarks/kill_resume.py --kills 20 --seed 0 --out runs/kill_resume

Prints a line per kill: when it came, the step that was logged last, the step that the newest checkpoint is of, and
whether a file was half-written; then whether checkpoints and metrics are equal bit for bit (exit code 1 when not).
Everything is compared but the speed in metrics.csv.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from vssm.inference.run_dir import RunDir
from vssm.train.callbacks import read_metrics

TRAIN_BATCHES = 30
FIT = [
    "--config",
    "digits",
    "--accelerator",
    "cpu",
    "--batch-size",
    "16",
    "--model.args={dims: [8, 16], depths: [1, 1]}",
]
FIT += ["--save-every-n-steps", "1", "--trainer.log-every-n-steps", "1", "--model.drop-path", "0.3", "--workers", "1"]
FIT += ["--trainer.limit-train-batches", str(TRAIN_BATCHES), "--trainer.limit-val-batches", "20"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vssm", "fit", *arguments]


def has_begun(run: RunDir, before: int | None) -> bool:
    """Training begins with a new metrics.csv."""
    return run.metrics.exists() and run.metrics.stat().st_ino != before


def where(run: RunDir, logged: int, saved: int) -> str:
    files = sorted(path.name.split(".")[1] for path in run.path.rglob(".*.tmp"))
    if files:
        return f"writing {', '.join(files)}"
    return "validation" if logged > saved and logged % TRAIN_BATCHES == 0 else "step"


def kill_once(run: RunDir, arguments: list[str], delay: float) -> bool:
    """False when the training ended before the kill."""
    before = run.metrics.stat().st_ino if run.metrics.exists() else None
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not has_begun(run, before) and process.poll() is None:
        time.sleep(0.005)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if process.returncode != 0:
        assert process.stderr is not None
        raise SystemExit(f"vssm fit ended with {process.returncode}: {process.stderr.read()}")
    return False


def rows(run: RunDir) -> list[dict[str, str]]:
    return [{name: v for name, v in row.items() if name != "images_per_second"} for row in read_metrics(run.metrics)]


def same(one, other) -> bool:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def compare(whole: RunDir, killed: RunDir) -> bool:
    equal = {"metrics.csv": rows(whole) == rows(killed)}
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(run.checkpoints / name, weights_only=True) for run in (whole, killed))
        for content in (one, other):
            content["vssm"]["settings"].pop("out")
        equal[name] = same(one, other)
    print("; ".join(f"{name} {'equal' if found else 'DIFFERENT'}" for name, found in equal.items()))
    return all(equal.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=2.0, help="seconds of training before a kill, at most")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/kill_resume"))
    args = parser.parse_args()
    whole, killed = RunDir(args.out / "whole"), RunDir(args.out / "killed")
    fit = [*FIT, "--epochs", str(args.epochs)]
    began = time.monotonic()
    subprocess.run(command(*fit, "--out", str(whole.path)), check=True, stdout=subprocess.DEVNULL)
    print(f"uninterrupted: {rows(whole)[-1]['step']} steps in {time.monotonic() - began:.0f} s", flush=True)
    draw, repeated, kills = random.Random(args.seed), 0, 0
    arguments = [*fit, "--out", str(killed.path)]
    while kills < args.kills:
        delay = draw.uniform(0, args.longest)
        if not kill_once(killed, arguments, delay):
            break
        kills += 1
        logged = max((int(row["step"]) for row in read_metrics(killed.metrics)), default=0)
        saved = torch.load(killed.last, weights_only=True)["global_step"] if killed.last.exists() else 0
        repeated += logged - saved
        print(f"kill {kills:2}: after {delay:.2f} s of training, logged step {logged:4}, checkpoint of step {saved:4}, "
              f"in {where(killed, logged, saved)}", flush=True)  # fmt: skip
        arguments = ["--resume", str(killed.path)]
    subprocess.run(command(*arguments), check=True, stdout=subprocess.DEVNULL)
    print(f"{kills} kills, {repeated} steps repeated that had been logged")
    return 0 if compare(whole, killed) and kills == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())

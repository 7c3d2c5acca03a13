"""Measures how long `vssm fit` takes from SIGTERM to its end, at random moments of training and validation.

    python benchmarks/signal_exit.py --signals 10 --seed 0 -- --config digits --accelerator cpu

What follows `--` are arguments of `vssm fit`; each next start resumes. Prints a line per signal (seconds until
last.ckpt is written, and until the process ended; exit code; step of last.ckpt), then medians and maxima. The exit code
is 1 when one of them did not end with 75.
"""

import argparse
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from vssm.inference.run_dir import RunDir
from vssm.train.callbacks import read_metrics


def rows(run: RunDir) -> int:
    return len(read_metrics(run.metrics)) if run.metrics.exists() else 0


def signal_once(run: RunDir, arguments: list[str], delay: float) -> tuple[float, float, int]:
    """Seconds until last.ckpt and until the end, and the exit code, after a step and `delay` seconds of training."""
    before = run.metrics.stat().st_ino if run.metrics.exists() else None
    with subprocess.Popen([sys.executable, "-m", "vssm", "fit", *arguments], stdout=subprocess.DEVNULL) as process:
        while not run.metrics.exists() or run.metrics.stat().st_ino == before:  # training begins with a new one
            if process.poll() is not None:
                raise SystemExit(f"vssm fit ended with {process.returncode} before it trained")
            time.sleep(0.01)
        known = rows(run)
        while rows(run) == known and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        began = time.time()
        process.send_signal(signal.SIGTERM)
        process.wait()
        return run.last.stat().st_mtime - began, time.time() - began, process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--signals", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=2.0, help="seconds of training before a signal, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/signal_exit"))
    parser.add_argument("fit", nargs="*", help="arguments of vssm fit, after --")
    args = parser.parse_args()
    run, draw, found = RunDir(args.out), random.Random(args.seed), []
    arguments = [*args.fit, "--out", str(run.path), "--epochs", "1000", "--trainer.log-every-n-steps", "1"]
    for number in range(args.signals):
        found.append(signal_once(run, arguments, draw.uniform(0, args.longest)))
        step = torch.load(run.last, weights_only=True, mmap=True)["global_step"]
        saved, ended, code = found[-1]
        print(
            f"signal {number + 1:2}: saved {saved:.2f} s, ended {ended:.2f} s, exit code {code}, step {step}",
            flush=True,
        )
        arguments = ["--resume", str(run.path)]
    for name, seconds in (("saved", [one for one, _, _ in found]), ("ended", [one for _, one, _ in found])):
        print(f"{name}: median {statistics.median(seconds):.2f} s, maximum {max(seconds):.2f} s")
    print(f"last.ckpt has {run.last.stat().st_size / 1e6:.1f} MB")
    shutil.rmtree(run.path)
    return 0 if all(code == 75 for _, _, code in found) else 1


if __name__ == "__main__":
    sys.exit(main())

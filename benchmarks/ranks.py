"""Do two processes train as one does? Losses and weights of the same training in one process, by DDP and by FSDP.

python benchmarks/ranks.py --steps 50                          # 2 CPU processes, digits
python benchmarks/ranks.py --steps 50 --precision 64-true      # whether differences are of rounding
python benchmarks/ranks.py --steps 50 --smooth                 # GELU for the ReLUs of Spatial-Mamba's downsampling
Every step has the same images. Stochastic depth and mixing draw for a process and are off; norms with running
statistics keep those of a first training of 45 steps, from which all start. Prints the largest differences to one
process: of the training loss over all steps, of the averaged weights' validation loss and of the averaged weights. The
row "one, channels-last" is a control: one process that adds in another order. Training amplifies rounding errors, the
more the higher the learning rate.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

IMAGES = 32  # of a step, on all processes together
COMMAND = [sys.executable, "-m", "vssm"]
SMOOTH = "--smooth-command"  # as the first argument: the rest is a command of vssm, with GELU for ReLU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vmamba_nano", "spatial_mamba_nano"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--precision", choices=["32-true", "64-true"], default="32-true")
    parser.add_argument("--smooth", action="store_true", help="GELU for ReLU between the stages of Spatial-Mamba")
    args = parser.parse_args()
    if args.smooth:
        COMMAND[:] = [sys.executable, __file__, SMOOTH]
    lr = ["--lr", args.lr, "--precision", args.precision]
    print(f"| model | strategy | training loss, {args.steps} steps | validation loss | averaged weights |")
    print("|---|---|---|---|---|")
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            first = train(model, 45, Path(folder) / "first", 1, "auto")
            one = train(model, args.steps, Path(folder) / "one", 1, "auto", first, lr)
            control = ["--model.channels_last"]
            for strategy, processes, further in (("ddp", 2, []), ("fsdp", 2, []), ("one, channels-last", 1, control)):
                name = "auto" if processes == 1 else strategy
                two = train(model, args.steps, Path(folder) / strategy, processes, name, first, [*further, *lr])
                losses = [largest(one, two, column) for column in ("train_loss", "val_loss")]
                cells = " | ".join(f"{value:.1e}" for value in (*losses, weights_apart(one, two)))
                print(f"| `{model}` | {strategy} | {cells} |", flush=True)


def train(
    model: str,
    steps: int,
    out: Path,
    processes: int,
    strategy: str,
    start: Path | None = None,
    further: Sequence[object] = (),
) -> Path:
    argv = [*COMMAND, "fit", "--config", "digits", "--model", model, "--out", out]
    argv += ["--model.drop_path", 0, "--batch-size", IMAGES // processes, "--trainer.max_steps", steps]
    argv += ["--accelerator", "cpu", "--devices", processes, "--trainer.strategy", strategy]
    argv += ["--trainer.log_every_n_steps", 1, "--optim.warmup_steps", 5]
    argv += ["--optim.mesa_weight", 1, "--optim.mesa_start_epoch", 0]
    if start is not None:
        argv += ["--init-from", start]
    if start is not None and model.startswith("spatial"):
        argv += ["--freeze", "*.running_mean"]
    subprocess.run([str(word) for word in (*argv, *further)], check=True, stdout=subprocess.DEVNULL)
    return out


def run_smooth(argv: list[str]) -> int:
    """The command, with downsampling whose gradient has no steps. Lightning starts the second process with it too."""
    from vssm.nn import downsample
    from vssm_cli.command import main as command

    downsample.F = SimpleNamespace(relu=torch.nn.functional.gelu, pad=torch.nn.functional.pad)  # type: ignore[assignment]
    downsample.BottleneckDownsample._own_layers = lambda self: False  # type: ignore[assignment]
    return command(argv)


def largest(one: Path, two: Path, column: str) -> float:
    found = []
    for run in (one, two):
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            found.append([float(row[column]) for row in csv.DictReader(file) if row[column]])
    first, second = found
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def weights_apart(one: Path, two: Path) -> float:
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (one, two)
    )
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


if __name__ == "__main__":
    if sys.argv[1:2] == [SMOOTH]:
        sys.exit(run_smooth(sys.argv[2:]))
    main()

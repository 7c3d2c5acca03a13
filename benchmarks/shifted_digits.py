"""Scan patterns on shifted digits: seven small networks without depthwise convolution, five seeds each.

    python benchmarks/shifted_digits.py                  everything; two processes of one thread, under 30 minutes
    python benchmarks/shifted_digits.py --arms cross unidirectional --seeds 1 --steps 100       a part, shorter
    python benchmarks/shifted_digits.py --table          the finished results, without training

The digits are scikit-learn's, 8 x 8, each pasted into an empty 16 x 16 canvas: at a new random position in every
training step, at four fixed positions for testing. Training and test digits are disjoint, and the same for all
networks. The test digits select nothing: every network trains for the same number of steps and is tested once. A
finished cell (arm, seed) is a file in `--out` and is not run again.
"""

import argparse
import csv
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import vssm
from vssm._writing import replacing
from vssm.figures.style import COLORS, FAINT, drawing, title

# Common to all arms: a smaller vmamba_nano without the depthwise convolution before the scan.
NANO: dict[str, Any] = {"num_classes": 10, "in_chans": 1, "dims": (32, 64), "depths": (1, 1), "conv": False}
ARMS: dict[str, dict[str, Any]] = {
    "unidirectional": {"scan": "unidirectional"},
    "bidirectional": {"scan": "bidirectional"},
    "cascade": {"scan": "cascade"},
    "cross": {"scan": "cross"},
    "cross + SASF": {"scan": "cross", "state_fn": "sasf"},
    "cross + T": {"scan": "cross", "adaptors": {"spatial": False}},
    "cross + T + S": {"scan": "cross", "adaptors": {}},
}
SEEDS = 5
STEPS = 2000
BATCH, CANVAS, PLACES = 32, 16, 4
RATE, WEIGHT_DECAY, WARM_UP, CLIP = 1e-3, 0.05, 0.1, 5.0


# Mean and standard deviation of the pixels of such canvases.
MEAN, DEVIATION = 0.08, 0.23


def build(arm: str) -> nn.Module:
    options = dict(ARMS[arm])
    adaptors = options.pop("adaptors", None)
    model = vssm.create_model("vmamba_nano", **NANO, **options)
    return model if adaptors is None else vssm.add_adaptors(model, **adaptors)


# ---- data ----


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images (N, 8, 8) in [0, 1], labels) to train on and to test on, a fixed fifth of every class."""
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    images = torch.from_numpy(images / 16).float().unflatten(1, (8, 8))
    labels = torch.from_numpy(labels)
    return (images[train], labels[train]), (images[test], labels[test])


def paste(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image at a random position of its own empty canvas: (N, 8, 8) -> (N, 1, 16, 16)."""
    canvas = torch.zeros(len(images), CANVAS, CANVAS)
    corners = torch.randint(0, CANVAS - 8 + 1, (len(images), 2), generator=generator).tolist()
    for page, image, (top, left) in zip(canvas, images, corners, strict=True):
        page[top : top + 8, left : left + 8] = image
    return (canvas.unsqueeze(1) - MEAN) / DEVIATION


# ---- one cell ----


def settings_of(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Everything that a cell depends on; a stored cell with other settings is run again."""
    shared = {"batch": BATCH, "canvas": CANVAS, "places": PLACES, "lr": RATE, "weight_decay": WEIGHT_DECAY}
    model = json.loads(json.dumps(NANO | ARMS[arm]))
    return {"arm": arm, "seed": seed, "steps": steps, "warm_up": WARM_UP, "clip": CLIP, **shared, "model": model}


def run_cell(arm: str, seed: int, steps: int, path: Path) -> dict[str, Any]:
    """Train one network, test it once, and leave the result at `path`, whole or not at all."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    (images, labels), (test_images, test_labels) = digits()
    model = build(arm)
    start = time.perf_counter()
    loss = train(model, images, labels, steps, generator)
    result = {
        "accuracy": evaluate(model, test_images, test_labels),
        "training_loss": loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    cell = settings_of(arm, seed, steps) | result
    with replacing(path) as new:
        new.write_text(json.dumps(cell, indent=1))
    return cell


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, generator: torch.Generator) -> float:
    """The mean loss of the last tenth of the steps."""
    optimizer = create_optimizer_v2(model, "adamw", lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=WARM_UP, cycle_momentum=False)
    order: list[int] = []
    losses = []
    for _ in range(steps):
        if len(order) < BATCH:
            order += torch.randperm(len(images), generator=generator).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        loss = F.cross_entropy(model(paste(images[chosen], generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return statistics.fmean(losses[-max(1, steps // 10) :])


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy, each digit at `PLACES` positions that are the same for all networks."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    right = 0
    for _ in range(PLACES):
        for page, wanted in zip(paste(images, generator).split(128), labels.split(128), strict=True):
            right += int((model(page).argmax(1) == wanted).sum())
    return right / (PLACES * len(labels))


# ---- all cells ----


def place_of(folder: Path, arm: str, seed: int, steps: int) -> Path:
    return folder / "cells" / f"{arm.replace(' + ', '-')}-{seed}-{steps}.json"


def stored(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A finished cell with these settings."""
    if not path.exists():
        return None
    cell = json.loads(path.read_text())
    return cell if settings.items() <= cell.items() else None


def run(arms: Sequence[str], seeds: int, steps: int, folder: Path, processes: int) -> None:
    """Every missing cell, seed by seed for all arms, so that an interrupted run is still a fair comparison."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    wanted = [(arm, seed) for seed in range(seeds) for arm in arms]
    missing = [
        (arm, seed, steps, place_of(folder, arm, seed, steps))
        for arm, seed in wanted
        if stored(place_of(folder, arm, seed, steps), settings_of(arm, seed, steps)) is None
    ]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} there already", flush=True)
    start = time.perf_counter()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        cells = [pool.submit(run_cell, *arguments) for arguments in missing]
        for done, future in enumerate(as_completed(cells), 1):
            cell = future.result()
            minutes = (time.perf_counter() - start) / 60
            print(
                f"{cell['arm']:<16} seed {cell['seed']}  {cell['accuracy']:.1%}  {cell['seconds']:.0f} s   "
                f"{done} of {len(missing)}, {minutes:.1f} min, about {minutes * (len(missing) / done - 1):.0f} to go",
                flush=True,
            )


def summary(arms: Sequence[str], seeds: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Per arm the accuracies found, their mean and standard deviation."""
    found = []
    for arm in arms:
        cells = [stored(place_of(folder, arm, seed, steps), settings_of(arm, seed, steps)) for seed in range(seeds)]
        cells = [cell for cell in cells if cell is not None]
        if cells:
            accuracies = [cell["accuracy"] for cell in cells]
            found.append(
                {
                    "arm": arm,
                    "seeds": len(cells),
                    "mean": statistics.fmean(accuracies),
                    "sd": statistics.stdev(accuracies) if len(cells) > 1 else None,
                    "accuracies": accuracies,
                    "training_loss": statistics.fmean(cell["training_loss"] for cell in cells),
                    "parameters": cells[0]["parameters"],
                    "seconds": statistics.fmean(cell["seconds"] for cell in cells),
                }
            )
    return found


def write(found: Sequence[dict[str, Any]], steps: int, folder: Path) -> None:
    """shifted_digits.json, .csv and .png, and the table on the screen."""
    about = {"steps": steps, "batch": BATCH, "lr": RATE, "model": NANO, "torch": torch.__version__}
    (folder / "shifted_digits.json").write_text(json.dumps({**about, "arms": list(found)}, indent=1))
    with (folder / "shifted_digits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows({**row, "accuracies": " ".join(f"{a:.4f}" for a in row["accuracies"])} for row in found)
    draw(found, steps, folder / "shifted_digits.png")
    print(f"\n{'arm':<16}{'test accuracy':>14}{'sd':>7}{'seeds':>7}{'training loss':>15}{'parameters':>12}{'s':>6}")
    for row in found:
        sd = "-" if row["sd"] is None else f"{100 * row['sd']:.1f}"
        print(
            f"{row['arm']:<16}{100 * row['mean']:>12.1f} %{sd:>7}{row['seeds']:>7}{row['training_loss']:>15.3f}"
            f"{row['parameters']:>12,}{row['seconds']:>6.0f}"
        )


def draw(found: Sequence[dict[str, Any]], steps: int, path: Path) -> None:
    """Accuracy by arm: one dot per seed, a bar for mean and standard deviation; next to it four of the images."""
    with drawing(path, (11, 4.8), 120, style={"axes.grid": False}) as figure:
        grid = figure.add_gridspec(2, 4, width_ratios=[5, 0.15, 1, 1], left=0.13, right=0.98, top=0.8, bottom=0.12)
        axes = figure.add_subplot(grid[:, 0])
        for place, row in enumerate(found):
            values = [100 * value for value in row["accuracies"]]
            spread = 0 if row["sd"] is None else 100 * row["sd"]
            axes.errorbar(100 * row["mean"], place, xerr=spread, fmt="o", color=COLORS[0], capsize=4, markersize=8)
            axes.plot(values, [place + 0.22] * len(values), "o", color=FAINT, markersize=4)
        axes.set_yticks(range(len(found)), [row["arm"] for row in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel("test digits read rightly, %")
        axes.grid(axis="x")
        seeds = max(row["seeds"] for row in found)
        about = f"Large dots, bars: mean and standard deviation. Small dots: the seeds, {seeds} at most. {steps} steps."
        title(figure, "Digits at random places, networks without depthwise convolution", about, 0.22)
        images = paste(digits()[1][0][:4], torch.Generator().manual_seed(0))
        for i, image in enumerate(images):
            shown = figure.add_subplot(grid[i // 2, 2 + i % 2])
            shown.imshow(image[0].numpy(), cmap="gray_r")
            shown.set_xticks([])
            shown.spines[:].set(visible=True, color=FAINT)
            shown.set_yticks([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default {SEEDS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training (default {STEPS})")
    parser.add_argument("--processes", type=int, default=2, help="cells at a time, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/shifted_digits"), help="default runs/shifted_digits")
    parser.add_argument("--table", action="store_true", help="only collect finished results")
    args = parser.parse_args()
    if min(args.seeds, args.steps, args.processes) < 1:
        parser.error("--seeds, --steps and --processes must be at least 1")
    if not args.table:
        run(args.arms, args.seeds, args.steps, args.out, args.processes)
    found = summary(args.arms, args.seeds, args.steps, args.out)
    if not found:
        parser.error(f"no finished cell of {args.steps} steps in {args.out}; run without --table")
    write(found, args.steps, args.out)


if __name__ == "__main__":
    main()

"""Parts of a training recipe on and off, with ten labelled digits per class: `spatial_mamba_nano`, five seeds each.

    python benchmarks/recipe_parts.py                    everything; two processes of one thread, under 30 minutes
    python benchmarks/recipe_parts.py --arms none all --seeds 1 --epochs 2        a part, shorter
    python benchmarks/recipe_parts.py --table            the finished results, without training

Each seed draws its own 100 training digits (the same for all arms), weights and order; the other 1697 digits test. The
recipe is that of `vssm demo`, for the same number of steps in every arm; what is tested is the last network, and its
averaged weights where there are any. The test digits select nothing. An epoch is ten passes over the 100 digits. A
finished cell (arm, seed) is a file in `--out` and is not run again.
"""

import argparse
import csv
import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Study, percent

from vssm._writing import replacing
from vssm._yaml import read_yaml
from vssm.data.digits import Digits
from vssm.figures.style import COLORS, FAINT, QUIET, drawing, title
from vssm.inference.run_dir import RunDir
from vssm.settings import Settings
from vssm.train.datamodule import Loaders
from vssm.train.fit import Experiment, build, fit
from vssm_cli.settings import recipes

MODEL, PER_CLASS, PASSES, SEEDS, EPOCHS = "spatial_mamba_nano", 10, 10, 5, 4
# What each part sets; without it, it is off.
PARTS: dict[str, dict[str, float]] = {
    "EMA": {"optim.ema_decay": 0.98},
    "MESA": {"optim.mesa_weight": 1.0},
    "mixup": {"data.mixup": 0.8},
    "smoothing": {"optim.label_smoothing": 0.1},
}
ARMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "EMA": ("EMA",),
    "EMA + MESA": ("EMA", "MESA"),
    "mixup": ("mixup",),
    "label smoothing": ("smoothing",),
    "all": ("EMA", "MESA", "mixup", "smoothing"),
    "all but EMA and MESA": ("mixup", "smoothing"),
    "all but mixup": ("EMA", "MESA", "smoothing"),
}


def settings_of(arm: str, seed: int, epochs: int) -> Settings:
    """Those of `vssm demo`, with the parts of the arm and no others."""
    settings = Settings.from_dict(read_yaml(recipes()["digits"]))
    settings.model.name, settings.seed = MODEL, seed
    settings.optim.ema_decay = settings.optim.label_smoothing = 0.0
    settings.trainer.max_epochs = settings.trainer.check_val_every_n_epoch = epochs
    settings.optim.mesa_start_epoch = epochs // 4  # as in Spatial-Mamba's recipe, a quarter
    settings.trainer.accelerator, settings.trainer.devices = "cpu", 1
    for part in ARMS[arm]:
        for name, value in PARTS[part].items():
            section, _, key = name.partition(".")
            setattr(getattr(settings, section), key, value)
    return settings


def few_labels(experiment: Experiment, seed: int) -> Experiment:
    """The experiment on `PER_CLASS` digits of each class, drawn with `seed`, tested on all others."""
    train, test = experiment.splits.train, experiment.splits.val
    assert isinstance(train, Digits) and isinstance(test, Digits)
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    positions = np.concatenate([train.positions, test.positions])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[labels[order] == digit][:PER_CLASS] for digit in range(10)])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False

    def subset(where: torch.Tensor, augment: bool) -> Digits:
        return Digits(images[where], labels[where], positions[where.numpy()], train.background, augment)

    repeated = chosen.repeat(PASSES)
    splits = dataclasses.replace(
        experiment.splits, train=subset(repeated, True), val=subset(rest.nonzero().flatten(), False)
    )
    settings = experiment.settings
    loaders = Loaders(splits, settings.data, settings.seed, experiment.task.collate)
    return dataclasses.replace(experiment, splits=splits, loaders=loaders)


def train(arm: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training in a folder that is thrown away; its top-1 on the test digits."""
    experiment = few_labels(build(settings_of(arm, seed, epochs)), seed)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder) / "run")
        metrics = fit(experiment, run)
        run.close()
    return {"top1": metrics["val_top1"], "tested": int(metrics["val_images"])}


def write(study: Study, epochs: int) -> None:
    """recipe_parts.csv, .md and .png, and the table on the screen."""
    found, folder = study.summary(), study.folder
    with replacing(folder / "recipe_parts.csv") as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows({**row, "scores": " ".join(f"{score:.4f}" for score in row["scores"])} for row in found)
    lines = ["| parts | top-1, % | sd | over none, same seed | sd |", "|---|---:|---:|---:|---:|"]
    for row in found:
        gain = percent(row["gain"], signed=True), percent(row["gain_sd"])
        cells = [row["arm"], percent(row["top1"]), percent(row["top1_sd"]), *gain]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    with replacing(folder / "recipe_parts.md") as new:
        new.write_text(table, encoding="utf-8")
    draw(found, epochs, folder / "recipe_parts.png")
    print(f"\n{table}\nfigure {folder / 'recipe_parts.png'}")


def draw(found: Sequence[dict[str, Any]], epochs: int, path: Path) -> None:
    """Top-1 by arm, and what is gained over the arm without parts, seed by seed."""
    with drawing(path, (11, 5.4), 120, colors=256) as figure:
        score, gain = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.19, right=0.97, top=0.8, bottom=0.12, wspace=0.08)
        base = dict(enumerate(found[0]["scores"]))
        for place, row in enumerate(found):
            values = [100 * value for value in row["scores"]]
            gains = [value - 100 * base[seed] for seed, value in enumerate(values) if seed in base]
            for axes, all_, mean, spread in (
                (score, values, row["top1"], row["top1_sd"]),
                (gain, gains, row["gain"], row["gain_sd"]),
            ):
                if mean is not None:
                    spread = 100 * (spread or 0)
                    axes.errorbar(100 * mean, place, xerr=spread, fmt="o", color=COLORS[0], capsize=4, markersize=8)
                axes.plot(all_, [place + 0.24] * len(all_), "o", color=FAINT, markersize=4)
        score.set_yticks(range(len(found)), [row["arm"] for row in found])
        score.set_ylim(len(found) - 0.4, -0.6)
        score.set_xlabel("top-1 on the other 1697 digits, %")
        gain.set_xlabel("points over none, same digits and seed")
        gain.axvline(0, color=QUIET, linewidth=1)
        for axes in (score, gain):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        seeds = max(row["seeds"] for row in found)
        about = f"{MODEL}, {epochs} epochs of {PASSES} passes. Large dots and bars: mean and standard deviation. "
        title(figure, "Parts of a recipe with ten labelled digits per class", f"{about}Small: {seeds} seeds.", 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default {SEEDS})")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of {PASSES} passes (default {EPOCHS})")
    parser.add_argument("--processes", type=int, default=2, help="cells at a time, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe_parts"), help="default runs/recipe_parts")
    parser.add_argument("--table", action="store_true", help="only collect finished results")
    args = parser.parse_args()
    if min(args.seeds, args.epochs, args.processes) < 1:
        parser.error("--seeds, --epochs and --processes must be at least 1")
    about = {"model": MODEL, "per_class": PER_CLASS, "passes": PASSES, "epochs": args.epochs, "parts": PARTS}
    study = Study(args.arms, args.seeds, about, functools.partial(train, epochs=args.epochs), args.out)
    if not args.table:
        study.run(args.processes)
    if not study.summary():
        parser.error(f"no finished cell of {args.epochs} epochs in {args.out}; run without --table")
    write(study, args.epochs)


if __name__ == "__main__":
    main()

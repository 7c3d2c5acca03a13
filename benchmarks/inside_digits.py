"""What small networks see, by their scan: receptive fields and activation maps before and after learning digits.

    python benchmarks/inside_digits.py                        everything; one process, under 20 minutes
    python benchmarks/inside_digits.py --arms cross sasf --epochs 1      a part, shorter

`vmamba_nano` under the four scan patterns of VMamba's figure 7, and with one scan and Spatial-Mamba's fusion of states
(SASF), each trained as `vssm demo` trains, with one seed. Receptive fields are those of the second stage's centre (of
8 x 8 pixels, for images of 32 x 32), averaged over 100 test digits. Writes inside_digits.png and receptive_fields.csv
into `--out`.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vssm._writing import replacing
from vssm._yaml import read_yaml
from vssm.analysis import activation_map, effective_receptive_field
from vssm.analysis.activation import normalise
from vssm.analysis.receptive_field import ReceptiveField
from vssm.figures.inside import Panel, Row, draw_panels
from vssm.inference.run_dir import RunDir
from vssm.settings import Settings
from vssm.train.fit import build, fit, start_run
from vssm_cli.settings import recipes

ARMS: dict[str, dict[str, Any]] = {
    "unidirectional": {"scan": "unidirectional"},
    "bidirectional": {"scan": "bidirectional"},
    "cascade": {"scan": "cascade"},
    "cross": {"scan": "cross"},
    "sasf": {"scan": "raster", "state_fn": "sasf"},
}
STAGE, BLOCK, QUERY, IMAGES = 1, "1.1", (4, 4), 100
THRESHOLDS = (0.2, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Seen:
    """Of one network: the field before and after, top-1 on the test digits, and the maps of a digit after training."""

    before: ReceptiveField
    after: ReceptiveField
    top1: float
    digit: Tensor
    combined: Tensor | None
    routes: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/inside_digits")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    seen = {}
    for arm in args.arms:
        seen[arm] = look(arm, folder, args.epochs, args.seed)
        print(line(arm, seen[arm]), flush=True)
    write_table(seen, folder / "receptive_fields.csv")
    draw(seen, folder / "inside_digits.png", args.epochs, args.seed)
    print(f"figure {folder / 'inside_digits.png'}, table {folder / 'receptive_fields.csv'}")


def look(arm: str, folder: Path, epochs: int, seed: int) -> Seen:
    settings = Settings.from_dict(read_yaml(recipes()["digits"]))
    settings.model.args = dict(ARMS[arm])
    settings.seed, settings.trainer.max_epochs, settings.trainer.devices = seed, epochs, 1
    settings.out = str(folder / arm)
    experiment = build(settings)
    images = torch.stack([experiment.splits.val[i][0] for i in range(IMAGES)])
    before = field(experiment.model, images)
    run: RunDir = start_run(settings)
    metrics = fit(experiment, run)
    run.close()
    model = experiment.model.eval()
    maps = activation_map(model, images[0], QUERY, BLOCK)
    return Seen(before, field(model, images), metrics["val_top1"], images[0], maps.combined, maps.routes)


def field(model: nn.Module, images: Tensor) -> ReceptiveField:
    model.eval()
    found = effective_receptive_field(model, images.split(20), STAGE)
    model.train()
    return found


def line(arm: str, seen: Seen) -> str:
    def areas(found: ReceptiveField) -> str:
        return " / ".join(f"{100 * square.share:.1f}" for square in found.squares(THRESHOLDS))

    return f"{arm:<16} before {areas(seen.before):<28} after {areas(seen.after):<28} top-1 {seen.top1:.2%}"


def write_table(seen: dict[str, Seen], path: Path) -> None:
    with replacing(path) as new, new.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scan", "weights", *(f"share_of_{t}" for t in THRESHOLDS), "images", "skipped", "top1"])
        for arm, one in seen.items():
            for weights, found in (("random", one.before), ("trained", one.after)):
                shares = [f"{square.share:.4f}" for square in found.squares(THRESHOLDS)]
                top1 = f"{one.top1:.4f}" if weights == "trained" else ""
                writer.writerow([arm, weights, *shares, found.images, found.skipped, top1])


def draw(seen: dict[str, Seen], path: Path, epochs: int, seed: int) -> None:
    rows = []
    for arm, one in seen.items():
        grey = (one.digit - one.digit.min()) / (one.digit.max() - one.digit.min()) * 255
        star = tuple((2 * q + 1) * 2 - 0.5 for q in QUERY)
        pixels = grey.permute(1, 2, 0).to(torch.uint8).numpy()
        panels = [
            Panel(one.before.normalised().numpy(), "field, random weights", shares(one.before)),
            Panel(one.after.normalised().numpy(), "field, trained", shares(one.after)),
            Panel(pixels, "query", star=star),
            activation(one.combined, "activation, all routes"),
            *(activation(one.routes[k], f"route {k}") for k in range(2 if len(one.routes) > 1 else 1)),
        ]
        rows.append(Row(arm, panels, f"top-1 {one.top1:.1%} of 360 test digits"))
    held = " / ".join(f"{threshold:.0%}" for threshold in THRESHOLDS)
    caption = (
        f"vmamba_nano on scikit-learn's digits at 32x32, {epochs} epochs, seed {seed}. Fields: centre of stage "
        f"{STAGE}'s map, {IMAGES} test digits, contributions to the power 0.2 over the largest; below, the share of "
        f"the image in the smallest central square that holds {held} of them. Activation: row of the patch at the star "
        f"in (Q . w)(K / w)^T of block {BLOCK}, |weight| over the largest. The cascade's routes do not add up; its "
        "first two are the rows."
    )
    draw_panels(rows, path, "What the scan lets a small network see", caption, "over the largest", side=1.7)


def shares(found: ReceptiveField) -> str:
    return " / ".join(f"{100 * square.share:.0f}" for square in found.squares(THRESHOLDS)) + " %"


def activation(found: Tensor | None, title: str) -> Panel:
    if found is None:
        return Panel(None, under="two passes,\nno single map")
    return Panel(normalise(found, "abs").numpy().astype(np.float64), title, star=QUERY)


if __name__ == "__main__":
    main()

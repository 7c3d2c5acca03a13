"""Ways to move a small trained network to other images: what trains, how well it does, how long it takes.

    python benchmarks/finetuning.py                    everything; two processes of one thread, 15 minutes of them
    python benchmarks/finetuning.py --arms "full fine-tuning" --seeds 1 --rates 3e-3     a part, shorter
    python benchmarks/finetuning.py --table            the finished results, without training

The base, a smaller `vmamba_nano`, learns 900 digits (scikit-learn's, light on dark, at 16 x 16). The other 897 are
turned into negatives, dark on light, of which it names one in ten. Each seed draws three labelled ones of each class. A
fixed half of the negatives tests; what is left of the other half only chooses the learning rate of each way, by the
mean over the seeds. Every way begins with a new classifier. Adaptors (arXiv 2505.12685) are used as the paper does: as
a booster (b), trained with all of the network, and around a frozen base (c), with norms and classifier. LoRA is peft's
(`pip install peft`), of the projections and MLPs, with the classifier.
"""

import argparse
import csv
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import Study, percent
from torch import Tensor, nn

import vssm
from vssm._writing import replacing
from vssm.data.augment import random_affine
from vssm.data.digits import MEAN, STD, load_digits
from vssm.settings import OptimSettings
from vssm.train.optim import create_optimizer

NETWORK: dict[str, Any] = {"num_classes": 10, "in_chans": 1, "dims": (32, 64), "depths": (1, 1)}
SIZE, PER_CLASS, SEEDS = 16, 3, 5
BASE_IMAGES, BASE_STEPS, STEPS, BATCH = 900, 1200, 150, 30
DARK = -MEAN[0] / STD[0]  # of a digit's normalised background
LIGHT = (1 - MEAN[0]) / STD[0]
RANK = 4


def linear_probing(model: nn.Module) -> nn.Module:
    model.requires_grad_(False).get_classifier().requires_grad_(True)  # type: ignore[operator]
    return model


def norms_and_classifier(model: nn.Module) -> nn.Module:
    """What trains beside the adaptors of a frozen base, without adaptors."""
    vssm.freeze_base(vssm.add_adaptors(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "adaptor" not in name)
    return model


def frozen_with_adaptors(model: nn.Module) -> nn.Module:
    vssm.freeze_base(vssm.add_adaptors(model))
    return model


def lora(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not model.get_classifier()  # type: ignore[operator]
    ]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names), model)
    model.get_classifier().requires_grad_(True)  # type: ignore[operator]
    return model


# What is done to the base, with its new classifier, before it trains; None: random weights instead of the base.
ARMS: dict[str, Callable[[nn.Module], nn.Module] | None] = {
    "random weights": None,
    "linear probing": linear_probing,
    "norms and classifier": norms_and_classifier,
    "LoRA": lora,
    "adaptors, frozen base (c)": frozen_with_adaptors,
    "full fine-tuning": lambda model: model,
    "adaptors and all (b)": vssm.add_adaptors,
}


# The learning rates of each way, in steps of about three, of which the best is inside.
RATES: dict[str, tuple[float, ...]] = {
    "random weights": (3e-3, 1e-2, 3e-2),
    "linear probing": (3e-1, 1.0, 3.0, 10.0),
    "norms and classifier": (3e-2, 1e-1, 3e-1, 1.0),
    "LoRA": (1e-2, 3e-2, 1e-1, 3e-1),
    "adaptors, frozen base (c)": (1e-2, 3e-2, 1e-1, 3e-1),
    "full fine-tuning": (1e-3, 3e-3, 1e-2, 3e-2),
    "adaptors and all (b)": (1e-3, 3e-3, 1e-2, 3e-2),
}


def digits(negatives: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 16, 16) and labels of the 900 digits that the base learns, or the other 897 as negatives."""
    train, test = load_digits(SIZE, augment=False)
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    chosen = order[BASE_IMAGES:] if negatives else order[:BASE_IMAGES]
    return DARK + LIGHT - images[chosen] if negatives else images[chosen], labels[chosen]


def parts(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices that train, that choose the rate, and that test: the last are the same for every seed."""
    test, pool = torch.arange(len(labels)).split([len(labels) // 2, len(labels) - len(labels) // 2])
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + 1))]
    train = torch.cat([pool[labels[pool] == label][:PER_CLASS] for label in range(10)])
    return train, pool[~torch.isin(pool, train)], test


def train(
    model: nn.Module, images: Tensor, labels: Tensor, steps: int, rate: float, seed: int, background: float
) -> float:
    """AdamW with a linear warm-up and a cosine; returns the processor time of it, in seconds."""
    torch.manual_seed(seed)
    optimizer = create_optimizer(model.train(), OptimSettings(lr=rate))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1, cycle_momentum=False)
    start, order = time.process_time(), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(labels))])
        chosen, order = order[:BATCH], order[BATCH:]
        batch = torch.stack([random_affine(image, fill=background) for image in images[chosen]])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), labels[chosen], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def train_base(path: Path) -> float:
    """The base at `path`, unless it is there; its top-1 on the other 897 digits, light on dark as it learnt them."""
    images, labels = digits(negatives=False)
    torch.manual_seed(0)
    model = vssm.create_model("vmamba_nano", **NETWORK)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model, images, labels, BASE_STEPS, 3e-3, 0, DARK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            torch.save(model.state_dict(), new)
    images, labels = digits(negatives=True)
    return top1(model, DARK + LIGHT - images, labels)


def transfer(cell: str, seed: int, base: Path) -> dict[str, Any]:
    """One network of a cell, "ARM @ RATE", trained and tested."""
    arm, _, rate = cell.rpartition(" @ ")
    images, labels = digits(negatives=True)
    chosen, choosing, test = parts(labels, seed)
    torch.manual_seed(seed)
    model, prepare = vssm.create_model("vmamba_nano", **NETWORK), ARMS[arm]
    if prepare is not None:
        model.load_state_dict(torch.load(base, weights_only=True))
        model.reset_classifier(NETWORK["num_classes"])  # type: ignore[operator]
        model = prepare(model)
    seconds = train(model, images[chosen], labels[chosen], STEPS, float(rate), seed, LIGHT)
    trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return {
        "top1": top1(model, images[test], labels[test]),
        "chosen_by": top1(model, images[choosing], labels[choosing]),
        "trainable": sum(trainable),
        "share": sum(trainable) / sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": seconds,
    }


def rows(study: Study, rates: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Per arm with finished cells, the figures at the rate that was best on the digits that choose it."""
    summaries = {row["arm"]: row for row in study.summary()}
    found = []
    for arm, ones in rates.items():
        tried = []
        for rate in ones:
            cells = [study.stored(f"{arm} @ {rate:g}", seed) for seed in range(study.seeds)]
            cells = [cell for cell in cells if cell is not None]
            if cells:
                tried.append((statistics.fmean(cell["chosen_by"] for cell in cells), -rate, cells))
        if not tried:
            continue
        _, minus_rate, cells = max(tried, key=lambda one: one[:2])
        summary = summaries[f"{arm} @ {-minus_rate:g}"]
        seconds = statistics.fmean(cell["training_seconds"] for cell in cells)
        own = {key: summary[key] for key in ("seeds", "top1", "top1_sd", "trainable", "share")}
        found.append({"way": arm, "rate": -minus_rate, **own, "seconds": seconds})
    return found


def write(found: Sequence[dict[str, Any]], folder: Path) -> None:
    """finetuning.csv and .md, and the table on the screen."""
    with replacing(folder / "finetuning.csv") as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    lines = ["| way | trains | share, % | rate | top-1, % | sd | s |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in found:
        cells = [row["way"], f"{row['trainable']:,}", percent(row["share"]), f"{row['rate']:g}"]
        cells += [percent(row["top1"]), percent(row["top1_sd"]), f"{row['seconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    with replacing(folder / "finetuning.md") as new:
        new.write_text(table, encoding="utf-8")
    print(f"\n{table}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default {SEEDS})")
    parser.add_argument("--rates", nargs="+", type=float, help="to choose from, in place of those of each way")
    parser.add_argument("--processes", type=int, default=2, help="cells at a time, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"), help="default runs/finetuning")
    parser.add_argument("--table", action="store_true", help="only collect finished results")
    args = parser.parse_args()
    rates = {arm: args.rates or RATES[arm] for arm in args.arms}
    if min(args.seeds, args.processes) < 1 or not min(map(min, rates.values())) > 0:
        parser.error("--seeds and --processes must be at least 1, --rates above 0")
    names = [f"{arm} @ {rate:g}" for arm, ones in rates.items() for rate in ones]
    about = {
        "network": NETWORK,
        "size": SIZE,
        "per_class": PER_CLASS,
        "base": BASE_STEPS,
        "steps": STEPS,
        "on": "negatives",
    }
    base = args.out / "base.pt"
    study = Study(names, args.seeds, about, functools.partial(transfer, base=base), args.out)
    if not args.table:
        print(f"base: {train_base(base):.1%} of the other digits, before they become negatives", flush=True)
        study.run(args.processes)
    found = rows(study, rates)
    if not found:
        parser.error(f"no finished cell in {args.out}; run without --table")
    write(found, args.out)


if __name__ == "__main__":
    main()

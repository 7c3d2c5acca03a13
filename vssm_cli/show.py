"""What the commands print about a run."""

from collections.abc import Mapping
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vssm_cli.lines import print_fact, print_note

NAMES = {"val_loss": "loss", "val_top1": "top-1", "val_top5": "top-5", "val_images": "images"}
UNREADABLE = "val_unreadable"


MANY_CLASSES = 20


def announce(console: Console, experiment) -> None:
    """What is about to be trained, on what, for how long, and with which kernels."""
    from vssm.train.plan import plan

    settings, splits, planned = experiment.settings, experiment.splits, plan(experiment)
    weights = getattr(experiment.module.task, "class_weights", None)
    counts = splits.class_counts()
    size = "x".join(map(str, splits.preprocess.input_size))
    rows = {
        "model": _model_line(settings.model.name, planned),
        "start": _start_line(settings.model),
        "images": f"{sum(counts['train'])} to train, {sum(counts['val'])} to validate, {len(splits.classes)} classes, "
        f"{size}",
        "classes": _balance_line(splits.classes, counts["train"], weights),
        "training": f"{settings.trainer.max_epochs} epochs of {planned.steps_per_epoch} steps, {planned.steps} in all, "
        f"lr {settings.optim.lr:g}, seed {settings.seed}",
        "batch": _batch_line(settings, planned),
        "kernels": kernels(device=planned.device),
    }
    if planned.temperature is not None:
        epochs = settings.optim.temperature_epochs
        falls = f"falls to 1 over {epochs:g} epochs" if epochs > 0 else "stays (optim.temperature_epochs)"
        rows["softmax"] = f"temperature of the dynamic convolutions {planned.temperature:g}, {falls}"
    for name, value in rows.items():
        print_fact(console, name, value)
    if len(splits.classes) <= MANY_CLASSES:
        console.print(_class_table(splits.classes, counts))
    for note in splits.notes:
        print_note(console, note)


def _model_line(name: str, planned) -> str:
    line = f"{name}, {planned.parameters / 1e6:.2f} M parameters"
    if planned.trainable < planned.parameters:
        line += f" ({planned.trainable / 1e6:.2f} M train, the others are frozen)"
    if planned.multiply_adds is None:
        return f"{line}, multiply-adds not counted ({planned.not_counted})"
    return f"{line}, {planned.multiply_adds / 1e9:.3f} G multiply-adds"


def _start_line(model) -> str:
    """Where the weights come from: a fine-tuning recipe without a checkpoint is an easy mistake."""
    if model.init_from is None and not model.pretrained:
        return "random weights" + (", also where they are frozen" if model.freeze else "")
    source = model.init_from or "the published weights"
    return f"{source}, with a new classifier" if model.head == "reset" or model.init_from is None else str(source)


def _batch_line(settings, planned) -> str:
    parts = [f"{settings.data.batch_size} images"]
    if settings.trainer.accumulate_grad_batches > 1:
        parts.append(f"{settings.trainer.accumulate_grad_batches} batches accumulated")
    if planned.devices > 1:
        parts.append(f"{planned.devices} devices")
    total = f" = {planned.images_per_step}" if len(parts) > 1 else ""
    return f"{' x '.join(parts)}{total} per step, {planned.precision} on {planned.device}"


def _balance_line(classes: tuple[str, ...], counts: list[int], weights) -> str:
    low, high = min(counts), max(counts)
    line = f"{low} to {high} training images each" if low < high else f"{low} training images each"
    if len(classes) > MANY_CLASSES:
        fewest, most = classes[counts.index(low)], classes[counts.index(high)]
        line += f", median {median(counts):g}; fewest {fewest}, most {most}"
    if weights is not None:
        line += f"; weights in the loss {float(weights.min()):.2f} to {float(weights.max()):.2f}"
    return line


def _class_table(classes: tuple[str, ...], counts: dict[str, list[int]]) -> Table:
    table = Table("class", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    headings = {"train": "train", "val": "validate"}
    for name in counts:
        table.add_column(headings[name], justify="right")
    for label, name in enumerate(classes):
        table.add_row(escape(name), *(str(counts[split][label]) for split in counts))
    return table


def device_of(accelerator: str) -> str:
    """The device type that Lightning's accelerator name means here."""
    import torch

    present = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator == "cpu" or present is None else present.type


def metrics_table(metrics: Mapping[str, float]) -> Table:
    formats = {"loss": "{:.4f}", "top-1": "{:.2%}", "top-5": "{:.2%}", "images": "{:.0f}"}
    shown = {heading: metrics[name] for name, heading in NAMES.items() if name in metrics}
    table = Table()
    if metrics.get(UNREADABLE):
        formats["unreadable"], shown["unreadable"] = "{:.0f}", metrics[UNREADABLE]
    for heading in shown:
        table.add_column(heading, justify="right")
    table.add_row(*(formats[heading].format(value) for heading, value in shown.items()))
    return table


def plain_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The same numbers for a program: loss, top1, top5 (in 0..1; for more than five classes), images and unreadable."""
    plain = {heading.replace("-", ""): metrics[name] for name, heading in NAMES.items() if name in metrics}
    return plain | {"images": int(plain["images"]), "unreadable": int(metrics.get(UNREADABLE, 0))}


def kernels(operators: tuple[str, ...] = (), device: str = "cpu") -> str:
    """One line: which path each of `operators`, or all, take on `device`."""
    from vssm import ops

    explanation = ops.explain(device=device)
    by_path: dict[str, list[str]] = {}
    for choice in explanation.choices:
        if operators and choice.op not in operators:
            continue
        by_path.setdefault(choice.path, []).append(choice.op)
    if len(by_path) == 1 and not operators:
        return f"all on the {next(iter(by_path))} path (core: {explanation.core})"
    return "; ".join(f"{path}: {', '.join(names)}" for path, names in by_path.items())

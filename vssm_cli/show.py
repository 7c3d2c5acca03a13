"""What the commands print about a run."""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vssm_cli.lines import print_fact, print_note

UNREADABLE = "val_unreadable"

MANY_CLASSES = 20
ABREAST = 6  # columns of metrics


def announce(console: Console, experiment) -> None:
    """What is about to be trained, on what, for how long, and with which kernels."""
    from vssm.data.loaders import size_of
    from vssm.train.plan import plan

    settings, splits, planned = experiment.settings, experiment.splits, plan(experiment)
    task = experiment.task
    weights = getattr(experiment.module.task, "class_weights", None)
    counts = splits.class_counts()
    size = "x".join(map(str, splits.preprocess.input_size))
    rows = {
        "model": _model_line(settings.model.name, planned),
        "start": _start_line(settings.model),
        "images": f"{size_of(splits.train)} to train, {size_of(splits.val)} to validate, "
        f"{len(splits.classes)} classes, {size}",
        "training": f"{settings.trainer.max_epochs} epochs of {planned.steps_per_epoch} steps, {planned.steps} in all, "
        f"{_lr(settings.optim, planned)}, seed {settings.seed}",
        "batch": _batch_line(settings, planned),
        "memory": _memory_line(settings.data.batch_size, planned),
        "kernels": kernels(device=planned.device),
    }
    rows |= _teachers(settings.optim)
    if settings.model.adaptors:
        rows["adaptors"] = f"{', '.join(settings.model.adaptors)} around every SSM; {_share(planned)}"
    if "train" in counts:
        rows["classes"] = _balance_line(splits.classes, counts["train"], weights, task.counted)
    if planned.temperature is not None:
        epochs = settings.optim.temperature_epochs
        falls = f"falls to 1 over {epochs:g} epochs" if epochs > 0 else "stays (optim.temperature_epochs)"
        rows["softmax"] = f"temperature of the dynamic convolutions {planned.temperature:g}, {falls}"
    for name, value in rows.items():
        print_fact(console, name, value)
    if counts and len(splits.classes) <= MANY_CLASSES:
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


def _share(planned) -> str:
    share = planned.trainable / planned.parameters
    return f"{planned.trainable:,} of {planned.parameters:,} parameters train, {share:.2%}"


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


def _lr(optim, planned) -> str:
    if optim.lr_batch is None:
        return f"lr {optim.lr:g}"
    return f"lr {optim.lr:g} for {optim.lr_batch}, here {planned.lr:.3g} for {planned.images_per_step}"


def _teachers(optim) -> dict[str, str]:
    found = {}
    if optim.distill_teacher is not None:
        kind = "hard" if optim.distill_kind == "hard" else f"soft at temperature {optim.distill_temperature:g}"
        found["teacher"] = f"{optim.distill_teacher}, {optim.distill_weight:g} of the loss, {kind}"
    if optim.mesa_weight > 0:
        found["MESA"] = f"from epoch {optim.mesa_start_epoch + 1}, weight {optim.mesa_weight:g}"
    return found


def _memory_line(batch_size: int, planned) -> str:
    """An estimate for one device, from below: temporary tensors of the backward come on top."""
    state = f"{_bytes(planned.state_bytes)} for weights, gradients, optimizer and averages"
    if planned.activation_bytes is None:
        return f"{state}; that of activations depends on the images"
    total = _bytes(planned.state_bytes + planned.activation_bytes)
    activations = f"{_bytes(planned.activation_bytes)} for the activations of {batch_size} images"
    return f"at least about {total} per device: {state}, {activations}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _balance_line(classes: tuple[str, ...], counts: list[int], weights, counted: str) -> str:
    low, high = min(counts), max(counts)
    line = f"{low} to {high} training {counted} each" if low < high else f"{low} training {counted} each"
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


def metrics_table(metrics: Mapping[str, float], headings: Mapping[str, str]) -> Table:
    """`headings` of a task, by the names of its metrics; those that begin with % are shares."""
    table = Table()
    shown = [(heading, metrics[name]) for name, heading in headings.items() if name in metrics]
    cells = [figure(heading, value, "{:.4f}") for heading, value in shown]
    shown.append(("images", metrics["val_images"]))
    cells.append(f"{metrics['val_images']:.0f}")
    if metrics.get(UNREADABLE):
        shown.append(("unreadable", metrics[UNREADABLE]))
        cells.append(f"{metrics[UNREADABLE]:.0f}")
    if len(shown) > ABREAST:  # one below the other
        table.add_column()
        table.add_column(justify="right")
        for (heading, _), cell in zip(shown, cells, strict=True):
            table.add_row(heading.removeprefix("%"), cell)
        table.show_header = False
        return table
    for heading, _ in shown:
        table.add_column(heading.removeprefix("%"), justify="right")
    table.add_row(*cells)
    return table


def class_table(classes: Sequence[str], figures: Mapping[str, Sequence[float]]) -> Table:
    """What `Quality.by_class` gives."""
    table = Table("class")
    for heading in figures:
        table.add_column(heading.removeprefix("%"), justify="right")
    for label, name in enumerate(classes):
        table.add_row(escape(name), *(figure(heading, values[label]) for heading, values in figures.items()))
    return table


def figure(heading: str, value: float, plain: str = "{:g}") -> str:
    """A value under its heading; a dash where there is none."""
    if isnan(value) and heading.startswith("%"):
        return "-"
    return ("{:.2%}" if heading.startswith("%") else plain).format(value)


def plain_metrics(metrics: Mapping[str, float]) -> dict[str, float | int | None]:
    """The same for a program: loss, top1, box_ap, ... (shares in 0..1; None where there is nothing), images and
    unreadable."""
    plain: dict[str, float | int | None] = {
        name.removeprefix("val_"): None if isnan(value) else value
        for name, value in metrics.items()
        if name not in ("val_images", UNREADABLE)
    }
    return plain | {"images": int(metrics["val_images"]), "unreadable": int(metrics.get(UNREADABLE, 0))}


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

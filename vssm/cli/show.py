"""What the commands print about a run."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

NAMES = {"val_loss": "loss", "val_top1": "top-1", "val_top5": "top-5", "val_images": "images"}
UNREADABLE = "val_unreadable"


def announce(console: Console, experiment) -> None:
    """What is about to be trained, on what, for how long, and with which kernels."""
    settings, splits = experiment.settings, experiment.splits
    data, trainer = settings.data, settings.trainer
    channels, height, width = splits.preprocess.input_size
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    rows = {
        "model": f"{settings.model.name}, {parameters / 1e6:.2f} M parameters",
        "images": f"{len(splits.train)} to train, {len(splits.val)} to validate, {len(splits.classes)} classes, "
        f"{channels}x{height}x{width}",
        "training": f"{trainer.max_epochs} epochs, batches of {data.batch_size * trainer.accumulate_grad_batches}"
        f" per device, lr {settings.optim.lr:g}, {trainer.precision}, seed {settings.seed}",
        "kernels": kernels(device=device_of(trainer.accelerator)),
    }
    for name, value in rows.items():
        console.print(f"[bold]{name:<10}[/]{value}", soft_wrap=True, highlight=False)
    for note in splits.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)


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

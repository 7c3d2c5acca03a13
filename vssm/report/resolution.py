"""Classifiers on larger images than they were trained on: accuracy, counts and speed by image size, as a table.

VMamba (arXiv 2401.10166), appendix G: table 9 and figure 11.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from vssm._writing import replacing
from vssm.analysis.one_image import multiply_adds
from vssm.analysis.throughput import Conditions, Measured, Runner, in_turns
from vssm.inference.evaluate import evaluate
from vssm.inference.input_size import at_input_size, labelled
from vssm.inference.linear_tuning import cached_features, tune_linear
from vssm.inference.predictor import Predictor
from vssm.settings import DataSettings

__all__ = ["Asked", "Record", "as_markdown", "study", "write_table"]

Record = dict[str, Any]
HEADINGS = {
    "model": "model",
    "size": "size",
    "params": "M params",
    "macs": "G macs",
    "top1": "top-1, %",
    "top1_linear": "top-1, linear tuning, %",
    "images_per_second": "images/s",
    "ratio": "x first",
    "train_images_per_second": "training images/s",
}


@dataclass(frozen=True)
class Asked:
    """batch_size: images at a time at the smallest size; at the others so many that their pixels are no more.
    seconds: of measuring, for each network and size; 0: no speeds. train: speeds of training steps too, in `precision`.
    """

    sizes: Sequence[int]
    batch_size: int = 64
    workers: int = 0
    linear: bool = False
    seconds: float = 5.0
    train: bool = False
    precision: str = "32-true"

    def batch(self, size: int) -> int:
        return max(1, self.batch_size * min(self.sizes) ** 2 // size**2)


def study(
    models: Mapping[str, Predictor],
    data: DataSettings,
    asked: Asked,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Record]:
    """One record per network and size, the networks of a size one after the other.

    model, size, batch; params and macs (multiply-adds of one image; None where they cannot be counted); top1, and
    top1_linear after `tune_linear` on the training images at this size (None without); images_per_second, and ratio to
    the first network at this size, in turns with it; train_images_per_second. None where there is no figure.

    Raises OSError or ValueError when images are not there or do not fit, a network cannot take a size, or a batch does
    not fit into the memory of the device.
    """
    for size in asked.sizes:
        first: Predictor | None = None
        for name, predictor in models.items():
            progress(f"{name} at {size}")
            network = at_input_size(predictor, size)
            first = first or network
            try:
                yield {"model": name, "size": size, "batch": asked.batch(size)} | _figures(network, first, data, asked)
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{name} at {size}x{size} does not fit into the memory with {asked.batch(size)} images at a time; "
                    f"take a smaller batch size than {asked.batch_size}"
                ) from error


def _figures(network: Predictor, first: Predictor, data: DataSettings, asked: Asked) -> Record:
    size = network.preprocess.input_size
    params = sum(parameter.numel() for parameter in network.model.parameters())
    macs, _ = multiply_adds(network.model, size)
    speed = None if asked.seconds == 0 else _speed(network, first, asked)
    record: Record = {"params": params, "macs": macs, **_accuracies(network, data, asked)}
    record |= {
        "images_per_second": speed and speed.images_per_second,
        "ratio": speed and speed.ratio,
        "train_images_per_second": None,
    }
    if asked.train and asked.seconds > 0:  # last: it leaves other statistics in BatchNorm
        record["train_images_per_second"] = _speed(network, network, asked, training=True).images_per_second
    return record


def _accuracies(network: Predictor, data: DataSettings, asked: Asked) -> Record:
    splits, batch = labelled(network, data), asked.batch(network.preprocess.input_size[1])

    def top1() -> float:
        found = evaluate(network.model, network.task, splits, batch_size=batch, workers=asked.workers)
        return cast(Any, found.quality).top1

    record: Record = {"top1": top1(), "top1_linear": None}
    if asked.linear:
        assert splits.train is not None
        features = cached_features(network, splits.train, batch, asked.workers)
        layer = cast(Any, network.model).get_classifier()
        tuned, before = tune_linear(features, len(splits.classes), network.device), (layer.weight, layer.bias)
        layer.weight, layer.bias = tuned.weight, tuned.bias
        record["top1_linear"] = top1()
        layer.weight, layer.bias = before
    return record


def _speed(network: Predictor, other: Predictor, asked: Asked, training: bool = False) -> Measured:
    size = network.preprocess.input_size
    conditions = Conditions(
        batch=asked.batch(size[1]),
        seconds=asked.seconds,
        training=training,
        device=str(network.device),
        precision=asked.precision if training else "32-true",
    )
    runner = Runner(network.model, size[1:], conditions, size[0])
    reference = (
        runner if other is network else Runner(other.model, size[1:], conditions, other.preprocess.input_size[0])
    )
    try:
        return in_turns(runner, reference, None, conditions)
    finally:
        network.model.eval().zero_grad(set_to_none=True)


def as_cells(record: Record) -> dict[str, str]:
    """A record as it is printed, by heading."""

    def number(key: str, factor: float, digits: int) -> str:
        value = record[key]
        return "-" if value is None else f"{factor * value:.{digits}f}"

    return {
        "model": str(record["model"]),
        "size": str(record["size"]),
        "M params": number("params", 1e-6, 2),
        "G macs": number("macs", 1e-9, 3),
        "top-1, %": number("top1", 100, 2),
        "top-1, linear tuning, %": number("top1_linear", 100, 2),
        "images/s": number("images_per_second", 1, 1),
        "x first": number("ratio", 1, 2),
        "training images/s": number("train_images_per_second", 1, 1),
    }


def headings(records: Sequence[Record]) -> list[str]:
    """Those of the columns that have a figure anywhere."""
    return [heading for key, heading in HEADINGS.items() if any(record[key] is not None for record in records)]


def as_markdown(records: Sequence[Record], how: str) -> str:
    """A table, and the line that says how its speeds were measured."""
    columns = headings(records)
    lines = [columns, ["---" if column == "model" else "---:" for column in columns]]
    lines += [[as_cells(record)[column] for column in columns] for record in records]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{how}\n"


def write_table(records: Sequence[Record], how: str, path: Path) -> None:
    """Markdown for the ending .md, else comma-separated values, unrounded, with `how` in a column."""
    if path.suffix.lower() == ".md":
        text = as_markdown(records, how)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*records[0], "measured"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**record, "measured": how} for record in records)
        text = buffer.getvalue()
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")

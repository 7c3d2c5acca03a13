"""The card of a run of `vssm fit`: what its settings, its checkpoint and its metrics say."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from vssm.hub.card import Card
from vssm.hub.errors import HubError
from vssm.inference.checkpoint import TrainedModel, read_checkpoint
from vssm.inference.run_dir import RunDir
from vssm.models import NAMES
from vssm.tasks import find_task
from vssm.weights.published import PREFIX, find_published

__all__ = ["describe_run", "read_run"]

_DIGITS = "8x8 scans of handwritten digits (the test part of UCI's optical recognition set, bundled with scikit-learn)"


def read_run(run: str | Path) -> TrainedModel:
    """The best checkpoint of a run directory that can go to the Hub.

    Raises HubError for a task that timm has no models of, and for adaptors, which timm does not build.
    """
    stored = read_checkpoint(run)
    if stored.settings.task != "classification":
        raise HubError(
            f"{run} is a run of {stored.settings.task}; the Hub's timm models are classifiers. Share its checkpoint as "
            "a file: vssm.load takes it"
        )
    if stored.settings.model.adaptors:
        raise HubError(
            f"{run} trained adaptors, which timm.create_model does not build; share checkpoints/adaptors.safetensors "
            "as a file: vssm.load_adaptors takes it"
        )
    return stored


def describe_run(
    run: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    dataset: str | None = None,
    description: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Card:
    """The card of a run directory; what the run does not know is to be given.

    The licence and (but for the bundled digits) the data are not known to a run. Metrics are those of the best
    validation in metrics.csv unless given. Paths of this machine are left out.
    """
    stored = read_run(run)
    data, trainer = stored.settings.data, stored.settings.trainer
    counts = {split: sum(found) for split, found in stored.images.items()}
    network: Any = stored.create_model()
    architecture: str = network.pretrained_cfg["architecture"]  # the name may be that of a model on the Hub
    side = " x ".join(map(str, stored.preprocess.input_size[1:]))
    known = _DIGITS if data.name == "digits" else None
    return Card(
        repo_id,
        architecture,
        description or f"A {architecture} that sorts images of {side} pixels into {len(stored.classes)} classes.",
        dataset or known,
        best_metrics(run, stored) if metrics is None else metrics,
        _measured_on(counts.get("val"), trainer.limit_val_batches is not None),
        license,
        license_name,
        license_link,
        _details(stored, counts, RunDir(run).read_environment() if Path(run).is_dir() else {}),
        architecture.partition(".")[0] in NAMES,
    )


def _measured_on(count: int | None, limited: bool) -> str:
    images = f"the {count} validation images" if count else "the validation images"
    return f"a part of {images}" if limited else images


def best_metrics(run: str | Path, stored: TrainedModel) -> dict[str, float]:
    """The logged metrics of the best validation, under the headings of the task; none without a validation."""
    file = RunDir(run).metrics
    if not file.exists():
        return {}
    task = find_task(stored.settings.task)
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get(task.monitor)]
    if not rows:
        return {}
    best = max(rows, key=lambda row: _number(row[task.monitor], -math.inf))
    found = {heading.removeprefix("%"): best.get(name) for name, heading in task.headings.items()}
    return {heading: _number(value, math.nan) for heading, value in found.items() if value}


def _number(text: str | None, otherwise: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise


def _details(stored: TrainedModel, counts: Mapping[str, int], environment: Mapping[str, object]) -> dict[str, str]:
    settings = stored.settings
    purposes = {"train": "training", "val": "validation"}
    many = ", ".join(f"{count} for {purposes.get(name, name)}" for name, count in counts.items())
    names = ", ".join(stored.classes[:20]) + (", ..." if len(stored.classes) > 20 else "")
    optim, trainer = settings.optim, settings.trainer
    length = f"{trainer.max_steps} steps" if trainer.max_steps > 0 else f"up to {trainer.max_epochs} epochs"
    lines = {
        "Classes": f"{len(stored.classes)}: {names}",
        "Images": many,
        "Initial weights": _initial(stored),
        "Training": f"{length}, AdamW, peak learning rate {optim.lr:g}, batches of {settings.data.batch_size}, "
        f"label smoothing {optim.label_smoothing:g}, decay of averaged weights {optim.ema_decay:g}, "
        f"seed {settings.seed}",
        "Versions": str(environment.get("versions", "")),
    }
    return {name: line for name, line in lines.items() if line}


def _initial(stored: TrainedModel) -> str:
    """Where the training started: the authors' weights carry their licence on."""
    model = stored.settings.model
    if model.init_from is not None:
        if model.init_from.startswith(PREFIX):
            name, weights = find_published(model.init_from)
            return f"published weights {name}, {weights.page}, {weights.license}"
        return f"a checkpoint ({Path(model.init_from).name})"
    if not model.pretrained:
        return "random"
    published: Any = None if ":" in model.name else timm.get_pretrained_cfg(model.name)
    known = [published.origin_url, published.license] if published is not None else []
    return f"published weights of {model.name}" + "".join(f", {about}" for about in known if about)

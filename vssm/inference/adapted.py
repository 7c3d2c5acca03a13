"""A base with a small file of adaptors: what `vssm fit --model.freeze base` leaves beside its checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from vssm.data.preprocess import Preparation, Preprocess, stored_preprocess
from vssm.inference.checkpoint import load_weights
from vssm.inference.predictor import Predictor, load_predictor
from vssm.models import NAMES
from vssm.settings import ModelSettings, Settings
from vssm.tasks.classification import create_classifier
from vssm.weights import CheckpointError
from vssm.weights.adaptors import load_adaptors
from vssm.weights.read import read_safetensors

_KEY = "vssm fit"  # of the file's metadata
_LONGEST = 1 << 22  # characters: a hundred thousand names of classes


def describe_adaptors(settings: ModelSettings, classes: Sequence[str], preprocess: Preparation) -> dict[str, str]:
    """What a file of adaptors has to say beside its tensors so that `load_adapted` can use it."""
    plain = {"name": settings.name, "args": settings.args, "classes": classes, "preprocess": preprocess.as_dict()}
    return {_KEY: json.dumps(plain)}


def load_adapted(adaptors: str | Path, checkpoint: str | Path | None, model_name: str | None = None) -> Predictor:
    """The base in `checkpoint` (that `--init-from` had; None for published weights) with the adaptors, the norms and
    the classifier of a file.

    A file of `vssm.save_adaptors` says nothing of classes and images: those of the base are taken, which has to be one
    that `load_predictor` can name. Raises OSError or ValueError that names what is missing or does not fit.
    """
    adaptors = Path(adaptors)
    if adaptors.suffix != ".safetensors" or not adaptors.is_file():
        raise ValueError(f"{adaptors} is no file of adaptors; vssm fit --model.freeze base writes adaptors.safetensors")
    text = read_safetensors(adaptors)[1].get(_KEY)
    if text is None:
        base = load_predictor(checkpoint, model_name)
        load_adaptors(base.model, adaptors)
        return base
    settings, classes, preprocess = _read(text, adaptors)
    if model_name not in (None, settings.name):
        raise ValueError(f"{adaptors} has the adaptors of a {settings.name}, not of a {model_name}")
    model = create_classifier(
        settings.name, len(classes), preprocess.channels, pretrained=checkpoint is None, **settings.args
    )
    if checkpoint is not None:
        load_weights(model, checkpoint, head="reset")  # the classifier is in the file of adaptors
    load_adaptors(model, adaptors)
    return Predictor(settings.name, model.eval(), preprocess, classes)


def _read(text: str, file: Path) -> tuple[ModelSettings, tuple[str, ...], Preprocess]:
    """The file may come from anyone: a model of this package, arguments that a recipe may have, names, numbers."""
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text)} characters")
        plain = cast(dict[str, Any], json.loads(text))
        settings = ModelSettings(plain["name"], args=dict(plain["args"]))
        Settings(model=settings).check()
        if settings.name not in NAMES:
            raise ValueError(f"unknown model {settings.name!r}")
        classes = tuple(plain["classes"])
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes without names")
        preprocess = stored_preprocess(plain["preprocess"])
        assert isinstance(preprocess, Preprocess)
    except (AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{file} has no description that can be read ({reason}); train again") from error
    return settings, classes, preprocess

"""A network that is ready to name images, from wherever its weights come."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from vssm.data.preprocess import Preprocess, published_preprocess
from vssm.tasks.classification import check_image_size, class_names, create_classifier
from vssm.train.checkpoint import is_ours, load_weights, read_checkpoint


@dataclass(frozen=True)
class Predictor:
    """A network in evaluation mode, how images are prepared for it, and the names of its classes."""

    name: str
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]

    def at_size(self, image_size: int) -> "Predictor":
        """The same at another image size. Raises ValueError when the network cannot take it."""
        preprocess = replace(self.preprocess, input_size=(self.preprocess.channels, image_size, image_size))
        check_image_size(self.model, self.name, preprocess.input_size)
        return replace(self, preprocess=preprocess)

    def to(self, device: torch.device) -> "Predictor":
        return replace(self, model=self.model.to(device))


def load_predictor(checkpoint: str | Path | None, model_name: str | None = None) -> Predictor:
    """From a checkpoint of `vssm fit`, from another with the model's name, or a model's published weights.

    Raises OSError or ValueError that names the file or the model when they are not there or do not fit.
    """
    if checkpoint is not None and (model_name is None or is_ours(checkpoint)):
        stored = read_checkpoint(checkpoint)
        if model_name not in (None, stored.settings.model.name):
            raise ValueError(f"{checkpoint} holds a {stored.settings.model.name}, not a {model_name}")
        return Predictor(stored.settings.model.name, stored.create_model(), stored.preprocess, stored.classes)
    if model_name is None:
        raise ValueError("neither a checkpoint nor the name of a model")
    model = create_classifier(model_name, pretrained=checkpoint is None).eval()
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return Predictor(model_name, model, published_preprocess(model, use_test_size=True), class_names(model))

"""Linear tuning: a classifier's last layer, trained anew on the features that its frozen network gives."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vssm.data.loaders import evaluation_loader, normalised
from vssm.inference.predictor import Predictor

__all__ = ["Features", "cached_features", "tune_linear"]

DECAY, STEPS = 1e-4, 200
BLOCK = 65536  # images whose logits are in memory together


@dataclass(frozen=True)
class Features:
    """What a network hands to its last layer: values (N, D), float32, and labels (N,), int64, both on the CPU."""

    values: Tensor
    labels: Tensor


def last_layer(model: nn.Module, name: str) -> nn.Linear:
    """The layer that timm calls a model's classifier; ValueError where it is not one linear layer."""
    layer = cast(Any, model).get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"linear tuning needs a classifier that is one linear layer; {name} has {layer!r:.80}")
    return layer


@torch.no_grad()
def cached_features(predictor: Predictor, images: Dataset[Any], batch_size: int, workers: int = 0) -> Features:
    """The input of the last layer for every image, which takes N D values of 4 bytes; unreadable images are left out.

    Raises ValueError when the network's classifier is not one linear layer, or no image can be read.
    """
    found: list[Tensor] = []
    values: list[Tensor] = []
    labels: list[Tensor] = []
    model, device = predictor.model, predictor.device
    loader = evaluation_loader(images, batch_size, workers=workers, collate=predictor.task.collate)
    normalise = predictor.preprocess.transform().normalise

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].float().cpu())

    handle = last_layer(model, predictor.name).register_forward_pre_hook(keep)
    try:
        for batch in loader:
            if len(batch.targets) == 0:
                continue
            found.clear()
            model(normalised(batch._replace(images=batch.images.to(device)), normalise).images)
            if len(found) != 1 or found[0].shape[:-1] != batch.targets.shape:
                raise ValueError(f"linear tuning needs one vector per image before the classifier of {predictor.name}")
            values.append(found[0])
            labels.append(batch.targets)
    finally:
        handle.remove()
    if not values:
        raise ValueError("no image could be read to tune the classifier on")
    return Features(torch.cat(values), torch.cat(labels))


def tune_linear(features: Features, classes: int, device: torch.device | str = "cpu") -> nn.Linear:
    """The linear layer (D -> classes) of least mean cross entropy plus 1e-4 / 2 times its squared weights.

    From zero, by L-BFGS over all images at once, for at most 200 steps: deterministic, and the same in any order of
    images. Features are standardised for it, and the layer is returned for features as they are. VMamba (appendix G)
    trains the layer from random weights, by a recipe that it does not tell.
    """
    values, labels = features.values.to(device), features.labels.to(device)
    mean = values.mean(0)
    scale = (values - mean).pow(2).mean(0).sqrt().clamp(min=1e-6)
    weight = torch.zeros(classes, values.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = DECAY / 2 * weight.pow(2).sum()
        torch.autograd.backward(total)
        for rows, wanted in zip(torch.split(values, BLOCK), torch.split(labels, BLOCK), strict=True):
            logits = F.linear((rows - mean) / scale, weight, bias)
            part = F.cross_entropy(logits, wanted, reduction="sum") / len(labels)
            torch.autograd.backward(part)
            total = total.detach() + part.detach()
        return total

    cast(Any, optimizer).step(loss)
    layer = nn.Linear(values.shape[1], classes, device=device)
    with torch.no_grad():
        layer.weight.copy_(weight / scale)
        layer.bias.copy_(bias - (weight / scale) @ mean)
    return layer

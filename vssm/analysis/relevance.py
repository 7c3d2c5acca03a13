"""Relevance of pixels: the logit of a class, distributed over the image layer by layer.

MambaLRP (Jafari et al. 2024, arXiv 2406.07592), section 4: layer-wise relevance propagation as gradient times input of
a network whose layers hold what they choose by their input; the rules are in `relevance_rules`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vssm.analysis.parts import NoSuchPart
from vssm.analysis.relevance_rules import Constants, by_rules

__all__ = ["Relevance", "relevance"]

# How far the network with rules may be from the network itself, relative to the largest logit.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


@dataclass(frozen=True)
class Relevance:
    """What `relevance` found. map.sum() + bias is the logit, up to rounding.

    Attributes:
        map: (H, W), float64: what each pixel adds to the logit, or takes from it, summed over the colours.
        bias: what the constants of the network add: biases, position embedding, class token, means of batch norms.
        logit: of the class, as the model gives it.
        cls: the class.
    """

    map: Tensor
    bias: float
    logit: float
    cls: int


def relevance(model: nn.Module, image: Tensor, cls: int | None = None) -> Relevance:
    """How much every pixel contributes to the logit of a class.

    The rules are those of the paper: activations pass relevance in proportion to their input, norms hold their
    deviation, the scan holds dt, A, B and C, a gate and what it multiplies have half each. Linear layers and
    convolutions distribute in proportion to x w (LRP-0) everywhere; the authors' code has LRP-gamma in Vim's patch
    embedding. Beyond the paper: fusions and adaptors hold the kernels, offsets and weights that they predict, batch
    norm is affine, and the share of the constants is counted rather than set to zero. An image is measured from 0: with
    the usual normalisation, from the mean colour of the data set.

    Args:
        model: a VMamba, Spatial-Mamba, Vim or Mamba-Adaptor with a classifier, or a network of the same layers, in
            evaluation mode, float32 or float64. It is left as it was.
        image: (C, H, W) or (1, C, H, W), prepared as the model expects it, in its dtype.
        cls: the class; None for the one with the largest logit.

    Raises:
        ValueError: a batch, a model in training mode, in half precision or without logits, or a module without a rule;
            the message names it.
        NoSuchPart: a class that is not there.
        RuntimeError: the rules do not give the model's logit, as when a hook changes what a layer returns.
    """
    image = image[None] if image.dim() == 3 else image
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"expected one image (C, H, W) or (1, C, H, W), got {tuple(image.shape)}")
    if any(module.training for module in model.modules()):
        raise ValueError("relevance is that of a model in evaluation mode, this one is training; call model.eval()")
    if image.dtype not in _TOLERANCE:
        raise ValueError(f"relevance takes float32 or float64, got {image.dtype}; call .float() on model and image")
    with torch.no_grad():
        logits = model(image)
    cls = _class(logits, cls)
    constants, x = Constants(), image.detach().clone().requires_grad_(True)
    with by_rules(model, constants), torch.enable_grad():
        found = model(x)[0, cls]
        gradients = torch.autograd.grad(found, [x, *constants.leaves], allow_unused=True)
    if not (found - logits[0, cls]).abs() <= _TOLERANCE[image.dtype] * logits.abs().max().clamp_min(1):
        raise RuntimeError(
            f"by the rules of relevance the logit of class {cls} is {found.item():.6g}, the model gives "
            f"{logits[0, cls].item():.6g}; remove hooks that change what its layers return"
        )
    shares = [_share(leaf, g) for leaf, g in zip([x, *constants.leaves], gradients, strict=True)]
    bias = sum(share.sum().item() for share in shares[1:])
    return Relevance(shares[0][0].sum(0), bias, logits[0, cls].item(), cls)


def _share(source: Tensor, gradient: Tensor | None) -> Tensor:
    """Source times gradient; nothing for a source that the logit does not depend on."""
    source = source.detach().double()
    return torch.zeros_like(source) if gradient is None else source * gradient.double()


def _class(logits: object, cls: int | None) -> int:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits (1, classes) from the model, got {shape}; give it a classifier")
    if cls is None:
        return int(logits[0].argmax())
    if not 0 <= cls < logits.shape[1]:
        raise NoSuchPart(f"there is no class {cls}; the model has {logits.shape[1]}, 0 to {logits.shape[1] - 1}")
    return cls

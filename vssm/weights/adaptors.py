"""Files of adaptors: what was trained around a frozen base, and a fingerprint of that base.

vssm.save_adaptors(model, "pets.safetensors")  # what was trained, a small file
vssm.load_adaptors(base, "pets.safetensors")   # on the same base; refused on another
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vssm._writing import replacing
from vssm.nn.attach import adaptor_config, add_adaptors, has_adaptors
from vssm.weights.errors import CheckpointError

__all__ = ["load_adaptors", "save_adaptors"]

_FORMAT = "vssm adaptors 1"


def save_adaptors(model: nn.Module, path: str | Path) -> Path:
    """Write what trains (`requires_grad`) and the buffers to a .safetensors file, with a fingerprint of the base.

    The file takes its place at the end, or not at all. Raises ValueError for a model without adaptors, or one whose
    base is not frozen: then the whole model is the thing to save.
    """
    path = Path(path)
    config = adaptor_config(model)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    if not frozen:
        raise ValueError("every parameter trains, so there is no base to apply a file to; save the whole model instead")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must be a file that ends in .safetensors")
    tensors = {name: p for name, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())
    persistent = model.state_dict().keys()
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if name in persistent}
    metadata = {"format": _FORMAT, "model": _name(model), "base": _mark(frozen), "adaptors": json.dumps(config)}
    with replacing(path) as new:
        save_file(tensors, new, metadata)
    return path


def load_adaptors(model: nn.Module, path: str | Path) -> nn.Module:
    """Add the adaptors of a file of `save_adaptors` to a base, in place, and what else was trained with them.

    The base must be the one they were trained on, with the same number of classes. Raises CheckpointError, the model
    then unchanged, for a file of another base or kind, and ValueError for a model that has adaptors already.
    """
    path = Path(path)
    if has_adaptors(model):
        raise ValueError(f"{type(model).__name__} has adaptors already; load onto a model without")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no .safetensors file ({error})") from None
    if about.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was not written by save_adaptors")
    if about["model"] != _name(model):
        raise CheckpointError(f"{path} has the adaptors of a {about['model']}, the model is a {_name(model)}")
    frozen = {name: p for name, p in model.named_parameters() if name not in tensors}
    own = model.state_dict()
    strange = [name for name in tensors if name not in own and not re.search(r"\.adaptor_[st]\.", name)]
    if strange:
        raise CheckpointError(f"{path} has {strange[0]}, which a {_name(model)} does not have")
    misshaped = [name for name, t in tensors.items() if name in own and own[name].shape != t.shape]
    if misshaped:
        name = misshaped[0]
        raise CheckpointError(
            f"{path} has {name} of {tuple(tensors[name].shape)}, the model {tuple(own[name].shape)}; build the model "
            "with the number of classes that the adaptors were trained for"
        )
    if _mark(frozen) != about["base"]:
        raise CheckpointError(f"{path} belongs to other weights of {about['model']}; load those it was trained on")
    add_adaptors(model, **json.loads(about["adaptors"]))
    model.load_state_dict(tensors, strict=False)  # the base is there, and what adaptors share goes by one name
    return model


def _name(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture", type(model).__name__)


def _mark(parameters: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

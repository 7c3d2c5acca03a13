"""Files of adaptors: what was trained around a frozen base, and a fingerprint of that base.

vssm.save_adaptors(model, "pets.safetensors")  # what was trained, a small file
vssm.load_adaptors(base, "pets.safetensors")   # on the same base; refused on another
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from vssm._writing import replacing
from vssm.nn.attach import adaptor_config, add_adaptors, has_adaptors
from vssm.weights.errors import CheckpointError
from vssm.weights.match import check_match
from vssm.weights.names import some
from vssm.weights.read import read_safetensors

__all__ = ["load_adaptors", "save_adaptors"]

_FORMAT = "vssm adaptors 1"
_ADAPTOR = re.compile(r"(^|\.)adaptor_[st]\.")
# The options of add_adaptors take some 130 characters.
_MAX_CONFIG = 1000


def save_adaptors(model: nn.Module, path: str | Path, about: Mapping[str, str] | None = None) -> Path:
    """Write adaptors, what else trains (`requires_grad`) and the buffers to a .safetensors file, with a fingerprint of
    the base, and `about` beside it in the file's metadata.

    The file takes its place at the end, or not at all. Raises ValueError for a model without adaptors, or one whose
    base is not frozen: then the whole model is the thing to save.
    """
    path = Path(path)
    config = adaptor_config(model)
    parameters = dict(model.named_parameters())
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad and not _ADAPTOR.search(name)}
    if not frozen:
        raise ValueError("every parameter trains, so there is no base to apply a file to; save the whole model instead")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must be a file that ends in .safetensors")
    tensors = {name: p for name, p in parameters.items() if name not in frozen} | dict(model.named_buffers())
    persistent = model.state_dict().keys()
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if name in persistent}
    metadata = dict(about or {}) | {
        "format": _FORMAT,
        "model": _name(model),
        "base": _mark(frozen),
        "adaptors": json.dumps(config),
    }
    with replacing(path) as new:
        save_file(tensors, new, metadata)
    return path


def load_adaptors(model: nn.Module, path: str | Path) -> nn.Module:
    """Add the adaptors of a file of `save_adaptors` to a base, in place, and what else was trained with them.

    The base must be the one they were trained on, with the same number of classes. The file may come from anyone: it is
    read as `load_checkpoint` reads one. Raises FileNotFoundError and IsADirectoryError where there is no file,
    CheckpointError, the model then unchanged, for a file of another base or kind or with values that no weights can
    have, and ValueError for a model that has adaptors already.
    """
    path = Path(path)
    if has_adaptors(model):
        raise ValueError(f"{type(model).__name__} has adaptors already; load onto a model without")
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was not written by save_adaptors")
    name, stored = _name(model), some([metadata.get("model", "")])
    if stored != name:
        raise CheckpointError(f"{path} has the adaptors of a {stored}, the model is a {name}")
    own = model.state_dict()
    config, expected = _sketch(model, metadata.get("adaptors", ""), path)
    _check_shapes(path, tensors, own)
    check_match(path, tensors, expected | {name: tensor for name, tensor in own.items() if name in tensors})
    frozen = {name: p for name, p in model.named_parameters() if name not in tensors}
    if _mark(frozen) != metadata.get("base"):
        raise CheckpointError(f"{path} belongs to other weights of {stored}; load those it was trained on")
    add_adaptors(model, **config)
    model.load_state_dict(tensors, strict=False)  # the base is there, and what adaptors share goes by one name
    return model


def _sketch(model: nn.Module, text: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The options in a file, and the adaptors that they add to the model, without values: nothing is allocated."""
    broken = f"{path} has no options that add_adaptors takes"
    if len(text) > _MAX_CONFIG:
        raise CheckpointError(f"{broken} (they take {len(text)} characters, more than {_MAX_CONFIG})")
    known = {id(t): t.detach().to("meta") for t in (*model.parameters(), *model.buffers())}
    try:
        config = cast(dict[str, Any], json.loads(text))
        with torch.device("meta"):
            sketch = add_adaptors(copy.deepcopy(model, cast(dict[int, Any], known)), **config)
    except (OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(f"{broken} for this model ({reason})") from error
    before = {name for name, _ in model.named_parameters()}
    state = sketch.state_dict(keep_vars=True)
    named = dict(sketch.named_parameters()) | dict(sketch.named_buffers())
    return config, {name: t for name, t in named.items() if name in state and name not in before}


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for what the base has in another shape: most often a head of other classes."""
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path} has {name} of {tuple(tensor.shape)}, the model {tuple(own[name].shape)}; build the model "
                "with the number of classes that the adaptors were trained for"
            )


def _name(model: nn.Module) -> str:
    cfg = cast(Mapping[str, Any], getattr(model, "pretrained_cfg", None) or {})
    return cfg.get("architecture", type(model).__name__)


def _mark(parameters: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Mamba-Adaptor (arXiv 2505.12685) around the SSMs of a model that exists: as a booster, and for fine-tuning.

model = timm.create_model("vmamba_tiny", num_classes=10)
vssm.load_checkpoint(model, "official.pth", head="reset")
vssm.add_adaptors(model)                       # the same function as before
print(vssm.freeze_base(model))                 # adaptors, norms and head train
...
vssm.save_adaptors(model, "pets.safetensors")  # what was trained, a small file
vssm.load_adaptors(base, "pets.safetensors")   # on the same base; refused on another
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vssm._writing import replacing
from vssm.nn import AdaptorS, AdaptorT, BidirectionalMamba, LayerNorm, RMSNorm
from vssm.nn.choices import check_choice
from vssm.nn.ssm import SSM
from vssm.weights.errors import CheckpointError

_FORMAT = "vssm adaptors 1"
_NORMS = (LayerNorm, RMSNorm, nn.LayerNorm, nn.BatchNorm2d)
_CONFIG = "adaptors"  # attribute of a model that carries adaptors


@dataclass(frozen=True)
class TrainableShare:
    """How many parameters train, of how many."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} parameters train, {share:.2%}"


def add_adaptors(
    model: nn.Module,
    temporal: bool = True,
    spatial: bool = True,
    points: int = 4,
    dilations: Sequence[int] = (1, 3, 5),
    selection: str = "learned",
    share: str = "none",
    parallel: bool = False,
) -> nn.Module:
    """Put adaptors around every SSM of a model, in place; it computes what it did before until they are trained.

    Args:
        model: any network with mixers of this package: VMamba, Spatial-Mamba, Vim, or your own.
        temporal: `AdaptorT` on the states of each scan; behind a state fusion where there is one.
        spatial: `AdaptorS` on the merged map of each mixer.
        points, selection: of `AdaptorT`: sampling points per state; "learned" or "static".
        dilations: of `AdaptorS`.
        share: "none", or "stage": mixers of one stage (of one width, in a row) have their adaptors in common.
        parallel: `AdaptorS` convolves the input of the scan, not its output.

    Returns:
        The model.

    Raises:
        ValueError: a model without SSMs, with adaptors already, with a cascade scan (its states share no grid), or
            neither kind asked for.
    """
    if not temporal and not spatial:
        raise ValueError("temporal and spatial are both False; set one of them to True")
    if _has_adaptors(model):
        raise ValueError(f"{type(model).__name__} has adaptors already; add them once, to the base")
    config = {
        "temporal": temporal, "spatial": spatial, "points": points, "dilations": list(dilations),
        "selection": selection, "share": share, "parallel": parallel,
    }  # fmt: skip
    put_adaptors(model, **config)
    setattr(model, _CONFIG, config)
    return model.train(model.training)


def put_adaptors(
    model: nn.Module,
    temporal: bool,
    spatial: bool,
    points: int,
    dilations: Sequence[int],
    selection: str,
    share: str,
    parallel: bool,
    gain: float = 0.0,
) -> None:
    """`add_adaptors` for a model that is being built, with the adaptors' gain at the start."""
    check_choice("share", share, ("none", "stage"))
    mixers = list(_mixers(model))
    if not mixers:
        raise ValueError(f"{type(model).__name__} contains no SSM to attach an adaptor to")
    if temporal and any(ssm.cascade for mixer in mixers for ssm in _scans(mixer)):
        raise ValueError("the cascade scan has no states on one grid: add spatial adaptors only (temporal=False)")
    like = next(model.parameters())
    made: dict[tuple[Any, ...], nn.Module] = {}

    def make(kind: type[nn.Module], key: tuple[Any, ...], *args: Any) -> nn.Module:
        if share == "none" or key not in made:
            made[key] = kind(*args).to(like.device, like.dtype if like.dtype.is_floating_point else None)
        return made[key]

    stage, width = 0, None
    for mixer in mixers:
        scans = _scans(mixer)
        if scans[0].inner_dim != width:
            stage, width = stage + 1, scans[0].inner_dim
        if temporal:
            for i, ssm in enumerate(scans):
                args = (ssm.inner_dim, len(ssm.routes), points, selection, gain)
                ssm.set_adaptor_t(make(AdaptorT, (stage, "T", i), *args))
        if spatial:
            mixer.set_adaptor_s(make(AdaptorS, (stage, "S"), scans[0].inner_dim, tuple(dilations), parallel))


def freeze_base(model: nn.Module, norms: bool = True, head: bool = True) -> TrainableShare:
    """Leave only the adaptors of a model to train, and its norms and its classifier if wanted.

    Returns what trains; print it. Raises ValueError for a model without adaptors.
    """
    if not _has_adaptors(model):
        raise _no_adaptors(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    train: list[nn.Module] = [m for m in model.modules() if isinstance(m, AdaptorT | AdaptorS)]
    if norms:
        train += [m for m in model.modules() if isinstance(m, _NORMS)]
    if head:
        train.append(model.get_classifier())  # type: ignore[operator]
    for module in train:
        for parameter in module.parameters():
            parameter.requires_grad = True
    parameters = list(model.parameters())
    return TrainableShare(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))


def save_adaptors(model: nn.Module, path: str | Path) -> Path:
    """Write what trains (`requires_grad`) and the buffers to a .safetensors file, with a fingerprint of the frozen base.

    The file takes its place at the end, or not at all. Raises ValueError for a model without adaptors, or one whose
    base is not frozen: then the whole model is the thing to save.
    """
    path = Path(path)
    config = _config_of(model)
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
    if _has_adaptors(model):
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


def _mixers(model: nn.Module) -> Iterator[Any]:
    """The modules that take an adaptor_s, in order: mixers of one scan, and those of two branches."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, BidirectionalMamba):
            inside |= {id(module.forward_branch), id(module.backward_branch)}
            yield module
        elif isinstance(module, SSM) and id(module) not in inside:
            yield module


def _scans(mixer: Any) -> list[SSM]:
    if isinstance(mixer, BidirectionalMamba):
        return [mixer.forward_branch, mixer.backward_branch]
    return [mixer]


def _has_adaptors(model: nn.Module) -> bool:
    return any(isinstance(m, AdaptorT | AdaptorS) for m in model.modules())


def _no_adaptors(model: nn.Module) -> ValueError:
    return ValueError(f"{type(model).__name__} has no adaptors; vssm.add_adaptors(model) adds them")


def _config_of(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, _CONFIG, None)
    if config is None and _has_adaptors(model):
        raise ValueError(
            f"{type(model).__name__} was built with its adaptors and has no base without; save the whole model"
        )
    if config is None:
        raise _no_adaptors(model)
    return config


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

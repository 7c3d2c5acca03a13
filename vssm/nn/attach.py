"""Attach Mamba-Adaptor's modules (arXiv 2505.12685) to the SSMs of a model that exists, and freeze the rest.

model = timm.create_model("vmamba_tiny", num_classes=10)
vssm.load_checkpoint(model, "official.pth", head="reset")
vssm.add_adaptors(model)                       # the same function as before
print(vssm.freeze_base(model))                 # adaptors, norms and head train

`vssm.weights.adaptors` saves and loads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vssm.nn.adaptor import AdaptorS, AdaptorT
from vssm.nn.bimamba import BidirectionalMamba
from vssm.nn.choices import check_choice
from vssm.nn.norm import LayerNorm, RMSNorm
from vssm.nn.ssm import SSM

__all__ = ["TrainableShare", "adaptor_config", "add_adaptors", "freeze_base", "has_adaptors", "put_adaptors"]

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
    if has_adaptors(model):
        raise ValueError(f"{type(model).__name__} has adaptors already; add them once, to the base")
    config: dict[str, Any] = {
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
    if not has_adaptors(model):
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


def has_adaptors(model: nn.Module) -> bool:
    """Whether a model has adaptors, attached or built in."""
    return any(isinstance(m, AdaptorT | AdaptorS) for m in model.modules())


def _no_adaptors(model: nn.Module) -> ValueError:
    return ValueError(f"{type(model).__name__} has no adaptors; vssm.add_adaptors(model) adds them")


def adaptor_config(model: nn.Module) -> dict[str, Any]:
    """The options that `add_adaptors` was called with. ValueError for a model that it was not called with."""
    config = getattr(model, _CONFIG, None)
    if config is None and has_adaptors(model):
        raise ValueError(
            f"{type(model).__name__} was built with its adaptors and has no base without; save the whole model"
        )
    if config is None:
        raise _no_adaptors(model)
    return config

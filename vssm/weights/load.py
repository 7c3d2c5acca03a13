"""Putting a checkpoint into a model: every name accounted for before anything is copied."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vssm.weights.errors import CheckpointError
from vssm.weights.heads import CLASSIFIERS, is_head, to_our_heads
from vssm.weights.match import check_match, classifier_prefixes, to_names_of
from vssm.weights.names import check_distinct, some
from vssm.weights.position import resize_map, resize_positions, resize_timm_positions, square_grid
from vssm.weights.read import MAX_BYTES, Checkpoint, read_checkpoint, take_state_dict
from vssm.weights.rename import OURS, SPATIAL_MAMBA, VIM, VMAMBA, family_of, to_ours
from vssm.weights.tensors import check_values

__all__ = ["LoadReport", "checkpoint_filter_fn", "load_checkpoint", "to_our_names"]

_HEAD = "head.fc."
_POSITIONS = ("pos_embed.weight", "pos_embed")  # a map; the tokens of Vim
# How the weights of a network begin, whatever wraps it.
_ANCHOR = re.compile(r"(.*?)(stem\.conv1\.|stages[._]\d+\.|patch_embed\.|layers\.\d+\.(blocks|downsample)\.)")


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    loaded: tensors copied. entry: where the file kept them ("model", "model_ema", "state_dict" or "").
    unused: names of the file (ours, for a network's weights) that the model does not have.
    initialised: names of the model that the file has nothing for and that keep their initial values.
    resized: what became of a position embedding for another image size, or "".
    kept: names that are no family's and that `convert` wrote as they are.
    """

    path: Path
    family: str
    entry: str
    loaded: int
    unused: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    resized: str = ""
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors from {self.path}" + (f" ({self.entry})" if self.entry else "")]
        if self.unused:
            lines.append(f"not used, {len(self.unused)}: {some(self.unused)}")
        if self.initialised:
            lines.append(f"left at their initial values, {len(self.initialised)}: {some(self.initialised)}")
        if self.kept:
            lines.append(f"names of no rule, left as they are, {len(self.kept)}: {some(self.kept)}")
        if self.resized:
            lines.append(self.resized)
        return "\n".join(lines)


def load_checkpoint(
    model: nn.Module, path: str | Path, head: str = "strict", ema: bool = False, max_bytes: int = MAX_BYTES
) -> LoadReport:
    """Load a weights file into a model: of this package, timm's feature wrapper around one, or any other timm model.

    Args:
        model: a VMamba, Spatial-Mamba, Vim or Mamba-Adaptor model, the result of `features_only=True`, a detector or a
            segmentation network of `vssm.tasks` around one, or another model of timm, which takes files under its own
            names.
        path: .pth or .safetensors: the authors' classification files, mmdet / mmseg files (a detector takes all of one,
            a backbone its "backbone." part), checkpoints of `vssm fit` and of timm, plain state dicts. Prefixes of
            wrappers ("module.", "_orig_mod.", "model.") do not matter. See `vssm.weights.read.read_checkpoint`.
        head: "strict", or "reset": leave the file's classifier out and keep the model's own, for other classes.
        ema: take the averaged weights ("model_ema", "state_dict_ema") that a training file keeps beside the raw ones.
            The default is the entry that the official loaders read ("model").
        max_bytes: refuse a larger file.

    Returns:
        A report. A model without a classifier leaves a file's head and norm unused; out_norms, and the parts around a
        backbone, that the file does not have keep their initial values. All are listed, nothing else is tolerated.

    Raises:
        FileNotFoundError, IsADirectoryError: no file there.
        CheckpointError: an unreadable file, or one whose names or shapes differ; the first of each kind are listed.
            The model is then unchanged.
    """
    if head not in ("strict", "reset"):
        raise ValueError(f"unknown head {head!r}: choose one of strict, reset")
    checkpoint = read_checkpoint(path, ema, max_bytes)
    target = _target(model)
    ours = family_of(target) == OURS
    around, own_around = dict[str, Tensor](), dict[str, Tensor]()
    if ours:
        source, foreign, family = to_our_names(checkpoint.tensors, str(path))
        _check_family(checkpoint.path, family, target, source)
        own_around = _around_backbone(model, target)
        around = _find_around(own_around, checkpoint, foreign)
        foreign = [] if around else foreign
    else:
        source, foreign = to_names_of(target, checkpoint.tensors, str(path))
        family = type(model).__name__
    classifiers = (_HEAD,) if ours else classifier_prefixes(model)

    unused = list(foreign)
    if head == "reset":
        if not classifiers:
            raise ValueError(f"{type(model).__name__} names no classifier to reset (pretrained_cfg['classifier'])")
        unused += [name for name in source if name.startswith(classifiers)]
        unused += [name for name in around if CLASSIFIERS.match(name)]
        source = {name: tensor for name, tensor in source.items() if not name.startswith(classifiers)}
        around = {name: tensor for name, tensor in around.items() if not CLASSIFIERS.match(name)}
    unknown = [name for name in source if name not in target]
    tolerated = {name for name in unknown if ours and _is_beyond(name, target)}
    unused += [name for name in unknown if name in tolerated]
    absent = [name for name in target if name not in source]
    initialised = [name for name in absent if _may_be_absent(name, source, classifiers if head == "reset" else ())]
    if around:  # everything, or everything but the classifiers
        source |= around
        target |= {name: (name, tensor) for name, tensor in own_around.items()}
        initialised += [name for name in own_around if head == "reset" and CLASSIFIERS.match(name)]

    own = {name: tensor for name, (_, tensor) in target.items()}
    resized = _resize_positions(source, own, model) if ours else resize_timm_positions(source, model)
    left_alone = tolerated | set(initialised)
    check_match(
        checkpoint.path,
        {name: tensor for name, tensor in source.items() if name not in left_alone},
        {name: tensor for name, tensor in own.items() if name not in left_alone},
        classifiers,
    )
    initialised += [name for name in own_around if not around]
    found = {name: source[name] for name in target if name in source}
    model.load_state_dict({target[name][0]: tensor for name, tensor in found.items()}, strict=False)
    return LoadReport(
        checkpoint.path, family or "", checkpoint.entry, len(found), tuple(unused), tuple(initialised), resized
    )


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook: a file's content, in any form `load_checkpoint` reads, under our names."""
    tensors, _ = take_state_dict(state_dict, ema=False, origin="the checkpoint")
    source, _, _ = to_our_names(tensors, "the checkpoint")
    resized = _resize_positions(source, model.state_dict(), model)
    if resized:
        warnings.warn(f"vssm: {resized}", stacklevel=2)
    check_values("the checkpoint", source)
    return source


def to_our_names(
    tensors: Mapping[str, Tensor], origin: str = "the file"
) -> tuple[dict[str, Tensor], list[str], str | None]:
    """A network's tensors under our names, the names that belong to something else, and the family.

    A prefix ("backbone.", "module.", "model.") is found by where the network begins; what does not carry it, such as
    the neck of a detector, is foreign.
    """
    prefix = _prefix(tensors)
    names = {name: _canonical(name, prefix) for name in tensors if name.startswith(prefix)}
    check_distinct(names, origin)
    own = {canonical: tensors[name] for name, canonical in names.items()}
    foreign = [name for name in tensors if not name.startswith(prefix)]
    family = family_of(own)
    return (to_ours(own, family, origin) if family else own), foreign, family


def _prefix(names: Mapping[str, object]) -> str:
    for name in names:
        if match := _ANCHOR.match(name):
            return match[1]
    return ""


def _canonical(name: str, prefix: str) -> str:
    """Without its prefix, and as timm's feature lists (stages_0) name it without them."""
    return re.sub(r"^stages_(\d+)\.", r"stages.\1.", name[len(prefix) :])


def _target(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Name of the network -> (name in the model, tensor); for one of ours without what is wrapped around it."""
    state = model.state_dict()
    prefix = _prefix(state)
    ours = {_canonical(n, prefix): (n, t) for n, t in state.items() if n.startswith(prefix)}
    return ours if family_of(ours) == OURS else {name: (name, tensor) for name, tensor in state.items()}


def _around_backbone(model: nn.Module, target: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What a model has besides the network of ours in it: the parts of a detector, say."""
    inside = {name for name, _ in target.values()}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in inside}


def _find_around(own: Mapping[str, Tensor], checkpoint: Checkpoint, foreign: Sequence[str]) -> dict[str, Tensor]:
    """What a file has of the same parts, under our names; nothing where it is of a backbone or a classifier alone."""
    wrapper, _, _ = _prefix(checkpoint.tensors).rpartition("backbone.")
    found = to_our_heads(
        {name.removeprefix(wrapper): checkpoint.tensors[name] for name in foreign}, str(checkpoint.path)
    )
    if own and any(name in own for name in found):
        return found
    if own and any(is_head(name.removeprefix(wrapper)) for name in foreign):
        raise CheckpointError(
            f"{checkpoint.path} holds another network around its backbone than the model ({some(list(found))}); load "
            "it into the model's backbone alone: load_checkpoint(model.backbone, ...)"
        )
    return {}


def _check_family(path: Path, family: str | None, target: Mapping[str, object], source: Mapping[str, object]) -> None:
    expected = VIM if any(".forward_branch." in name for name in target) else VMAMBA
    expected = SPATIAL_MAMBA if any(".cpe1." in name for name in target) else expected
    if family is None:
        raise CheckpointError(
            f"{path} holds no VMamba, Spatial-Mamba or Vim weights; its names begin with {some(list(source))}"
        )
    if family in (VMAMBA, SPATIAL_MAMBA, VIM) and family != expected:
        raise CheckpointError(f"{path} holds {family} weights, the model is a {expected}")


def _is_beyond(name: str, target: Mapping[str, object]) -> bool:
    """Does `name` belong to a part that this model was built without: classifier, later stages, output norms?"""
    if name.startswith("out_norms."):
        return not any(n.startswith("out_norms.") for n in target)
    if any(n.startswith(_HEAD) for n in target):
        return False
    if name.startswith("head."):
        return True
    if name.startswith("norm."):
        return "norm.weight" not in target
    stage = re.match(r"(stages|blocks)\.(\d+)\.", name)
    return stage is not None and not any(n.startswith(stage[0]) for n in target)


def _may_be_absent(name: str, source: Mapping[str, object], classifiers: tuple[str, ...]) -> bool:
    """Output norms, which classifiers do not have, and the classifiers that are left out."""
    if name.startswith("out_norms."):
        return not any(n.startswith("out_norms.") for n in source)
    return name.startswith(classifiers)


def _resize_positions(source: dict[str, Tensor], target: Mapping[str, Tensor], model: nn.Module) -> str:
    """Puts a position embedding of `source` on the model's grid and reports it; "" when there was nothing to do."""
    for name in _POSITIONS:
        if name not in source or name not in target or source[name].shape == target[name].shape:
            continue
        have, want = source[name], target[name]
        if not have.numel() or not have.is_floating_point():
            continue
        if have.dim() == want.dim() == 4:
            old, new = (have.shape[2], have.shape[3]), (want.shape[2], want.shape[3])
            source[name] = resize_map(have, *new)
        else:
            class_token = "cls_token" in source
            side = square_grid(have, class_token) if have.dim() == 3 else None
            grids = (vars(module).get("grid") for module in model.modules())
            new = next((grid for grid in grids if grid is not None), None)
            if side is None or new is None:
                continue
            old = side, side
            source[name] = resize_positions(have, *old, *new)
        return f"position embedding resized from {old[0]}x{old[1]} to {new[0]}x{new[1]}"
    return ""

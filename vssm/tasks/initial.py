"""Weights that a network around a backbone starts from: of a classifier, or of such a network."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vssm.data.imagefolder import some
from vssm.tasks.backbone import NormedMaps
from vssm.weights import load_checkpoint
from vssm.weights.match import check_match, to_names_of
from vssm.weights.read import read_checkpoint


def load_initial(model: nn.Module, file: Path | None, head: str) -> tuple[str, ...]:
    """Loads `file` into the backbone in `model`, or into all of it where the file has the heads too.

    file: None for random weights.
    head: "strict", or "reset": of a file with heads, leave out those layers that depend on the number of classes.

    Returns sentences about what keeps its initial values. Raises OSError or ValueError that names the file when it
    does not fit.
    """
    if file is None:
        return (
            "the backbone starts from random weights; heads learn far slower on it than on a trained one "
            "(--init-from CHECKPOINT of a classifier, or --pretrained)",
        )
    for prefix, module in model.named_modules():
        if isinstance(module, NormedMaps):
            return _load_of_timm(model, prefix, module, file)
    report = load_checkpoint(model, file, head=head)
    return _notes(file, report.loaded, report.initialised)


def _load_of_timm(model: nn.Module, prefix: str, backbone: NormedMaps, file: Path) -> tuple[str, ...]:
    """A whole network's file by its own names, or a classifier's by those of timm's model; timm's list of features
    spells stages.0 as stages_0."""
    tensors, own = read_checkpoint(file).tensors, model.state_dict()
    whole, _ = to_names_of(own, tensors, str(file))
    if any(name in own and not name.startswith(f"{prefix}.") for name in whole):
        check_match(file, whole, own)
        model.load_state_dict(whole)
        return ()
    state = backbone.net.state_dict()
    spelled = {re.sub(r"^(\w*?[a-z])_(\d+)\.", r"\1.\2.", name): name for name in state}
    source, _ = to_names_of(spelled, tensors, str(file))
    found = {spelled[name]: tensor for name, tensor in source.items() if name in spelled}
    check_match(file, found, state)  # what the file has beyond: its classifier
    backbone.net.load_state_dict(found)
    left = [name for name in own if not name.startswith(f"{prefix}.net.")]
    return _notes(file, len(found), left)


def _notes(file: Path, loaded: int, initialised: Sequence[str]) -> tuple[str, ...]:
    if not initialised:
        return ()
    return (f"{loaded} tensors start from {file}, {len(initialised)} from random weights: {some(list(initialised))}",)

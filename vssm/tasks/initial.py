"""Weights that a network around a backbone starts from: of a classifier, or of such a network."""

from pathlib import Path
from typing import Any

from vssm.weights import load_checkpoint
from vssm.weights.match import check_match, to_names_of
from vssm.weights.read import read_checkpoint


def load_initial(model: Any, file: Path | None, head: str) -> tuple[str, ...]:
    """Loads `file` into `model.backbone`, or into all of `model` where it has the heads too; None: random weights.

    head: "strict", or "reset": of a file with heads, take the backbone alone.

    Returns sentences about what keeps its initial values. Raises OSError or ValueError that names the file when it
    does not fit.
    """
    if file is None:
        return (
            "the backbone starts from random weights; heads learn far slower on it than on a trained one "
            "(--init-from CHECKPOINT of a classifier, or --pretrained)",
        )
    names = read_checkpoint(file).tensors
    heads = [name for name in model.state_dict() if not name.startswith("backbone.")]
    own, _ = to_names_of(model.state_dict(), names, str(file))
    if head == "strict" and any(name in own for name in heads):
        check_match(file, own, model.state_dict())
        model.load_state_dict(own)
        return ()
    report = load_checkpoint(model.backbone, file, head="strict")
    notes = [f"the backbone starts from {file} ({report.loaded} tensors), the heads from random weights"]
    if report.initialised:
        notes.append(f"left at their initial values: {', '.join(report.initialised[:4])} and so on")
    return tuple(notes)

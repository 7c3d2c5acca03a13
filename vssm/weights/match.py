"""The names of a file beside those of a model: what fits, and the error when it does not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from timm.models import clean_state_dict
from torch import Tensor, nn

from vssm.weights.errors import CheckpointError
from vssm.weights.names import check_distinct, some
from vssm.weights.tensors import check_plain, check_values

__all__ = ["check_match", "classifier_prefixes", "to_names_of"]


def to_names_of(
    target: Mapping[str, object], tensors: Mapping[str, Tensor], origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under a model's own names, and the names that belong to something else.

    Wrappers' prefixes are taken off by timm, and then what most of the file's names have before a name of `target`
    ("model.", "task.model."). What does not carry that, such as the weights of a loss, is foreign.
    """
    check_distinct({name: next(iter(clean_state_dict({name: None}))) for name in tensors}, origin)
    cleaned: dict[str, Tensor] = clean_state_dict(dict(tensors))
    prefix = _prefix_before(target, cleaned)
    own = {name.removeprefix(prefix): tensor for name, tensor in cleaned.items() if name.startswith(prefix)}
    return own, [name for name in cleaned if not name.startswith(prefix)]


def _prefix_before(target: Mapping[str, object], names: Mapping[str, object]) -> str:
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        at = next((at for at in range(len(parts)) if ".".join(parts[at:]) in target), None)
        if at is not None:
            found["".join(f"{part}." for part in parts[:at])] += 1
    return found.most_common(1)[0][0] if found else ""


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of a timm model's classifiers begin; () for a model that names none."""
    cfg = cast(Mapping[str, Any], getattr(model, "pretrained_cfg", None) or {})
    classifier: str | Sequence[str] = cfg.get("classifier") or ()
    return tuple(f"{prefix}." for prefix in ((classifier,) if isinstance(classifier, str) else classifier))


def check_match(
    path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor], classifiers: tuple[str, ...] = ()
) -> None:
    """Raises CheckpointError that lists what is missing, unexpected, or of another shape or kind than the model's own,
    and what is not finite.

    classifiers: how the names of the model's classifiers begin, for the remedy when the number of classes differs.
    """
    check_plain(str(path), found)
    missing = [name for name in own if name not in found]
    unexpected = [name for name in found if name not in own]
    shapes = {
        n: (tuple(t.shape), tuple(own[n].shape)) for n, t in found.items() if n in own and t.shape != own[n].shape
    }
    if not (missing or unexpected or shapes):
        check_values(str(path), found, own)
        return
    lines = [f"{path} does not fit the model; nothing was loaded."]
    if missing:
        lines.append(f"missing, {len(missing)}: {some(missing)}")
    if unexpected:
        lines.append(f"unexpected, {len(unexpected)}: {some(unexpected)}")
    if shapes:
        listed = [f"{name} {got} instead of {want}" for name, (got, want) in shapes.items()]
        lines.append(f"other shapes, {len(listed)}: {some(listed)}")
    for name in (f"{prefix}weight" for prefix in classifiers):
        if name in shapes:
            (has, *_), (wants, *_) = shapes[name]
            lines.append(f"The file has {has} classes, the model {wants}: head='reset' keeps the model's classifier.")
            break
    raise CheckpointError("\n".join(lines))

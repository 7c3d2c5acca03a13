"""Reading the checkpoints that `vssm fit` wrote. Needs torch and timm, not Lightning."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from vssm.data.preprocess import Preprocess
from vssm.tasks.classification import create_classifier
from vssm.train.run_dir import checkpoint_file
from vssm.train.settings import Settings
from vssm.weights.read import read_content

PREFIX = "task.model."


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint of `vssm fit` knows: the settings, the classes, the preprocessing, the (averaged) weights."""

    settings: Settings
    classes: tuple[str, ...]
    preprocess: Preprocess
    weights: dict[str, Tensor]

    def create_model(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        chosen = self.settings.model
        model = create_classifier(
            chosen.name, len(self.classes), self.preprocess.channels, drop_path=chosen.drop_path, **chosen.args
        )
        model.load_state_dict(self.weights)
        return model.eval()


def read_checkpoint(path: str | Path) -> TrainedModel:
    """Raises OSError or ValueError that names the file when it is not a checkpoint of `vssm fit`."""
    file = checkpoint_file(path)
    content = read_content(file)
    if not isinstance(content, dict) or not isinstance(content.get("vssm"), dict):
        raise ValueError(f"{file} was not written by `vssm fit`; for other weights name the model too (--model NAME)")
    about = content["vssm"]
    if about.get("format") != 1:
        raise ValueError(f"{file} has format {about.get('format')!r}; this version of vssm reads format 1")
    return TrainedModel(
        Settings.from_dict(about["settings"]),
        tuple(about["classes"]),
        Preprocess.from_dict(about["preprocess"]),
        {n.removeprefix(PREFIX): v for n, v in content["state_dict"].items() if n.startswith(PREFIX)},
    )


def is_ours(path: str | Path) -> bool:
    """Whether a file or folder was written by `vssm fit`."""
    file = checkpoint_file(path)
    if file.suffix == ".safetensors":
        return False
    content = read_content(file)
    return isinstance(content, dict) and "vssm" in content


def load_weights(model: nn.Module, path: str | Path, head: str = "strict") -> None:
    """Starts `model` from a checkpoint: of ours, official, or (other timm models) a state dict under timm's names.

    `head="reset"` keeps the model's own fresh classifier. Raises OSError or ValueError that names the file and the
    first names that differ; nothing is loaded in part.
    """
    from vssm.models import Hierarchy
    from vssm.weights import load_checkpoint

    file = checkpoint_file(path)
    if isinstance(model, Hierarchy):
        load_checkpoint(model, file, head=head)
    else:
        _load_timm(model, file, head)


def _load_timm(model: nn.Module, file: Path, head: str) -> None:
    from vssm.weights import read_checkpoint

    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_checkpoint(file).tensors.items()}
    own = model.state_dict()
    if head == "reset":
        classifier = model.pretrained_cfg["classifier"]  # type: ignore[index]
        prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        prefixes = tuple(f"{prefix}." for prefix in prefixes)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
        tensors |= {name: tensor for name, tensor in own.items() if name.startswith(prefixes)}
    for problem, names in {
        "lacks": own.keys() - tensors.keys(),
        "has, beyond the model,": tensors.keys() - own.keys(),
        "has in another shape": {n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape},
    }.items():
        if names:
            raise ValueError(
                f"{file} {problem} {len(names)} names, the first {min(names)}; another model or class count"
            )
    model.load_state_dict(tensors)

"""The folder that goes to the Hub: config.json and model.safetensors as timm writes them, and the card."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import ModelCard
from timm.models import save_for_hf
from torch import nn

from vssm.data.preprocess import Preprocess
from vssm.hub.card import Card
from vssm.hub.errors import HubError
from vssm.hub.run import read_run

__all__ = ["CARD", "CONFIG", "WEIGHTS", "check_folder", "write_folder"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def write_folder(run: str | Path, out: str | Path, card: Card) -> Path:
    """Write a run's best classifier as timm's hub models are stored, with its card; returns `out`.

    The folder is complete or not there: it is written beside `out`, loaded again by timm, compared with the model of
    the run (weights, and outputs for one image), and only then takes its place.

    Raises HubError for a card with gaps or a model that timm does not build again, FileExistsError where `out` is.
    """
    text, out = card.text(), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder, or remove it")
    stored = read_run(run)
    model = stored.create_model()
    preprocess = stored.preprocess
    assert isinstance(preprocess, Preprocess)
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_for_hf(
            model,
            str(scratch),
            model_config={"label_names": list(stored.classes)},
            safe_serialization=True,
            data_config=preprocess.as_dict(),
        )
        _name_classes_once(scratch / CONFIG)
        (scratch / CARD).write_text(text, encoding="utf-8")
        _check_same(model, scratch, preprocess)
        for file in scratch.iterdir():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _name_classes_once(config: Path) -> None:
    """timm stores the number of classes twice; transformers takes it from the top and fails on that of `model_args`."""
    plain = cast(dict[str, Any], json.loads(config.read_text(encoding="utf-8")))
    plain["model_args"] = {k: v for k, v in plain.get("model_args", {}).items() if k != "num_classes"}
    config.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def _check_same(model: nn.Module, folder: Path, preprocess: Preprocess) -> None:
    """Raises HubError unless timm builds the same network from the folder."""
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    own, found = model.state_dict(), again.state_dict()
    same = own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own)
    image = torch.rand(1, *preprocess.input_size, generator=torch.Generator().manual_seed(0))
    if not same or not torch.allclose(model(image), again(image), rtol=1e-4, atol=1e-5):
        raise HubError(
            "timm does not build the same network from config.json (an argument of the model that it does not store?); "
            "share the checkpoint as a file instead"
        )


def check_folder(folder: str | Path) -> Path:
    """A folder of `write_folder`, its card perhaps edited since. Raises HubError that names what is missing."""
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS, CARD) if not (folder / name).is_file()]
    if missing:
        raise HubError(f"{folder} lacks {', '.join(missing)}; write it with `vssm push RUN_DIR OWNER/NAME --dry-run`")
    try:
        config = cast(dict[str, Any], json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        architecture = config["architecture"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise HubError(f"{folder / CONFIG} is damaged ({error}); write the folder again") from error
    card = ModelCard.load(folder / CARD, ignore_metadata_errors=True)
    if not card.data.to_dict().get("license"):
        raise HubError(f"{folder / CARD} names no license in its first lines; add `license: NAME` between the ---")
    if not timm.is_model(architecture):
        raise HubError(f"{folder / CONFIG} is of {architecture!r}, which is no model of timm or of this package")
    return folder

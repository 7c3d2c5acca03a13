"""Official files to ours."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from vssm._words import printable
from vssm._writing import replacing
from vssm.weights.errors import CheckpointError
from vssm.weights.load import LoadReport, to_our_names
from vssm.weights.names import some
from vssm.weights.read import read_checkpoint
from vssm.weights.rename import is_ours
from vssm.weights.tensors import check_values

__all__ = ["convert"]

_A_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def convert(src: str | Path, dst: str | Path, ema: bool = False) -> LoadReport:
    """Write the network's weights in `src` to `dst` as safetensors under our names.

    Args:
        src: whatever `load_checkpoint` reads.
        dst: a path ending in .safetensors; replaced at once, or not at all.
        ema: convert the averaged weights of `src`.

    Raises:
        CheckpointError: `src` is no checkpoint of these families or has values that no network of theirs can have, or
            `dst` is not a .safetensors path.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".safetensors" or dst.is_dir():
        raise CheckpointError(f"{dst} must be a file that ends in .safetensors")
    if not dst.parent.is_dir():
        raise CheckpointError(f"there is no folder {dst.parent} to write {dst.name} in")
    checkpoint = read_checkpoint(src, ema)
    tensors, foreign, family = to_our_names(checkpoint.tensors, str(src))
    if family is None:
        raise CheckpointError(
            f"{src} holds no VMamba, Spatial-Mamba or Vim weights; it has {some(list(tensors))}. Other models need no "
            "conversion: timm's load_checkpoint reads their files"
        )
    strange = [name for name in tensors if not _A_NAME.fullmatch(name)]
    if strange:
        raise CheckpointError(f"{src} has names that no module can have: {some(strange)}; remove them")
    check_values(str(src), tensors)
    metadata = {"format": "pt", "source": printable(src.name), "family": family}
    with replacing(dst) as new:
        # Copies, for safetensors does not write two names for one piece of memory.
        save_file(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
            new,
            metadata,
        )
    kept = tuple(name for name in tensors if not is_ours(name))
    return LoadReport(dst, family, checkpoint.entry, len(tensors), tuple(foreign), kept=kept)

"""Official files to ours."""

from pathlib import Path

from safetensors.torch import save_file

from vssm._writing import replacing
from vssm.weights.load import LoadReport, to_our_names
from vssm.weights.read import CheckpointError, read_checkpoint


def convert(src: str | Path, dst: str | Path, ema: bool = False) -> LoadReport:
    """Write the network's weights in `src` to `dst` as safetensors under our names.

    Args:
        src: whatever `load_checkpoint` reads.
        dst: a path ending in .safetensors; replaced at once, or not at all.
        ema: convert the averaged weights of `src`.

    Raises:
        CheckpointError: `src` is no checkpoint of these families, or `dst` is not a .safetensors path.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".safetensors" or dst.is_dir():
        raise CheckpointError(f"{dst} must be a file that ends in .safetensors")
    if not dst.parent.is_dir():
        raise CheckpointError(f"there is no folder {dst.parent} to write {dst.name} in")
    checkpoint = read_checkpoint(src, ema)
    tensors, foreign, family = to_our_names(checkpoint.tensors)
    if family is None:
        raise CheckpointError(f"{src} holds no VMamba, Spatial-Mamba or Vim weights; it has {next(iter(tensors))}, ...")
    metadata = {"format": "pt", "source": src.name, "family": family}
    with replacing(dst) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata)
    return LoadReport(dst, family, checkpoint.entry, len(tensors), tuple(foreign))

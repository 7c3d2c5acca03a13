"""A network to a file: exported, written aside, checked, moved into place."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vssm._writing import naming, sync, sync_folder
from vssm.data.preprocess import Preparation
from vssm.export.check import Checked, check
from vssm.export.formats import FORMATS, check_packages, format_of
from vssm.export.metadata import EXTRA_FILE, Metadata, versions_of
from vssm.export.program import Features, trace
from vssm.export.sizes import Sizes

__all__ = ["TOLERANCE", "Exported", "export"]

# Of the outputs, over the largest of them.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """The file, its size in bytes (with its weights, where they lie beside it), what it says about itself, and how it
    compares with the network it was made of."""

    path: Path
    bytes: int
    metadata: Metadata
    checked: tuple[Checked, ...]


def export(
    model: nn.Module,
    preprocess: Preparation,
    path: str | Path,
    format: str | None = None,
    dynamic: Sequence[str] = ("batch",),
    classes: Sequence[str] = (),
    name: str = "",
    features: bool = False,
) -> Exported:
    """Write a network to `path`.

    Input "image" (B, C, H, W), float32, normalised as `preprocess` says (the file does not normalise); output "logits"
    (B, classes), or with `features` "stage0", "stage1", ... (B, C, h, w).

    Args:
        model: a classifier of this package or of timm; its weights and mode are left alone.
        preprocess: how its images are prepared, and their size, which the file fixes unless `dynamic` frees it.
        format: "onnx" (Scan for every scan), "pt2" (`torch.export.load`) or "openvino" (.xml, with the weights in a
            .bin beside it); None: by the ending of `path`.
        dynamic: sizes that stay free, of "batch", "height" and "width"; those that do not are 1 and the size of
            `preprocess`. In a .pt2 both sides are free when one is.
        classes, name: stored with the preprocessing and the versions, see `read_metadata`.
        features: the maps of the stages in place of logits.

    Before the file takes its place it is run in a new process, in onnxruntime, torch or OpenVINO without this package,
    on random images and on photographs (of scikit-image, where it is installed), at several of the sizes that are free.

    Raises ValueError, and leaves no file, when its results are further than 1e-4 of the largest from the network's, for
    unknown formats or sizes, and when a package is missing; OSError when the file cannot be written.
    """
    path = Path(path)
    format = _checked_format(path, format)
    sizes = Sizes.of(model, preprocess.input_size, dynamic)
    with _evaluating(model):
        network = Features(model).eval() if features else model
        program = trace(network, sizes)
        outputs = _outputs(program, features)
        free = sizes.traced() if format == "pt2" else sizes.dynamic
        task = "features" if features else "classification"
        about = Metadata(name, task, tuple(classes), preprocess, free, outputs, "fp32", versions_of(format))
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as folder:
            new = Path(folder) / f"{path.stem}{FORMATS[format].suffix}"
            _write(program, new, format, about, sizes)
            checked = tuple(check(network, new, format, sizes.shapes(), preprocess))
            _accept(path, checked)
            size = _move(new, path)
    return Exported(path, size, about, checked)


def _checked_format(path: Path, format: str | None) -> str:
    if format is None:
        format = format_of(path)
    elif format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    elif path.suffix.lower() != FORMATS[format].suffix:
        raise ValueError(f"{path} must end in {FORMATS[format].suffix}, as the format {format} says")
    check_packages(format)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.parent} is not there; make the folder first")
    return format


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and each module as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _outputs(program: torch.export.ExportedProgram, features: bool) -> tuple[str, ...]:
    count = len(program.graph_signature.user_outputs)
    return tuple(f"stage{number}" for number in range(count)) if features else ("logits",)


def _write(program: torch.export.ExportedProgram, path: Path, format: str, about: Metadata, sizes: Sizes) -> None:
    if format == "pt2":
        torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(about.as_strings())})
        return
    from vssm.export.onnx_file import convert, write_onnx

    stored = path.with_suffix(".onnx")
    write_onnx(convert(program, about.outputs, sizes), stored, about)
    if format == "openvino":
        from vssm.export.openvino_file import write_openvino

        write_openvino(stored, path, about)


def _accept(path: Path, checked: Sequence[Checked]) -> None:
    worst = max(checked, key=lambda one: (one.error != one.error, one.error))
    if not worst.error <= TOLERANCE:
        height, width = worst.size
        raise ValueError(
            f"{path} was not written: in {worst.runtime} its results are {worst.error:.1e} of the largest away from "
            f"the network's (at most {TOLERANCE:.0e}), at batch {worst.batch} of {height} x {width}, {worst.images}"
        )


def _move(new: Path, path: Path) -> int:
    """The file to its place, and its weights; bytes of both. A description without its weights is never there."""
    from vssm.export.openvino_file import weights_of

    files = [path]
    with naming(path):
        if new.suffix == FORMATS["openvino"].suffix:
            sync(weights_of(new))
            path.unlink(missing_ok=True)
            weights_of(new).replace(weights_of(path))
            files.append(weights_of(path))
        sync(new)
        new.replace(path)
        sync_folder(path.absolute().parent)
    return sum(file.stat().st_size for file in files)

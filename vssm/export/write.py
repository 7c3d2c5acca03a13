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
from vssm.export.program import Features, Half, trace
from vssm.export.sizes import Sizes

__all__ = ["TOLERANCE", "Exported", "export"]

# Largest difference of the outputs over the largest of them.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}
OUTPUTS = {"classification": "logits", "segmentation": "scores"}
# What is written of a detector; torch and AOTInductor would need torchvision to run it.
DETECTORS = ("onnx",)


@dataclass(frozen=True)
class Exported:
    """The file, its size in bytes (with its weights, where they lie beside it), what it says about itself, and how it
    compares with the network it was made of. quantized: the share of the multiply-adds that is in int8."""

    path: Path
    bytes: int
    metadata: Metadata
    checked: tuple[Checked, ...]
    quantized: float = 0.0


def export(
    model: nn.Module,
    preprocess: Preparation,
    path: str | Path,
    format: str | None = None,
    dynamic: Sequence[str] = ("batch",),
    classes: Sequence[str] = (),
    name: str = "",
    features: bool = False,
    *,
    task: str = "classification",
    image_size: tuple[int, int] | None = None,
    plain_ops: bool = False,
    dtype: str = "fp32",
) -> Exported:
    """Write a network to `path`.

    Input "image" (B, C, H, W), float32, normalised as `preprocess` says (the file does not normalise). Output "logits"
    (B, classes); of segmentation "scores" (B, classes, H/4, W/4); with `features` "stage0", "stage1", ...
    (B, C, h, w). All are float32. Of detection "boxes" (N, 4), "labels" (N,) int64, "scores" (N,) and "masks"
    (N, 1, m, m), for one image, see `vssm.export.detector.Detector`.

    Args:
        model: a classifier of this package or of timm, a UPerNet, or a Mask R-CNN (ONNX alone); its weights and mode
            are left alone.
        preprocess: how its images are prepared, and their size, which the file fixes unless `dynamic` frees it.
        format: "onnx" (Scan for every scan), "pt2" (`torch.export.load`) or "openvino" (.xml, with the weights in a
            .bin beside it) or "aoti" (.pt2, compiled for this processor, always with `plain_ops`; needs a C++ compiler,
            `torch._inductor.aoti_load_package` runs it); None: by the ending of `path`.
        dynamic: sizes that stay free, of "batch", "height" and "width"; those that do not are 1 and the size of
            `preprocess`. In a .pt2 both sides are free when one is.
        classes, name: stored with the preprocessing and the versions, see `read_metadata`.
        features: the maps of the stages in place of logits.
        task: "classification", "segmentation" or "detection", whose `dynamic` must be empty.
        image_size: (H, W) of the comparison, and of the file where it is fixed; None: that of `preprocess`.
        plain_ops: no Scan: recurrences are written out, in about 2 sqrt(L) steps for maps of L pixels, and the image
            size is fixed. For runtimes without loops.
        dtype: "fp32"; "fp16": weights and activations in float16, recurrences and norms in float32; "int8": ONNX only,
            weights of matrix products in 8 bits per channel and their inputs quantised as they come.

    Before the file takes its place it is run in a new process, in onnxruntime, torch or OpenVINO without this package,
    on random images and on photographs (of scikit-image, where it is installed), at several of the sizes that are free.

    Raises ValueError, and leaves no file, when its results are further from the network's than 1e-4 of the largest
    (fp16: 1e-2, int8: 1e-1), for unknown formats, sizes and types, when the format cannot express the network, and when
    a package is missing; OSError when the file cannot be written.
    """
    path = Path(path)
    format = _checked_format(path, format)
    _refuse(format, dynamic, task, features, plain_ops or format == "aoti", dtype)
    input_size = preprocess.input_size if image_size is None else (preprocess.channels, *image_size)
    sizes = Sizes.of(model, input_size, dynamic)
    with _evaluating(model):
        network = _network(model, task, features, input_size)
        operators = "unrolled" if plain_ops or format == "aoti" else "portable"
        program = trace(Half(network) if dtype == "fp16" else network, sizes, operators)
        about = Metadata(
            name,
            "features" if features else task,
            tuple(classes),
            preprocess,
            input_size,
            sizes.traced() if format == "pt2" else sizes.dynamic,
            _outputs(program, None if features else task),
            dtype,
            versions_of(format),
        )
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as folder:
            new = Path(folder) / f"{path.stem}{FORMATS[format].suffix}"
            _write(program, new, format, about, sizes)
            share = _quantize(new, network, input_size) if dtype == "int8" else 0.0
            checked = tuple(check(network, new, format, sizes.shapes(), preprocess))
            _accept(path, checked, TOLERANCE[dtype])
            size = _move(new, path)
    return Exported(path, size, about, checked, share)


def _refuse(format: str, dynamic: Sequence[str], task: str, features: bool, plain_ops: bool, dtype: str) -> None:
    if dtype not in TOLERANCE:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(TOLERANCE)}")
    if dtype == "int8" and format != "onnx":
        raise ValueError(f"int8 is written by onnxruntime, for the format onnx, not {format}")
    if plain_ops and {"height", "width"} & set(dynamic):
        raise ValueError("without Scan the steps are written out, for one image size: free the batch alone")
    if task == "detection" and not features:
        if format not in DETECTORS:
            raise ValueError(f"detectors are exported as {', '.join(DETECTORS)}, not {format}: choose --format onnx")
        if dynamic:
            raise ValueError(f"detectors are exported for one image of one size: {', '.join(dynamic)} cannot stay free")
        if dtype != "fp32":
            raise ValueError(f"detectors are exported in fp32, not {dtype}: rounding would change what is found")


def _network(model: nn.Module, task: str, features: bool, input_size: tuple[int, int, int]) -> nn.Module:
    if features:
        return Features(model).eval()
    if task != "detection":
        return model
    from vssm.export.detector import Detector

    return Detector(model, input_size[1:]).eval()


def _quantize(path: Path, network: nn.Module, input_size: tuple[int, int, int]) -> float:
    """The file in int8; which share of the multiply-adds is."""
    from vssm.analysis.complexity import complexity
    from vssm.export.quantize import quantize, quantized_macs

    whole = path.with_name("float32.onnx")
    path.replace(whole)
    quantize(whole, path)
    whole.unlink()
    return quantized_macs(path, (1, *input_size)) / complexity(network, input_size, "eval").macs


def _checked_format(path: Path, format: str | None) -> str:
    if format is None:
        format = format_of(path)
    elif format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    elif path.suffix.lower() != FORMATS[format].suffix:
        raise ValueError(f"{path} must end in {FORMATS[format].suffix}, as the format {format} says")
    check_packages(format)
    if format == "aoti":
        from vssm.export.compiled import check_compiler

        check_compiler()
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


def _outputs(program: torch.export.ExportedProgram, task: str | None) -> tuple[str, ...]:
    count = len(program.graph_signature.user_outputs)
    if task == "detection":
        from vssm.export import detector

        return detector.OUTPUTS[:count]
    return tuple(f"stage{number}" for number in range(count)) if task is None else (OUTPUTS[task],)


def _write(program: torch.export.ExportedProgram, path: Path, format: str, about: Metadata, sizes: Sizes) -> None:
    if format == "pt2":
        torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(about.as_strings())})
        return
    if format == "aoti":
        from vssm.export.compiled import write_compiled

        write_compiled(program, path, about)
        return
    from vssm.export.onnx_file import convert, write_onnx

    stored = path.with_suffix(".onnx")
    write_onnx(convert(program, about.outputs, sizes), stored, about)
    if format == "openvino":
        from vssm.export.openvino_file import write_openvino

        write_openvino(stored, path, about)


def _accept(path: Path, checked: Sequence[Checked], tolerance: float) -> None:
    worst = max(checked, key=lambda one: (one.error != one.error, one.error))
    if not worst.error <= tolerance:
        height, width = worst.size
        raise ValueError(
            f"{path} was not written: in {worst.runtime} its results are {worst.error:.1e} of the largest away from "
            f"the network's (at most {tolerance:.0e}), at batch {worst.batch} of {height} x {width}, {worst.images}"
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

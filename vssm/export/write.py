"""A network to a file: exported, written aside, checked, moved into place."""

import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vssm.ops
from vssm._version import __version__
from vssm.data.preprocess import Preprocess
from vssm.export.check import Checked, check

__all__ = ["FORMATS", "Exported", "export"]

FORMATS = {"onnx": ".onnx", "pt2": ".pt2"}
DYNAMIC = ("batch",)
# Of the outputs, over the largest of them; in float32.
TOLERANCE = 1e-4
LARGEST_BATCH = 1024
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}


@dataclass(frozen=True)
class Exported:
    """The file, its size in bytes, and how it compares with the network it was made of."""

    path: Path
    bytes: int
    checked: tuple[Checked, ...]


class Features(nn.Module):
    """The maps of a backbone (B, C, h, w), one output for each stage."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, intermediates_only=True)


def export(
    model: nn.Module,
    preprocess: Preprocess,
    path: str | Path,
    format: str = "onnx",
    dynamic: Sequence[str] = DYNAMIC,
    classes: Sequence[str] = (),
    name: str = "",
    features: bool = False,
) -> Exported:
    """Write a network to `path`.

    Input "image" (B, C, H, W), float32, normalised as `preprocess` says (the file does not normalise); output "logits"
    (B, classes), or with `features` "stage0", "stage1", ... (B, C, h, w).

    Args:
        model: a classifier of this package or of timm; its weights and mode are left alone.
        preprocess: how its images are prepared, and their size, which the file fixes.
        format: "onnx" (opset of torch's exporter; Scan for every scan), or "pt2" (`torch.export.load`).
        dynamic: sizes that stay free: "batch", or () to fix it at 1.
        classes, name: stored with the preprocessing and the versions, as ONNX metadata or the extra file vssm.json.
        features: the maps of the stages in place of logits.

    Before the file takes its place it is run in a new process, in onnxruntime or in torch without this package, on
    random images in several batch sizes.

    Raises ValueError, and leaves no file, when its results are further than 1e-4 of the largest from the network's, for
    unknown formats or sizes, and when a package is missing; OSError when the file cannot be written.
    """
    path = Path(path)
    _refuse(path, format, dynamic)
    batches = (1, 3) if "batch" in dynamic else (1,)
    network = Features(model).eval() if features else model
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        program = _program(network, preprocess, "batch" in dynamic)
        about = _about(preprocess, classes, name, dynamic)
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as folder:
            new = Path(folder) / f"model{FORMATS[format]}"
            (_write_onnx if format == "onnx" else _write_pt2)(program, new, about)
            checked = tuple(check(network, new, format, batches, preprocess.input_size))
            worst = max(checked, key=lambda one: one.error)
            if not worst.error <= TOLERANCE:
                raise ValueError(
                    f"{path} was not written: in {worst.runtime} its results are {worst.error:.1e} of the largest away "
                    f"from the network's (at most {TOLERANCE:.0e}), at batch {worst.batch}"
                )
            size = new.stat().st_size
            new.replace(path)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Exported(path, size, checked)


def _refuse(path: Path, format: str, dynamic: Sequence[str]) -> None:
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    unknown = [size for size in dynamic if size not in DYNAMIC]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} cannot stay free: only {', '.join(DYNAMIC)} can; the image size is fixed"
        )
    missing = [package for package in PACKAGES[format] if find_spec(package) is None]
    if missing:
        raise ValueError(f'{format} needs {", ".join(missing)}: pip install "vssm[export]"')
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.parent} is not there; make the folder first")


def _program(network: nn.Module, preprocess: Preprocess, free: bool) -> torch.export.ExportedProgram:
    device = next(network.parameters()).device
    image = torch.zeros(2 if free else 1, *preprocess.input_size, device=device)
    sizes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},) if free else None
    with torch.no_grad(), vssm.ops.use("portable"):
        return torch.export.export(network, (image,), dynamic_shapes=sizes)


def _about(preprocess: Preprocess, classes: Sequence[str], name: str, dynamic: Sequence[str]) -> dict[str, str]:
    """Plain strings: what ONNX's metadata holds."""
    return {
        "model": name,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "preprocess": json.dumps(preprocess.as_dict()),
        "dynamic": json.dumps(list(dynamic)),
        "vssm": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def _write_onnx(program: torch.export.ExportedProgram, path: Path, about: dict[str, str]) -> None:
    import onnx

    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    outputs = made.model.graph.outputs
    made.model.graph.inputs[0].name = "image"
    for number, output in enumerate(outputs):
        output.name = "logits" if len(outputs) == 1 else f"stage{number}"
    made.model.metadata_props.update(about)
    made.save(path)
    onnx.checker.check_model(path, full_check=True)  # with shape inference


def _write_pt2(program: torch.export.ExportedProgram, path: Path, about: dict[str, str]) -> None:
    torch.export.save(program, path, extra_files={"vssm.json": json.dumps(about)})

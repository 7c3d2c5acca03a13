"""The kinds of files: their endings, what runs them, what has to be installed to write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["FORMATS", "OPSET", "Format", "check_packages", "format_of"]


@dataclass(frozen=True)
class Format:
    """suffix: of the file; two formats may share one, the first is meant then. runtime: what runs it in the check.
    packages: needed to write and to check it, by the extra that brings them."""

    suffix: str
    runtime: str
    packages: tuple[str, ...] = ()
    extra: str = "export"


# Of ONNX's default domain: the lowest that torch's exporter writes without converting down from a newer one.
OPSET = 20
_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", _ONNX),
    "pt2": Format(".pt2", "torch"),
    "aoti": Format(".pt2", "AOTInductor"),
    "openvino": Format(".xml", "openvino", ("onnx", "onnxscript", "openvino"), "export,openvino"),
}


def format_of(path: str | Path) -> str:
    """The format of a file's ending. Raises ValueError for one that none has."""
    suffix = Path(path).suffix.lower()
    for name, format in FORMATS.items():
        if format.suffix == suffix:
            return name
    endings = ", ".join(f"{format.suffix} ({name})" for name, format in FORMATS.items() if name != "aoti")
    raise ValueError(f"{path} must end in one of {endings}")


def check_packages(format: str, packages: Sequence[str] = ()) -> None:
    """Raises ValueError that names the extra when a package is missing."""
    chosen = FORMATS[format]
    missing = [package for package in (*chosen.packages, *packages) if find_spec(package) is None]
    if missing:
        raise ValueError(f'{format} needs {", ".join(missing)}: pip install "vssm[{chosen.extra}]"')

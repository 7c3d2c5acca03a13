"""What an exported file says about itself: how images are prepared for it, its classes, how it was made."""

import json
import platform
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from vssm._version import __version__
from vssm.data.preprocess import Preparation, stored_preprocess
from vssm.export.formats import FORMATS, OPSET, check_packages, format_of

__all__ = ["EXTRA_FILE", "Metadata", "read_metadata"]

# In a .pt2, beside the program.
EXTRA_FILE = "vssm.json"
_KEYS = ("model", "task", "classes", "preprocess", "input_size", "dynamic", "outputs", "dtype", "versions")


@dataclass(frozen=True)
class Metadata:
    """Of an exported file.

    model: the name of the architecture. task: "classification", "segmentation" or "features". classes: names of the
    outputs. preprocess: size, mean, standard deviation, interpolation and crop (`Preprocess`, or `KeepRatio`).
    input_size: (C, H, W) that it was compared at, and takes where a size is fixed. dynamic: those that stay free,
    of "batch", "height" and "width". outputs: names, in order. dtype: "fp32", "fp16" or "int8". versions: of vssm,
    torch, python, and what else wrote the file; "opset" of a file that was made of ONNX.
    """

    model: str
    task: str
    classes: tuple[str, ...]
    preprocess: Preparation
    input_size: tuple[int, int, int]
    dynamic: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: str
    versions: dict[str, str]

    def as_strings(self) -> dict[str, str]:
        """Plain strings, which every format holds; all but the first two are JSON."""
        values = {
            "classes": list(self.classes),
            "preprocess": self.preprocess.as_dict(),
            "input_size": list(self.input_size),
            "dynamic": list(self.dynamic),
            "outputs": list(self.outputs),
            "dtype": self.dtype,
            "versions": self.versions,
        }
        plain = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
        return {"model": self.model, "task": self.task} | plain

    @classmethod
    def from_strings(cls, stored: dict[str, str]) -> "Metadata":
        """The inverse of `as_strings`. Raises ValueError for what was not written by it."""
        missing = [key for key in _KEYS if key not in stored]
        if missing:
            raise ValueError(f"no metadata of vssm export: {', '.join(missing)} missing")
        values = {key: json.loads(stored[key]) for key in _KEYS[2:]}
        return cls(
            stored["model"],
            stored["task"],
            tuple(values["classes"]),
            stored_preprocess(values["preprocess"]),
            tuple(values["input_size"]),
            tuple(values["dynamic"]),
            tuple(values["outputs"]),
            values["dtype"],
            values["versions"],
        )


def versions_of(format: str) -> dict[str, str]:
    """Of vssm, torch, Python and the packages of a format; its opset, where it is made of ONNX."""
    found = {"vssm": __version__, "torch": version("torch"), "python": platform.python_version()}
    found |= {package: version(package) for package in FORMATS[format].packages}
    return found | ({"opset": str(OPSET)} if "onnx" in found else {})


def read_metadata(path: str | Path) -> Metadata:
    """What `vssm export` stored in a file. An .onnx file needs the package onnx; the weights are not run.

    Raises OSError when the file is not there, ValueError when it was not written by `vssm export`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    read = {"onnx": _of_onnx, "openvino": _of_openvino}.get(format_of(path), _of_zip)
    try:
        return Metadata.from_strings(read(path))
    except (ValueError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: {error}") from error


def _of_onnx(path: Path) -> dict[str, str]:
    check_packages("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        stored = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError("no ONNX file") from error
    return {entry.key: entry.value for entry in stored.metadata_props}


def _of_zip(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{EXTRA_FILE}")]
        return cast(dict[str, Any], json.loads(archive.read(names[0]))) if names else {}


def _of_openvino(path: Path) -> dict[str, str]:
    stored = ElementTree.parse(path).getroot().find("rt_info/vssm")  # a file of the user's own
    return {} if stored is None else {one.tag: one.get("value", "") for one in stored}

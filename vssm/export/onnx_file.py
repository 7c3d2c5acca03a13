"""An exported program as an ONNX file, checked by onnx's own checker with shape inference."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vssm.export.formats import OPSET
from vssm.export.metadata import Metadata
from vssm.export.onnx_graph import simplify, softplus
from vssm.export.sizes import Sizes

__all__ = ["convert", "write_onnx"]


def convert(program: torch.export.ExportedProgram, outputs: tuple[str, ...], sizes: Sizes) -> Any:
    """An onnx_ir.Model with named input, outputs and free sizes.

    Raises ValueError that names the operator that ONNX cannot express.
    """
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                optimize=False,
                custom_translation_table={torch.ops.aten.softplus.default: softplus},
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"ONNX cannot express the network: {_reason(error)}") from error
    assert made is not None
    model = made.model
    simplify(model)
    model.graph.inputs[0].name = "image"
    for output, name in zip(model.graph.outputs, outputs, strict=True):
        output.name = name
    _name_sizes(model, sizes)
    return model


def write_onnx(model: Any, path: Path, about: Metadata) -> None:
    import onnx
    import onnx_ir

    model.metadata_props.update(about.as_strings())
    model.producer_name, model.producer_version = "vssm", about.versions["vssm"]
    onnx_ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)  # with shape inference


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnx_ir's warning of a Scan without outputs: that their directions are an empty list of integers."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _name_sizes(model: Any, sizes: Sizes) -> None:
    """Puts the names batch, height and width in the place of torch's symbols in the shapes of input and outputs, and
    numbers in the place of those that were free for tracing only."""
    image = model.graph.inputs[0]
    axes = {"batch": 0, "height": 2, "width": 3}
    fixed = {"height": sizes.input_size[1], "width": sizes.input_size[2]}
    named = {
        str(image.shape[axes[size]].value): size if size in sizes.dynamic else fixed[size] for size in sizes.traced()
    }
    for value in (image, *model.graph.outputs):
        for axis, size in enumerate(value.shape):
            symbol = str(getattr(size, "value", size))
            if symbol in named:
                value.shape[axis] = named[symbol]


def _reason(error: BaseException) -> str:
    """The innermost cause, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0]

"""An exported program compiled to machine code by torch's AOTInductor."""

import json
import zipfile
from pathlib import Path

import torch

from vssm.export.metadata import EXTRA_FILE, Metadata

__all__ = ["check_compiler", "write_compiled"]


def check_compiler(name: str = "aoti") -> None:
    """Raises ValueError, for what has this name, when torch finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(f"{name} needs a C++ compiler: install g++ or clang++, or name one with CXX") from error


def write_compiled(program: torch.export.ExportedProgram, path: Path, about: Metadata) -> None:
    """A package for `torch._inductor.aoti_load_package`, for this kind of processor, with an extra file of metadata."""
    from torch._inductor.exc import InductorError

    try:
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except (InductorError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"AOTInductor cannot compile the network: {lines[0]}") from error
    with zipfile.ZipFile(path, "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{top}/extra/{EXTRA_FILE}", json.dumps(about.as_strings()))

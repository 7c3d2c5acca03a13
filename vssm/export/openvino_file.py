"""An ONNX file as OpenVINO's pair of files."""

from pathlib import Path

from vssm.export.metadata import Metadata

__all__ = ["weights_of", "write_openvino"]


def weights_of(path: Path) -> Path:
    """FILE.bin beside FILE.xml."""
    return path.with_suffix(".bin")


def write_openvino(stored: Path, path: Path, about: Metadata) -> None:
    """`stored`, an ONNX file, as `path` (.xml) and its .bin; weights keep their precision.

    Raises ValueError with what OpenVINO says when it cannot convert the file.
    """
    import openvino

    try:
        model = openvino.convert_model(stored)
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot convert the network: {str(error).strip().splitlines()[-1]}") from error
    for key, value in about.as_strings().items():
        model.set_rt_info(value, ["vssm", key])
    openvino.save_model(model, path, compress_to_fp16=False)

"""Trained networks as files that other runtimes run: ONNX, torch's .pt2, OpenVINO, machine code; without this package.

The operators of this package become torch's own (the path "portable" of `vssm.ops`), their recurrences torch's `scan`,
which is one ONNX Scan. Every file is run in a fresh process, and compared, before it takes its place.
"""

from vssm.export.check import Checked
from vssm.export.formats import FORMATS
from vssm.export.metadata import Metadata, read_metadata
from vssm.export.write import Exported, export

__all__ = ["FORMATS", "Checked", "Exported", "Metadata", "export", "read_metadata"]

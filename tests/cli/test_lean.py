"""timm imported without torch._dynamo: what is left out, and that nothing is broken by it."""

import subprocess
import sys

CODE = """
import sys, types
sys.argv = ["vssm"]
import torch
disable = torch.compiler.disable
from vssm.cli.lean import import_timm
import_timm()
import_timm()
import timm, vssm.models
early = [name for name in sys.modules if name.partition(".")[0] == "sympy" or name.startswith("torch._dynamo")]
assert not early, early[:3]
assert torch.compiler.disable is disable
import gc
assert gc.isenabled()

roi_align = sys.modules["torchvision.ops.roi_align"]
from torchvision import tv_tensors
assert roi_align.is_compile_supported("cpu") is True
image = tv_tensors.wrap(torch.ones(3, 2, 2), like=tv_tensors.Image(torch.zeros(3, 2, 2)))
assert isinstance(image, tv_tensors.Image) and image.sum() == 12
import torch._dynamo.utils
assert isinstance(torch._dynamo.utils, types.ModuleType) and torch._dynamo.utils.__file__
compiled = torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)
assert compiled(torch.zeros(2)).tolist() == [1, 1]
"""


def test_timm_without_dynamo():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

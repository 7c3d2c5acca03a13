"""What an installed wheel must do, without pytest and without the source folder: run by tests and by cibuildwheel.

python tests/wheel/smoke.py core        # with the compiled core
python tests/wheel/smoke.py pure        # without it
"""

import shutil
import sys
import warnings
from pathlib import Path

import timm
import torch

import vssm
import vssm.ops
from vssm.ops import native


def main(kind: str) -> None:
    source = Path(__file__).resolve().parents[2]
    assert not Path(vssm.__file__).is_relative_to(source), f"{vssm.__file__} is the source folder, not the wheel"
    assert native.available() == (kind == "core"), native.unavailable_reason()
    said = str(vssm.ops.explain("ss2d"))
    assert ("compiled core" if kind == "core" else "not built") in said, said
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 48)
    for name in ("vmamba_nano", "spatial_mamba_nano", "vim_nano"):
        options = {"img_size": (64, 48)} if name == "vim_nano" else {}
        model = timm.create_model(name, num_classes=5, **options).eval()
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model(x)
            with vssm.ops.use("torch"):
                expected = model(x)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for file in ("py.typed", "report/style.css", "lens/page.html", "recipes"):
        assert (Path(vssm.__file__).parent / file).exists(), f"the wheel lacks {file}"
    assert shutil.which("vssm", path=str(Path(sys.executable).parent)), "the command vssm is not installed"
    print(
        f"{kind}: vssm {vssm.__version__}, torch {torch.__version__}, {native.isa() if kind == 'core' else 'no core'}"
    )


if __name__ == "__main__":
    main(sys.argv[1])

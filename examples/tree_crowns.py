"""Tree crowns in aerial photographs: boxes of Pascal VOC converted, tiles cut, a small detector trained, drawn results.

python examples/tree_crowns.py trees

Four photographs with 951 boxes come from the package deepforest (MIT license, Weinstein et al. 2020). pip downloads its
wheel, without dependencies, and nothing is installed. One photograph is held out and validates. The 30 epochs take
minutes on a CPU; the network starts from random weights and learns from three photographs. On two cores
(AMD EPYC, AVX-512, November 2026) it took about 5 minutes and reached box AP50 0.336, AP 0.102 on the held-out one.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from vssm_cli.command import main as vssm

VERSION = "2.1.0"
# A hierarchy with the strides 4, 8 and 16, and a Faster R-CNN with narrow heads.
NETWORK = """--task detection --model vmamba_nano --model.args.patch_size 4 --model.network mask_rcnn
    --model.network_args.masks false --model.network_args.fpn_channels 48 --model.network_args.box_channels 128
    --model.network_args.rpn_samples 128 --model.network_args.samples 64 --model.network_args.proposals 200"""
TRAINING = """--data.batch_size 1 --optim.lr 1e-3 --optim.warmup_steps 50 --optim.ema_decay 0
    --trainer.gradient_clip_val 10"""


def photographs(cache: Path) -> Path:
    """The folder with the photographs and their annotations, downloaded where it is not there."""
    folder, name = cache / "deepforest-photographs", f"deepforest-{VERSION}-*.whl"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    if not [*cache.glob(name)]:
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", cache)
        done = subprocess.run((*pip, f"deepforest=={VERSION}"), text=True, capture_output=True)
        if done.returncode:
            sys.exit(
                f"the photographs are in the wheel of deepforest {VERSION}, which pip cannot download; put that file "
                f"into {cache}. pip reports:\n{done.stderr.strip()}"
            )
    with tempfile.TemporaryDirectory(dir=cache) as unpacked, zipfile.ZipFile(next(cache.glob(name))) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("deepforest/data/")]
        wheel.extractall(unpacked, [name for name in names if name.endswith((".png", ".tif", ".xml"))])
        Path(unpacked, "deepforest", "data").rename(folder)
    return folder


def run(*words: object) -> None:
    if code := vssm([str(word) for word in words]):
        sys.exit(code)


def main() -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="folder for data, run and pictures")
    parser.add_argument("--photos", type=Path, help="other photographs, with Pascal VOC xml")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/vssm").expanduser(), help="folder for the wheel")
    parser.add_argument("--tile", type=int, default=400, help="side of the tiles")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()

    data, trained, drawn = args.out / "data", args.out / "run", args.out / "found"
    photos = args.photos or photographs(args.cache)
    run("labels", photos, data, "--tile", args.tile, "--single-class", "tree", "--val-share", 0.25)
    size = ("--data.root", data, "--data.image_size", args.tile, "--trainer.max_epochs", args.epochs)
    run("fit", *NETWORK.split(), *TRAINING.split(), *size, "--out", trained)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        run("validate", "--checkpoint", trained, "--json")
    figures = json.loads(shown.getvalue())
    run("predict", data / "val", "--checkpoint", trained, "--out", drawn, "--json-file", args.out / "found.jsonl")
    print(f"box AP50 {figures['box_ap50']:.3f}, AP {figures['box_ap']:.3f} on {figures['images']} tiles; see {drawn}")
    return figures


if __name__ == "__main__":
    main()

"""Run timm's training script (or its validate.py, or your own script) with our models: importing vssm registers them.

git clone https://github.com/huggingface/pytorch-image-models
python examples/timm_training.py pytorch-image-models/train.py --data-dir FOLDER --model vmamba_tiny --num-classes 10 \
    --opt adamw --lr 5e-4 --layer-decay 0.75 --mixup 0.8 --cutmix 1.0 --drop-path 0.2 --model-ema
"""

import runpy
import sys
from pathlib import Path

import vssm  # noqa: F401 (registers the models with timm)


def main() -> None:
    del sys.argv[0]
    if not sys.argv or not Path(sys.argv[0]).is_file():
        sys.exit("usage: python examples/timm_training.py SCRIPT ARGUMENTS...; SCRIPT is timm's train.py")
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))  # as if the script had been started directly
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

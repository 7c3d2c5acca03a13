"""How near the logits in half precision are to those in float64: our networks beside ConvNeXt and Swin.

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --models vmamba_tiny convnext_tiny --images 8

Random weights at which every branch counts: matrices of products and convolutions normal with variance 1 / fan_in,
ConvNeXt's layer scale 1 (it begins at 1e-6, where the branches vanish); all else as the networks begin. The error is
the norm of the difference from float64 over the norm of the float64 logits, each without its mean over the classes;
medians over `--seeds` weights. "torch's operators": our networks with `vssm.ops.use("torch")`, which shows what
rounding between operators does by itself.
"""

import argparse
import contextlib
import statistics

import timm
import torch
from torch import Tensor, nn

import vssm

MODELS = ("vmamba_tiny", "spatial_mamba_tiny", "vim_tiny", "swin_tiny_patch4_window7_224", "convnext_tiny")
MODES = ("float32", "bfloat16", "autocast")


def build(name: str, seed: int, **kwargs) -> nn.Module:
    """The network in float64, in evaluation mode, with weights at which every branch counts."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        for key, parameter in model.named_parameters():
            if key.endswith(".gamma"):
                parameter.fill_(1.0)
    return model


@torch.no_grad()
def error(model: nn.Module, images: Tensor, mode: str, path: str | None = None) -> float:
    """Of the logits of a float64 network, which is one again afterwards, but with rounded weights after "bfloat16"."""
    exact = model(images.double())
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    operators = contextlib.nullcontext() if path is None else vssm.ops.use(path)
    with operators, torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        found = model.to(dtype)(images.to(dtype)).double()
    model.double()
    exact, found = (logits - logits.mean(1, keepdim=True) for logits in (exact, found))
    return float((found - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.size}x{args.size}, {args.images} images, median of {args.seeds} weights")
    print(f"{'':<44}" + "".join(f"{mode:>12}" for mode in args.modes))
    for name in args.models:
        ours = "vssm" in timm.models.model_entrypoint(name).__module__
        for path in (None, "torch") if ours else (None,):
            medians = []
            for mode in args.modes:
                found = []
                for seed in range(args.seeds):
                    model = build(name, seed)
                    images = torch.randn(args.images, 3, args.size, args.size, dtype=torch.float64)
                    found.append(error(model, images, mode, path))
                medians.append(statistics.median(found))
            label = name if path is None else f"{name}, torch's operators"
            print(f"{label:<44}" + "".join(f"{value:>12.1e}" for value in medians), flush=True)


if __name__ == "__main__":
    main()

"""Seconds per multiply-add of every family on the CPU, as a ratio to `vmamba_tiny`.

    OMP_NUM_THREADS=1 python benchmarks/families.py [--batch 4] [--rounds 5] [--models NAME ...]

All models alternate in one process; the medians of processor time are compared. Multiply-adds are those of
`vssm.complexity`, which counts neither exp nor element-wise products: a family with more of these is slower by this
measure.
"""

import argparse
import statistics
import time

import timm
import torch

import vssm

REFERENCE = "vmamba_tiny"
MODELS = {
    "vmamba_tiny_sasf": {},
    "spatial_mamba_tiny": {},
    "spatial_mamba_tiny_dynamic": {},
    "spatial_mamba_tiny, local attention": {"state_fn": "local_attention"},
    "spatial_mamba_tiny, deformable": {"state_fn": "deformable"},
    "vim_tiny": {},
    "vim_small": {},
    "vim_tiny_pool": {},
    "vim_tiny_sasf": {},
    "mamba_adaptor_b1": {},
    "mamba_adaptor_b2": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="batch size, at 224 x 224")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, after one warm-up round")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of rows, or of timm models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = {}
    for row in [REFERENCE, *args.models]:
        model = timm.create_model(row.partition(",")[0], **MODELS.get(row, {}))
        models[row] = model, vssm.complexity(model, 224).macs
    images = torch.randn(args.batch, 3, 224, 224)
    inference = measure(models, images, args.rounds, training=False)
    training = measure(models, images, args.rounds, training=True)
    print(f"batch {args.batch}, one thread of processor time, torch {torch.__version__}\n")
    print("| model | G multiply-adds | inference, ms | per multiply-add | training, ms | per multiply-add |")
    print("|---|---|---|---|---|---|")
    for row, (_, macs) in models.items():
        share = macs / models[REFERENCE][1]
        cells = [
            f"{1000 * seconds[row]:.0f} | {seconds[row] / seconds[REFERENCE] / share:.2f}"
            for seconds in (inference, training)
        ]
        print(f"| {row} | {macs / 1e9:.2f} | {' | '.join(cells)} |")


def measure(models, images: torch.Tensor, rounds: int, training: bool) -> dict[str, float]:
    """Median seconds of one pass, or of one step of forward and backward."""
    seconds: dict[str, list[float]] = {row: [] for row in models}
    for turn in range(rounds + 1):
        for row, (model, _) in models.items():
            model.train(training)
            began = time.process_time()
            if training:
                model(images).sum().backward()
            else:
                with torch.inference_mode():
                    model(images)
            if turn > 0:
                seconds[row].append(time.process_time() - began)
    return {row: statistics.median(values) for row, values in seconds.items()}


if __name__ == "__main__":
    main()

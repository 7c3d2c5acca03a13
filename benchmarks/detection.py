"""Whole detectors and segmentation networks beside Swin and ConvNeXt with the same heads: time and peak memory.

    python benchmarks/detection.py              # Mask R-CNN at 1280 x 800, UPerNet at 2048 x 512, training at 640
    python benchmarks/detection.py --what train --rounds 3

Each model runs in a process of its own, in turns; ratios are of the medians.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median

MODELS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "vmamba_tiny", "spatial_mamba_tiny")
WHAT = {
    "mask_rcnn": "Mask R-CNN, inference at 1280 x 800",
    "upernet": "UPerNet, inference at 2048 x 512",
    "train": "Mask R-CNN, a training step at 640 x 640",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=2, help="of one process")
    parser.add_argument("--turns", type=int, default=2, help="processes of each model, one after the other")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--once", nargs=2, metavar=("WHAT", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(_once(*args.once, args.threads, args.rounds)))
        return
    for what in args.what:
        found = {model: ([], 0.0) for model in args.models}
        for model in args.models * args.turns:
            times, peak = _in_a_process(what, model, args)
            found[model] = found[model][0] + times, max(found[model][1], peak)
        print(f"\n{WHAT[what]}, one image, float32, {args.threads} thread(s), medians of {args.turns * args.rounds}")
        print(f"{'backbone':<32}{'seconds':>9}{'vs swin':>9}{'vs convnext':>12}{'peak MB':>9}")
        for model, (times, peak) in found.items():
            seconds = median(times)
            swin, convnext = (median(found[m][0]) if m in found else float("nan") for m in MODELS[:2])
            print(f"{model:<32}{seconds:>9.2f}{swin / seconds:>8.2f}x{convnext / seconds:>11.2f}x{peak:>9.0f}")


def _in_a_process(what: str, model: str, args: argparse.Namespace) -> tuple[list[float], float]:
    argv = [sys.executable, __file__, "--once", what, model]
    argv += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    times, peak = json.loads(done.stdout.splitlines()[-1])
    return times, peak


def _once(what: str, model: str, threads: int, rounds: int) -> tuple[list[float], float]:
    import torch

    from vssm.tasks.detection import mask_rcnn
    from vssm.tasks.segmentation import upernet

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = upernet(model, 150) if what == "upernet" else mask_rcnn(model, 80)
    times = []
    for turn in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        if what == "train":
            _train(network.train())
        else:
            with torch.inference_mode():
                size = (1, 3, 512, 2048) if what == "upernet" else (1, 3, 800, 1280)
                network.eval()(torch.randn(size) if what == "upernet" else list(torch.randn(size)))
        if turn:
            times.append(time.perf_counter() - start)
    return times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _train(network) -> None:
    import torch

    corners = torch.rand(8, 2) * 400
    boxes = torch.cat([corners, corners + 40 + torch.rand(8, 2) * 190], 1)
    masks = torch.zeros(8, 640, 640, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist()):
        mask[y1:y2, x1:x2] = True
    target = {"boxes": boxes, "labels": torch.arange(8), "masks": masks}
    losses = network([torch.randn(3, 640, 640)], [target])
    torch.stack(list(losses.values())).sum().backward()
    network.zero_grad()


if __name__ == "__main__":
    main()

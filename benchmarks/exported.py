"""Exported forms of a trained classifier beside the network itself: accuracy, largest difference, time, size.

    vssm fit --config digits
    python benchmarks/exported.py runs/vmamba_nano-digits
    python benchmarks/exported.py runs/vmamba_nano-digits --forms onnx int8 --batch 1

Accuracy is that of the run's validation images. Times are medians of `--rounds` on one thread, all forms by turns in
one process.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vssm
from vssm.export import alone

FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> format, ending, options
    "onnx": ("onnx", ".onnx", {}),
    "onnx --plain-ops": ("onnx", ".onnx", {"plain_ops": True}),
    "onnx --dtype fp16": ("onnx", ".onnx", {"dtype": "fp16"}),
    "onnx --int8": ("onnx", ".onnx", {"dtype": "int8"}),
    "openvino": ("openvino", ".xml", {}),
    "openvino --plain-ops": ("openvino", ".xml", {"plain_ops": True}),
    "pt2": ("pt2", ".pt2", {}),
    "pt2 --plain-ops": ("pt2", ".pt2", {"plain_ops": True}),
    "aoti": ("aoti", ".pt2", {}),
}
RUNTIMES = {"onnx": alone.onnx, "openvino": alone.openvino, "pt2": alone.pt2, "aoti": alone.aoti}


class Runtime(nn.Module):
    """An exported file in the place of the network."""

    def __init__(self, format: str, path: Path):
        super().__init__()
        self.run = RUNTIMES[format](str(path))
        self.device = nn.Parameter(torch.zeros(()))  # evaluations ask a parameter for it

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.run(x.numpy())[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    predictor = vssm.load(args.run)
    networks: dict[str, nn.Module] = {"eager": predictor.model}
    about = {"eager": ("", "", "")}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(args.forms):
            format, ending, options = FORMS[name]
            done = predictor.export(Path(folder) / f"{number}{ending}", format, **options)
            networks[name] = Runtime(format, done.path)
            share = f"{done.quantized:.0%}" if done.quantized else ""
            about[name] = (f"{done.bytes / 1e6:.2f}", f"{max(one.error for one in done.checked):.1e}", share)
        times = _times(networks, args.batch, args.rounds, predictor.preprocess.input_size)
        print("| form | MB | error | in int8 | top1 % |" + "".join(f" B={batch}, ms |" for batch in args.batch))
        print("|---|---|---|---|---|" + "---|" * len(args.batch))
        for name, network in networks.items():
            found: Any = replace(predictor, model=network).evaluate(workers=0, batch_size=32).quality
            columns = [
                *about[name],
                f"{100 * found.top1:.2f}",
                *(f"{1000 * times[name, batch]:.1f}" for batch in args.batch),
            ]
            print(f"| {name} | {' | '.join(columns)} |", flush=True)


def _times(networks: dict[str, nn.Module], batches: list[int], rounds: int, size: tuple[int, ...]) -> dict[Any, float]:
    found: dict[Any, list[float]] = {(name, batch): [] for name in networks for batch in batches}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for (name, batch), seconds in found.items():
                x = torch.randn(batch, *size)
                start = time.perf_counter()
                networks[name](x)
                if turn:
                    seconds.append(time.perf_counter() - start)
    return {key: statistics.median(seconds) for key, seconds in found.items()}


if __name__ == "__main__":
    main()

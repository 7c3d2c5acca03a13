"""Runs an exported file on stored inputs, and times it on one thread: a script of its own, in a process where this
package cannot be imported.

    python -P alone.py FORMAT FILE FOLDER ROUNDS CASE...

Reads FOLDER/CASE.npy, writes FOLDER/CASE.npz, prints CASE and the median seconds.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[Any], list[Any]]


def onnx(file: str, batch: int | None = None) -> Run:
    """batch: the only one that will come, where the file's is free."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: list(session.run(None, {"image": x}))


def openvino(file: str, batch: int | None = None, precision: str = "f32") -> Run:
    """file: .xml, or .onnx. batch: the only one that will come, where the file's is free. precision: "f32" or "bf16";
    by default OpenVINO computes in bfloat16 where the processor can."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if batch is not None:
        model.reshape([batch, *model.input().partial_shape[1:]])
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", options)
    return lambda x: [np.array(compiled_output) for compiled_output in compiled(x).values()]


def pt2(file: str) -> Run:
    import torch

    torch.set_num_threads(1)
    module = torch.export.load(file).module()

    def run(x: Any) -> list[Any]:
        with torch.no_grad():
            y = module(torch.from_numpy(x))
        return [one.numpy() for one in (y if isinstance(y, list | tuple) else [y])]

    return run


def aoti(file: str) -> Run:
    import torch

    torch.set_num_threads(1)
    compiled = torch._inductor.aoti_load_package(file)

    def run(x: Any) -> list[Any]:
        with torch.no_grad():
            y = compiled(torch.from_numpy(x))
        return [one.numpy() for one in (y if isinstance(y, list | tuple) else [y])]

    return run


def main(format: str, file: str, folder: str, rounds: int, cases: list[str]) -> None:
    run = {"onnx": onnx, "openvino": openvino, "pt2": pt2, "aoti": aoti}[format](file)
    for case in cases:
        x = np.load(f"{folder}/{case}.npy")
        found, seconds = run(x), []
        for _ in range(rounds):
            start = time.perf_counter()
            run(x)
            seconds.append(time.perf_counter() - start)
        np.savez(f"{folder}/{case}.npz", *found)
        print(case, sorted(seconds)[len(seconds) // 2])


if __name__ == "__main__":
    sys.modules["vssm"] = None  # type: ignore[assignment]
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:])

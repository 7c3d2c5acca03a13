"""Where onnxruntime spends its time in an exported file, operator by operator.

    vssm export vmamba_tiny --out vmamba_tiny.onnx
    python benchmarks/onnx_profile.py vmamba_tiny.onnx --batch 1

onnxruntime's own profiler on one thread, random images: of every node of the graph the least of `--runs`, summed by
kind. What runs inside a Scan is under Scan, with some microseconds that the profiler adds to each of its nodes.
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import onnxruntime

from vssm.export import read_metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=16)
    args = parser.parse_args()

    x = np.random.default_rng(0).standard_normal((args.batch, *read_metadata(args.file).input_size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(args.file, options, providers=["CPUExecutionProvider"])
        for _ in range(args.runs):
            session.run(None, {"image": x})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1000)
            kinds[event["name"]] = event["args"]["op_name"]
    total, count = Counter(), Counter()
    for name, found in times.items():
        if len(found) == args.runs:  # not in the body of a Scan, which runs more often
            total[kinds[name]] += min(found)
            count[kinds[name]] += 1
    print(f"{args.file}, B={args.batch}, 1 thread: {sum(total.values()):.1f} ms\n")
    print("| operator | nodes | ms |\n|---|---|---|")
    for kind, spent in total.most_common(args.rows):
        print(f"| {kind} | {count[kind]} | {spent:.1f} |")


if __name__ == "__main__":
    main()

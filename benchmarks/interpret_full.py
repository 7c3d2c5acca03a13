"""Every Triton kernel interpreted on the CPU, the full product of cases, against the reference in float64.

    python benchmarks/interpret_full.py                     hours: dtypes x routes x N x L up to 1000
    python benchmarks/interpret_full.py --lengths 1 49 --states 1
    python benchmarks/interpret_full.py --list              the cases and their number, none of them run

`make test` runs a pairwise cover of the short ones (tests/ops/test_triton_*.py). Prints one line per case, the largest
error of the output and of the gradients relative to the largest number; ends with exit code 1 if any is too large.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tests.ops import interpreter  # noqa: F401  (configures the interpreter)
from tests.ops.agree import draw_cotangents, evaluate, randn, relative_error
from tests.ops.test_causal_conv1d import arguments as causal_arguments
from tests.ops.test_causal_conv1d import conv as causal
from tests.ops.test_depthwise import arguments as depthwise_arguments
from tests.ops.test_depthwise import conv
from tests.ops.test_layer_norm import arguments as norm_arguments
from tests.ops.test_ss2d import PATTERNS, arguments
from tests.ops.test_state_fusion import arguments as fusion_arguments
from tests.ops.test_state_fusion import fusion
from tests.ops.test_state_gather import arguments as gather_arguments
from vssm.ops import dispatch, gpu, layer_norm, rms_norm, ss2d, ss2d_readout, state_gather

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ("x", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")
# Output and gradients; in half precision the projection rounds once, which the reference does not.
ALLOWED = {torch.float32: (4e-6, 2e-5), torch.bfloat16: (2e-2, 2e-2), torch.float16: (2e-3, 4e-3)}
SHAPES = {1: (1, 1), 7: (1, 7), 49: (7, 7), 196: (14, 14), 1000: (40, 25)}


def errors(function, tensors: dict) -> tuple[float, float]:
    """The largest error of the output and of any gradient."""
    (y,), grads = evaluate(function, tensors, "triton")
    exact = {k: t.double() for k, t in tensors.items()}
    (expected,), expected_grads = evaluate(function, exact, "torch", draw_cotangents((y,)))
    return relative_error(y, expected), max(relative_error(g, expected_grads[k]) for k, g in grads.items())


def scans(options):
    for dtype, (name, routes), N, length in itertools.product(
        options.dtypes, PATTERNS.items(), options.states, options.lengths
    ):
        H, W = SHAPES[length]
        given = arguments(batch=1, C=5, H=H, W=W, K=len(routes), N=N, R=3, dtype=torch.float32)
        tensors = dict(zip(NAMES, given, strict=True))
        tensors["x"] = tensors["x"].to(DTYPES[dtype])
        tensors["x_proj_weight"] = tensors["x_proj_weight"].to(DTYPES[dtype]).float()
        yield (
            f"ss2d {dtype} {name} N={N} L={length}",
            DTYPES[dtype],
            lambda r=routes, **k: both_ways(r, *k.values()),
            tensors,
        )


def both_ways(routes, *tensors):
    """ss2d, whose forward has different kernels for a GPU that is filled and for one that is not: they agree."""
    y = ss2d(*tensors, routes)
    if dispatch.requested() == "triton":
        gpu.SCAN_SEQUENTIAL = True
        with torch.no_grad():
            swept = ss2d(*tensors, routes)
        gpu.SCAN_SEQUENTIAL = None
        if relative_error(swept, y.double()) > ALLOWED[torch.float32][0]:
            raise AssertionError(f"the sequential scan is off by {relative_error(swept, y.double())}")
    return y


def fusions(options):
    for dtype, length in itertools.product(options.dtypes, options.lengths):
        tensors = fusion_arguments((1, 5, *SHAPES[length]), DTYPES[dtype], weight_dtype=torch.float32)
        yield f"state_fusion {dtype} L={length}", DTYPES[dtype], fusion(), tensors


def depthwise(options):
    for dtype, act, residual, length in itertools.product(
        options.dtypes, ("none", "silu"), (False, True), options.lengths
    ):
        tensors = depthwise_arguments((1, 5, *SHAPES[length]), DTYPES[dtype], torch.float32)
        name = f"depthwise_conv3x3 {dtype} {act}{' + x' if residual else ''} L={length}"
        yield name, DTYPES[dtype], conv(act, residual), tensors


def sequences(options):
    for dtype, act, reverse, length in itertools.product(
        options.dtypes, ("none", "silu"), (False, True), options.lengths
    ):
        tensors = causal_arguments((1, 5, length, 4), DTYPES[dtype], torch.float32)
        name = f"causal_conv1d {dtype} {act}{' reversed' if reverse else ''} L={length}"
        yield name, DTYPES[dtype], causal(act, reverse), tensors


def gathers(options):
    for dtype, N, length in itertools.product(options.dtypes, options.states, options.lengths):
        tensors = gather_arguments((1, 2, 5, N, *SHAPES[length], 4))
        tensors["h"] = tensors["h"].to(DTYPES[dtype])
        yield f"state_gather {dtype} N={N} L={length}", DTYPES[dtype], state_gather, tensors


def readouts(options):
    for dtype, N, length in itertools.product(options.dtypes, options.states, options.lengths):
        H, W = SHAPES[length]
        tensors = {"h": randn(1, 4, 5, N, H, W), "C": randn(1, 4, N, H, W, seed=1).to(DTYPES[dtype])}
        tensors |= {"x": randn(1, 5, H, W, seed=2).to(DTYPES[dtype]), "D": randn(20, seed=3)}
        yield f"ss2d_readout {dtype} N={N} L={length}", DTYPES[dtype], ss2d_readout, tensors


def norms(options):
    for dtype, length in itertools.product(options.dtypes, options.lengths):
        tensors = norm_arguments((length, 5), DTYPES[dtype], weight_dtype=torch.float32)
        gated = norm_arguments((length, 5), DTYPES[dtype], gate=True, weight_dtype=torch.float32)
        yield f"layer_norm {dtype} L={length}", DTYPES[dtype], layer_norm, tensors
        yield f"layer_norm {dtype} gated L={length}", DTYPES[dtype], layer_norm, gated
        weight = {name: tensors[name] for name in ("x", "weight")}
        yield f"rms_norm {dtype} L={length}", DTYPES[dtype], rms_norm, weight


KINDS = {f.__name__: f for f in (depthwise, sequences, norms, readouts, gathers, fusions, scans)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of operators")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--states", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--list", action="store_true", help="print the cases and their count, run none")
    options = parser.parse_args()
    cases = itertools.chain.from_iterable(KINDS[kind](options) for kind in options.kinds)
    if options.list:
        names = [name for name, *_ in cases]
        print(*names, f"{len(names)} cases", sep="\n")
        return 0
    count = wrong = 0
    for name, dtype, function, tensors in cases:
        start = time.perf_counter()
        output, gradient = errors(function, tensors)
        fine = output <= ALLOWED[dtype][0] and gradient <= ALLOWED[dtype][1]
        count, wrong = count + 1, wrong + (not fine)
        seconds = time.perf_counter() - start
        print(f"{'ok   ' if fine else 'WRONG'} {name:<48} {output:9.1e} {gradient:9.1e} {seconds:7.1f} s", flush=True)
    print(f"{wrong} of {count} cases are wrong" if wrong else f"{count} cases agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

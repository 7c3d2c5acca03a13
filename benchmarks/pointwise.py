"""The operators around the scan beside torch's own: ns per element and ratio, one thread, at VMamba-T's stage shapes.

    python benchmarks/pointwise.py [--batch 1 8] [--only layer_norm ...] [--rounds 30]

Both sides run in turns in one process; the table shows medians. Elements are those of the larger tensor of the op.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from vssm.ops import add_layer_norm, bias_act, depthwise_conv3x3, layer_norm

STAGES = ((56, 96), (28, 192), (14, 384), (7, 768))  # side and width of the four stages at 224 x 224


def measure(functions, rounds, budget=0.02):
    """Median seconds per call of every function, called in turns."""
    repeats = []
    for function in functions:
        function()
        start = time.perf_counter()
        function()
        repeats.append(max(1, int(budget / len(functions) / max(time.perf_counter() - start, 1e-7))))
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, count, found in zip(functions, repeats, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                function()
            found.append((time.perf_counter() - start) / count)
    return [statistics.median(found) for found in times]


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def step(function, tensors):
    """A call that runs forward and backward of `function` on leaves."""
    tensors = leaves(*tensors)
    with torch.enable_grad():
        outputs = function(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = [torch.randn_like(y) for y in outputs]

    def run():
        with torch.enable_grad():
            outputs = function(*tensors)
            torch.autograd.grad(outputs, tensors, gradients)

    return run


def cases(batch, side, dim):
    """name, elements, ours, torch's, tensors."""
    rows = torch.randn(batch * side * side, dim)
    wide = torch.randn(batch * side * side, 4 * dim)
    image = torch.randn(batch, side, side, dim).permute(0, 3, 1, 2)
    weight, bias, wide_bias = torch.randn(dim), torch.randn(dim), torch.randn(4 * dim)
    kernel = torch.randn(dim, 1, 3, 3)

    def norm(x, w, b):
        return F.layer_norm(x, (dim,), w, b)

    def conv(x, w, b):
        return F.conv2d(x, w, b, padding=1, groups=dim)

    def add_norm(x, branch, w, b):
        total = x + branch
        return total, norm(total, w, b)

    yield "layer_norm", rows, layer_norm, norm, (rows, weight, bias)
    yield (
        "layer_norm gated",
        rows,
        lambda x, w, b, z: layer_norm(x, w, b, gate=z),
        lambda x, w, b, z: norm(x, w, b) * F.silu(z),
        (rows, weight, bias, rows),
    )
    yield "add_layer_norm", rows, add_layer_norm, add_norm, (rows, rows, weight, bias)
    yield "gelu", wide, lambda x: bias_act(x), F.gelu, (wide,)
    yield "bias gelu", wide, bias_act, lambda x, b: F.gelu(x + b), (wide, wide_bias)
    yield "silu", rows, lambda x: bias_act(x, act="silu"), F.silu, (rows,)
    yield "depthwise", image, depthwise_conv3x3, conv, (image, kernel, bias)
    yield (
        "depthwise silu",
        image,
        lambda x, w, b: depthwise_conv3x3(x, w, b, "silu"),
        lambda x, w, b: F.silu(conv(x, w, b)),
        (image, kernel, bias),
    )
    yield (
        "x + depthwise",
        image,
        lambda x, w, b: depthwise_conv3x3(x, w, b, residual=True),
        lambda x, w, b: x + conv(x, w, b),
        (image, kernel, bias),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<18}{'shape':>16}   forward ns: ours  torch  ratio    with backward: ours  torch  ratio")
    for batch in args.batch:
        for side, dim in STAGES:
            for name, largest, ours, theirs, tensors in cases(batch, side, dim):
                if args.only and name not in args.only:
                    continue
                scale = 1e9 / largest.numel()
                with torch.no_grad():
                    a, b = measure([lambda: ours(*tensors), lambda: theirs(*tensors)], args.rounds)  # noqa: B023
                c, d = measure([step(ours, tensors), step(theirs, tensors)], args.rounds)
                shape = f"{batch}x{side}x{side}x{largest.numel() // (batch * side * side)}"
                print(
                    f"{name:<18}{shape:>16}   {a * scale:16.3f}{b * scale:7.3f}{b / a:7.2f}"
                    f"{c * scale:24.3f}{d * scale:7.3f}{d / c:7.2f}"
                )


if __name__ == "__main__":
    main()

"""The operators around the scan beside torch's own: ns per element and ratio, one thread, at VMamba-T's stage shapes.

    python benchmarks/pointwise.py [--batch 1 8] [--part layer_norm mlp ...] [--rounds 30]

Both sides run in turns in one process; the table shows medians. Elements are those of the larger tensor of the
operator: for gelu, linear and mlp the hidden one, for downsampling the map that goes in.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from vssm.ops import (
    conv2d,
    depthwise_conv3x3,
    layer_norm,
    linear,
    mlp,
    state_fusion,
    state_fusion_readout,
)

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

    yield "layer_norm", rows, layer_norm, norm, (rows, weight, bias)
    yield (
        "layer_norm gated",
        rows,
        lambda x, w, b, z: layer_norm(x, w, b, gate=z),
        lambda x, w, b, z: norm(x, w, b) * F.silu(z),
        (rows, weight, bias, rows),
    )
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

    if dim < STAGES[-1][1]:  # into the next stage; ours differs in inference alone
        kernels = torch.randn(2 * dim, dim, 3, 3)
        yield (
            "downsampling",
            image,
            lambda x, w, b: conv2d(x, w, b, 2, 1),
            lambda x, w, b: F.conv2d(x, w, b, 2, 1),
            (image, kernels, torch.randn(2 * dim)),
        )
    yield "linear", wide, linear, F.linear, (rows, torch.randn(4 * dim, dim), wide_bias)
    yield "mlp", wide, mlp, plain_mlp, (rows, torch.randn(4 * dim, dim), wide_bias, torch.randn(dim, 4 * dim), bias)

    kernels, alphas = [torch.randn(dim, 1, 3, 3) for _ in range(3)], torch.randn(3)
    C = torch.randn(batch, 1, side, side)
    yield (
        "state_fusion",
        image,
        lambda h, a, *k: state_fusion(h, list(k), a),
        plain_fusion,
        (image, alphas, *kernels),
    )
    yield (
        "fusion readout",
        image,
        lambda h, C, u, D, a, *k: state_fusion_readout(h, list(k), a, C, u, D),
        lambda h, C, u, D, a, *k: C * plain_fusion(h, a, *k) + D[:, None, None] * u,
        (image, C, image, bias, alphas, *kernels),
    )


def plain_mlp(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def plain_fusion(h, alphas, *kernels):
    fused = 0
    for alpha, kernel, d in zip(alphas, kernels, (1, 3, 5), strict=True):
        padded = F.pad(h, (d, d, d, d), mode="replicate")
        fused = fused + F.conv2d(padded, alpha * kernel, dilation=d, groups=h.shape[1])
    return fused


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--part", nargs="+", help="names of rows")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<18}{'shape':>16}   forward ns: ours  torch  ratio    with backward: ours  torch  ratio")
    for batch in args.batch:
        for side, dim in STAGES:
            for name, largest, ours, theirs, tensors in cases(batch, side, dim):
                if args.part and name not in args.part:
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

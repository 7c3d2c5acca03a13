"""The scan kernel of the C++ core at the four stage shapes of VMamba-T (224x224): forward and backward, ms.

    python benchmarks/scan.py                        every instruction set, batch 1 and 8, 1 and 2 threads
    python benchmarks/scan.py --isa avx512 --state 16

Best of `--runs` calls of the operator's core path (layouts and call included). "ns" is per pixel, channel and route.
"""

import argparse
import time

import torch

from vssm.ops import native
from vssm.ops.routes import CROSS, encode
from vssm.ops.ss2d import core

STAGES = ((56, 96, 6), (28, 192, 12), (14, 384, 24), (7, 768, 48))  # side, channels, rank


def arguments(batch: int, side: int, channels: int, rank: int, state: int) -> tuple:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    K = len(CROSS)
    x = randn(batch, side, side, channels).permute(0, 3, 1, 2)
    proj = randn(batch, side, side, K * (rank + 2 * state))
    A = -torch.exp(0.3 * randn(K * channels, state))
    return x, proj, randn(K, channels, rank) * rank**-0.5, randn(K, channels) - 2, A, randn(K * channels), encode(CROSS)


def best_ms(function, runs: int) -> float:
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", default=None, help="instruction sets; default: all of this machine")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--state", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    if not native.available():
        parser.error(str(native.unavailable_reason()))
    x86 = native.isa() in ("avx512", "avx2", "baseline")
    names = options.isa or (["avx512", "avx2", "baseline"] if x86 else [native.isa()])
    print(f"{'isa':<9} thr batch  {'shape':<12} {'fwd ms':>8} {'ns':>6} {'bwd ms':>8} {'ns':>6} {'bwd/fwd':>8}")
    for name in names:
        with native.use_isa(name):
            for threads in options.threads:
                torch.set_num_threads(threads)
                for batch in options.batch:
                    for side, channels, rank in STAGES:
                        given = arguments(batch, side, channels, rank, options.state)
                        gy = torch.ones_like(given[0])
                        forward = best_ms(lambda given=given: core.forward(*given), options.runs)
                        backward = best_ms(lambda given=given, gy=gy: core.backward(gy, *given), options.runs)
                        elements = batch * side * side * channels * len(CROSS)
                        f, b = (1e6 * ms / elements for ms in (forward, backward))
                        shape = f"{side}x{side}x{channels}"
                        print(
                            f"{name:<9} {threads:>3} {batch:>5}  {shape:<12} {forward:8.3f} {f:6.3f} "
                            f"{backward:8.3f} {b:6.3f} {backward / forward:8.2f}"
                        )


if __name__ == "__main__":
    main()

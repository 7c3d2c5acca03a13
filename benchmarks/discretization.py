"""Euler form and zero-order hold: a figure of what they compute, and the cost of the second.

    python benchmarks/discretization.py --figure docs/discretization.png
    python benchmarks/discretization.py --cost [--batch 4] [--rounds 5]

The cost is that of whole models, with both forms alternating in one process; the table shows medians and ratios.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

import vssm
from vssm.figures.style import COLORS, FAINT, drawing
from vssm.ops import selective_scan_states

EXACT, EULER, ZOH = FAINT, COLORS[1], COLORS[0]
STEPS = (0.1, 0.5, 1.5)  # |A| dt of the panels


def response(dt: float, seconds: float, discretization: str) -> tuple[list[float], list[float]]:
    """Times and states of h' = -h + u with u = 1 from time 0 on, in steps of dt, by the scan of this package."""
    count = round(seconds / dt)
    ones = torch.ones(1, 1, count, dtype=torch.float64)
    A, B = -torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, 1, count, dtype=torch.float64)
    h = selective_scan_states(ones, dt * ones, A, B, discretization=discretization).flatten()
    return [0.0, *(dt * (t + 1) for t in range(count))], [0.0, *h.tolist()]


def draw(path: Path) -> None:
    """Writes the PNG: the response to a step input for three step sizes, and the weight of one input by its step."""
    with drawing(path, (12, 3.1), 110, style={"font.size": 9}) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots(1, 4)
        time_axis = torch.linspace(0, 6, 200, dtype=torch.float64)
        for axis, dt in zip(axes, STEPS, strict=False):
            axis.plot(time_axis, 1 - torch.exp(-time_axis), color=EXACT, lw=4, alpha=0.6, label="exact solution")
            axis.plot(*response(dt, 6, "euler"), "s-", color=EULER, ms=3, lw=1, label="euler")
            axis.plot(*response(dt, 6, "zoh"), "o", color=ZOH, ms=3.5, label="zoh")
            axis.set(title=f"|A| dt = {dt}", xlabel="time", ylim=(0, 2.05))
        axes[0].set_ylabel("state h")
        axes[0].legend(loc="upper left")
        steps = torch.logspace(-3, 1, 200, dtype=torch.float64)
        axes[3].plot(steps, steps, color=EULER, label="euler: dt")
        axes[3].plot(steps, -torch.expm1(-steps), color=ZOH, label="zoh: (exp(dt A) - 1) / A")
        axes[3].set(title="weight of one input", xlabel="|A| dt", xscale="log", yscale="log")
        axes[3].legend(loc="upper left")


def cost(batch: int, rounds: int) -> None:
    """Prints the seconds of a forward and of a training step, for models with each form."""
    print(f"{torch.get_num_threads()} threads, batch {batch}, 224 x 224, medians of {rounds}")
    print(f"{'model':<22}{'what':<10}{'euler, s':>10}{'zoh, s':>10}{'ratio':>8}")
    for name in ("vmamba_tiny", "spatial_mamba_tiny", "vim_tiny_pool"):
        models = [vssm.create_model(name, discretization=form) for form in ("euler", "zoh")]
        for what in ("forward", "training"):
            x = torch.randn(batch, 3, 224, 224)
            times: list[list[float]] = [[], []]
            for turn in range(rounds + 1):
                for model, found in zip(models, times, strict=True):
                    model.train(what == "training")
                    start = time.perf_counter()
                    with torch.set_grad_enabled(what == "training"):
                        y = model(x)
                    if what == "training":
                        y.square().sum().backward()
                    if turn > 0:
                        found.append(time.perf_counter() - start)
            euler, zoh = (statistics.median(found) for found in times)
            print(f"{name:<22}{what:<10}{euler:>10.3f}{zoh:>10.3f}{zoh / euler:>8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, metavar="FILE.png")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.figure is None and not options.cost:
        parser.error("nothing to do: give --figure FILE.png or --cost")
    if options.figure is not None:
        draw(options.figure)
    if options.cost:
        cost(options.batch, options.rounds)


if __name__ == "__main__":
    main()

"""Inference in what users deploy: torch, Inductor, onnxruntime and OpenVINO, beside networks that were made for CPUs.

    python benchmarks/runtimes.py --cpu-time                             every network in every runtime (long)
    python benchmarks/runtimes.py --batch 1 --runtimes eager onnxruntime "openvino bf16"
    python benchmarks/runtimes.py --only vmamba_tiny repvit_m1_5         these, beside ConvNeXt and Swin

Every network in every runtime alternates in one process on one thread, so that ratios are robust to drifts of the
machine's speed. Medians of `--runs` rounds, or with `--cpu-time` of processor time, which other programs disturb less.
Random weights; each network at the size of its published weights, its branches merged where timm can, its BatchNorm
statistics those of eight random images.

onnxruntime and OpenVINO run the file of `vssm export`, and are told the batch size. Inductor is torch.compile with
`max_autotune` and `freezing`. The results of every runtime are compared with those of eager float32. The exit code is 1
when one of them is wrong, or a network does not run; a runtime whose packages are missing is named with the extra to
install. Times of preparation (export, compilation) are printed apart.
"""

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch
from models import OURS, PEERS, SHORT, create, evaluate, in_turn
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import vssm
from vssm.data.preprocess import published_preprocess
from vssm.export import alone, export
from vssm.export.compiled import check_compiler
from vssm.export.formats import check_packages
from vssm.export.write import TOLERANCE
from vssm.train.environment import describe_processor

# Made for CPUs and phones, and as accurate as ours or nearly so; EfficientViM because it is the one of state spaces.
RIVALS = (
    "efficientvim_m2",
    "efficientvim_m4",
    "fastvit_sa24",
    "mobilenetv4_conv_large.e500_r256_in1k",
    "repvit_m1_5",
    "edgenext_base",
)

# A bfloat16 runtime may be this much further from float32 than torch's own bfloat16 is, or this far.
BFLOAT16_FACTOR, BFLOAT16_FLOOR = 4.0, 2e-2


@dataclass
class Network:
    """A network as it is deployed, and what the runtimes make of it."""

    name: str
    folder: Path

    @cached_property
    def model(self) -> nn.Module:
        model = create(self.name, None).eval()
        _set_statistics(model, (8, *self.size))
        return reparameterize_model(model)

    @cached_property
    def bfloat16(self) -> nn.Module:
        return copy.deepcopy(self.model).bfloat16()

    @cached_property
    def size(self) -> tuple[int, int, int]:
        return published_preprocess(self.name).input_size

    @cached_property
    def export(self) -> tuple[Path, float, str]:
        """Its ONNX file with a free batch, the seconds that `vssm export` takes to write and check it, and what went
        wrong, if anything did."""
        began, problem = time.perf_counter(), ""
        path = self.folder / f"{self.name}.onnx"
        try:
            export(self.model, published_preprocess(self.name), path)
        except ValueError as error:
            problem = str(error)
        return path, time.perf_counter() - began, problem

    def file(self) -> str:
        """The path of its ONNX file. Raises ValueError where there is none."""
        path, _, problem = self.export
        if problem:
            raise ValueError(problem)
        return str(path)

    @property
    def short(self) -> str:
        return SHORT.get(self.name, self.name).partition(".")[0]

    def images(self, batch: int) -> Tensor:
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(0))


def _set_statistics(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Those of random images, in place of 0 and 1, with which the activations of some networks vanish or overflow."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    model.eval()


Run = Callable[[], Any]


def _eager(network: Network, images: Tensor) -> Run:
    return partial(evaluate, network.model, images)


def _bfloat16(network: Network, images: Tensor) -> Run:
    return partial(evaluate, network.bfloat16, images.bfloat16())


def _autocast(network: Network, images: Tensor) -> Run:
    return partial(evaluate, network.model, images, True)


def _inductor(network: Network, images: Tensor) -> Run:
    options: dict[str, Any] = {"max_autotune": True, "freezing": True}
    compiled = torch.compile(network.model, fullgraph=True, dynamic=False, options=options)
    evaluate(compiled, images)
    return partial(evaluate, compiled, images)


def _onnxruntime(network: Network, images: Tensor) -> Run:
    return partial(alone.onnx(network.file(), len(images)), images.numpy())


def _openvino(precision: str, network: Network, images: Tensor) -> Run:
    return partial(alone.openvino(network.file(), len(images), precision), images.numpy())


def _openvino_bfloat16() -> None:
    check_packages("openvino", ("onnxruntime",))
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("OpenVINO has no bfloat16 on this processor; it needs AVX-512 or AMX, or Arm's")


@dataclass(frozen=True)
class Runtime:
    """prepare: a network and its images -> what computes its logits. check: raises ValueError where it cannot run."""

    prepare: Callable[[Network, Tensor], Run]
    half: bool = False
    from_file: bool = False
    check: Callable[[], None] = lambda: None


RUNTIMES = {
    "eager": Runtime(_eager),
    "bfloat16": Runtime(_bfloat16, half=True),
    "autocast": Runtime(_autocast, half=True),
    "inductor": Runtime(_inductor, check=partial(check_compiler, "Inductor")),
    "onnxruntime": Runtime(_onnxruntime, from_file=True, check=partial(check_packages, "onnx")),
    # the file is made by the exporter of onnx, which checks it in onnxruntime
    "openvino": Runtime(
        partial(_openvino, "f32"), from_file=True, check=partial(check_packages, "openvino", ("onnxruntime",))
    ),
    "openvino bf16": Runtime(partial(_openvino, "bf16"), half=True, from_file=True, check=_openvino_bfloat16),
}


@dataclass
class Found:
    """Of one network in one runtime and batch: median seconds of a batch, largest difference from eager float32 over
    its largest logit, seconds of preparation. problem: why there is no time."""

    seconds: float = math.nan
    error: float = math.nan
    preparation: float = math.nan
    problem: str = ""


@dataclass
class Batch:
    size: int
    found: dict[tuple[str, str], Found] = field(default_factory=dict)  # by network and runtime


def usable(names: Iterable[str]) -> list[str]:
    """Those that can run here; what the others miss is printed."""
    found = []
    for name in names:
        try:
            RUNTIMES[name].check()
        except ValueError as error:
            print(f"not measured: {name}: {error}")
        else:
            found.append(name)
    return found


def measure(networks: list[Network], runtimes: list[str], batch: int, runs: int, clock: Callable[[], float]) -> Batch:
    """Prepare and compare all, then time what is right, by turns."""
    done, functions = Batch(batch), {}
    for network in networks:
        images = network.images(batch)
        expected, rounded = evaluate(network.model, images), None
        for runtime in runtimes:
            one = done.found[network.name, runtime] = Found()
            print(f"B={batch}: {network.short} in {runtime}", file=sys.stderr, flush=True)
            if RUNTIMES[runtime].from_file:
                network.export  # noqa: B018 (counted apart)
            began = time.perf_counter()
            try:
                run = RUNTIMES[runtime].prepare(network, images)
            except (ValueError, RuntimeError) as error:  # what onnxruntime cannot run, the export refuses
                one.problem = f"does not run: {_first_line(error)}"
                continue
            one.preparation = time.perf_counter() - began
            bound = TOLERANCE["fp32"]
            if RUNTIMES[runtime].half:
                if rounded is None:
                    rounded = _error(evaluate(network.bfloat16, images.bfloat16()), expected)
                bound = max(BFLOAT16_FLOOR, BFLOAT16_FACTOR * rounded)
            one.error = _error(run(), expected)
            if not one.error <= bound:
                one.problem = f"WRONG: {one.error:.1e} of the largest logit from eager float32, at most {bound:.0e}"
                continue
            functions[network.name, runtime] = run
    for key, seconds in in_turn(functions, runs, clock).items():
        done.found[key].seconds = seconds
    return done


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _error(found: Any, expected: Tensor) -> float:
    found = torch.as_tensor(found[0] if isinstance(found, list) else found).float()
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max())


def table(done: Batch, networks: list[Network], runtimes: list[str], cell: Callable[[Network, str], str]) -> str:
    lines = [f"| B={done.size} | {' | '.join(runtimes)} |", "|---" * (len(runtimes) + 1) + "|"]
    for network in networks:
        lines.append(f"| `{network.short}` | {' | '.join(cell(network, runtime) for runtime in runtimes)} |")
    return "\n".join(lines)


def print_batch(done: Batch, networks: list[Network], runtimes: list[str], base: str) -> None:
    def of(network: Network, runtime: str) -> Found:
        return done.found[network.name, runtime]

    def number(value: float, form: str) -> str:
        return "-" if math.isnan(value) else format(value, form)

    def ms(network: Network, runtime: str) -> str:
        return number(1000 * of(network, runtime).seconds / done.size, ".1f")

    def ratio(network: Network, runtime: str) -> str:
        return number(done.found[base, runtime].seconds / of(network, runtime).seconds, ".2f")

    print(f"\nms per image\n\n{table(done, networks, runtimes, ms)}")
    print(f"\nspeed over `{SHORT.get(base, base)}` in the same runtime\n\n{table(done, networks, runtimes, ratio)}")
    errors = table(done, networks, runtimes, lambda n, r: number(of(n, r).error, ".0e"))
    print(f"\nlargest difference from eager float32, of the largest logit\n\n{errors}")
    seconds = table(done, networks, runtimes, lambda n, r: number(of(n, r).preparation, ".1f"))
    print(f"\nseconds of preparation, without the export of the file\n\n{seconds}\n")
    for (name, runtime), one in done.found.items():
        if one.problem:
            print(f"{name} in {runtime}, B={done.size}: {one.problem}")


def _versions() -> str:
    found = []
    for package in ("torch", "timm", "onnxruntime", "openvino"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="models to compare with the peers", default=[*OURS, *RIVALS])
    parser.add_argument("--peers", nargs="+", help="the last of them is what speeds are relative to", default=PEERS)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time (one thread)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    unknown = [name for name in (*args.only, *args.peers) if not timm.is_model(name)]
    if unknown:
        parser.error(f"timm has no model {', '.join(map(repr, unknown))}")

    torch.set_num_threads(1)
    torch._inductor.config.autotune_num_choices_displayed = 0
    torch._inductor.config.compile_threads = 1
    torch._dynamo.config.recompile_limit = 1000  # networks of one class share it
    clock = time.process_time if args.cpu_time else time.perf_counter
    results, wrong = [], False
    with tempfile.TemporaryDirectory() as folder:
        networks = [Network(name, Path(folder)) for name in dict.fromkeys((*args.only, *args.peers))]
        runtimes = usable(args.runtimes)
        print(vssm.ops.explain())
        kind = "processor time" if args.cpu_time else "time"
        print(f"{_versions()}; {describe_processor()}, {torch.backends.cpu.get_cpu_capability()}, one thread,")
        print(f"median of {args.runs} of {kind}; sizes " + ", ".join(f"{n.short} {n.size[-1]}" for n in networks))
        for batch in args.batch:
            done = measure(networks, runtimes, batch, args.runs, clock)
            print_batch(done, networks, runtimes, args.peers[-1])
            wrong |= any(one.problem for one in done.found.values())
            results += [{"network": n, "runtime": r, "batch": batch, **vars(f)} for (n, r), f in done.found.items()]
        exported = [network for network in networks if "export" in vars(network)]
        if exported:
            print("seconds of vssm export: " + ", ".join(f"{n.short} {n.export[1]:.0f}" for n in exported))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

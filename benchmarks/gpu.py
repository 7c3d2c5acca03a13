"""What this package does on a GPU: correctness, kernels, models, torch.compile, and the official code beside it.

    python benchmarks/gpu.py --part check            against float64, the same bits twice, 200 steps of training
    python benchmarks/gpu.py --part kernels          ms and share of the copy bandwidth, forward and backward
    python benchmarks/gpu.py --part models           images/s and peak memory beside timm's peers
    python benchmarks/gpu.py --part compile          one graph, dynamic sizes, export, training in half precision
    python benchmarks/gpu.py --part official --official CHECKOUT_OF_THE_OFFICIAL_REPOSITORY
    python benchmarks/gpu.py --part all --device cpu --smallest      shows that it runs; interprets the kernels

Each part stops after `--minutes`, the most telling cells first; cells not measured are named. Results are added to one
JSON file, `--out`; a short table comes last.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if "--smallest" in sys.argv and "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import timm
import torch
from torch import Tensor

import vssm
from vssm.ops import ss2d, state_fusion, use
from vssm.ops.gpu import interpreted

STAGES = {1: (56, 96, 6), 2: (28, 192, 12), 3: (14, 384, 24), 4: (7, 768, 48)}  # side, channels, rank of VMamba-T
OURS = ("vmamba_tiny", "spatial_mamba_tiny", "vmamba_small", "vmamba_base", "vanilla_vmamba_tiny")
OURS += ("spatial_mamba_small", "spatial_mamba_base")
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224", "xcit_small_12_p16_224")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Cell = tuple[str, Callable[[], dict[str, Any]]]


@dataclass
class Bench:
    """The options of a run, and how it measures."""

    device: torch.device
    smallest: bool
    official: Path | None
    path: str = field(init=False)

    def __post_init__(self):
        self.path = "triton" if interpreted() else ""

    @property
    def batch(self) -> int:
        return 1 if self.smallest else 128

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, function: Callable[[], object]) -> float:
        """Median milliseconds: by events on a GPU, and by the clock elsewhere."""
        runs = 1 if self.smallest else 20
        for _ in range(1 if self.smallest else 5):
            function()
        self.synchronize()
        times = []
        for _ in range(runs):
            if self.device.type == "cuda":
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                function()
                end.record()
                torch.cuda.synchronize(self.device)
                times.append(begin.elapsed_time(end))
            else:
                start = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def peak_mb(self, function: Callable[[], object]) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        return torch.cuda.max_memory_allocated(self.device) / 2**20

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a copy that no cache holds."""
        source = torch.empty((1 << 20) if self.smallest else (1 << 28), device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / (1e-3 * self.ms(lambda: target.copy_(source)))

    def forced(self, path: str) -> contextlib.AbstractContextManager:
        return use(path) if path else contextlib.nullcontext()


def scan_arguments(bench: Bench, side, channels: int, rank: int, batch: int, dtype=torch.float32, K: int = 4):
    """Arguments of ss2d in channels_last memory; side is one number or (height, width)."""
    g = torch.Generator().manual_seed(0)
    height, width = (side, side) if isinstance(side, int) else side

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(bench.device)

    x = normal(batch, height, width, channels).to(dtype).permute(0, 3, 1, 2)
    weights = normal(K, rank + 2, channels) / channels**0.5, normal(K, channels, rank) / rank**0.5
    return [x, *weights, normal(K, channels) - 2, -torch.exp(0.3 * normal(K * channels, 1)), normal(K * channels)]


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- check ----


def check(bench: Bench) -> Iterator[Cell]:
    for stage, (side, channels, rank) in STAGES.items():
        size = (3, 8, 2) if bench.smallest else (side, channels, rank)
        for dtype in (torch.float32, torch.bfloat16):
            yield f"stage {stage} {dtype}", lambda s=size, d=dtype: compare_scan(bench, s, d)
        if bench.smallest:
            break
    yield "state_fusion", lambda: compare_fusion(bench)
    yield "training follows the torch path", lambda: compare_training(bench)


def largest_errors(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((f.double() - e).abs().max() / e.abs().max().clamp(min=0.1)).item() for f, e in pairs)


def run_and_differentiate(function, leaves: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = function(*leaves)
    weight = torch.cos(torch.arange(y.numel(), device=y.device, dtype=torch.float32)).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def compare(bench: Bench, function, leaves: list[Tensor], dtype) -> dict[str, Any]:
    with bench.forced(bench.path):
        first, again = run_and_differentiate(function, leaves), run_and_differentiate(function, leaves)
    with use("torch"):
        expected = run_and_differentiate(function, [t.double() for t in leaves])
    error, allowed = largest_errors(first, expected), 2e-5 if dtype == torch.float32 else 3e-2
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return {"ok": error <= allowed and same, "error": error, "allowed": allowed, "same bits twice": same}


def compare_scan(bench: Bench, size, dtype) -> dict[str, Any]:
    return compare(bench, ss2d, scan_arguments(bench, *size, batch=1 if bench.smallest else 8, dtype=dtype), dtype)


def compare_fusion(bench: Bench) -> dict[str, Any]:
    side, channels = (3, 4) if bench.smallest else (56, 128)
    h = torch.randn(2, side, side, channels, device=bench.device).permute(0, 3, 1, 2)
    kernels = [torch.randn(channels, 1, 3, 3, device=bench.device) for _ in range(3)]
    alphas = torch.rand(3, device=bench.device)
    return compare(bench, lambda h, a, *k: state_fusion(h, list(k), a), [h, alphas, *kernels], torch.float32)


def compare_training(bench: Bench) -> dict[str, Any]:
    steps, size = (1, 32) if bench.smallest else (200, 64)

    def losses(path: str) -> list[float]:
        torch.manual_seed(0)
        model = timm.create_model("vmamba_nano", num_classes=10).to(bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        images = torch.randn(1 if bench.smallest else 64, 3, size, size, device=bench.device)
        labels = torch.arange(len(images), device=bench.device) % 10
        out = []
        for _ in range(steps):
            with bench.forced(path):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            out.append(loss.item())
        return out

    found, expected = losses(bench.path), losses("torch")
    error = max(abs(f - e) / max(e, 0.1) for f, e in zip(found, expected, strict=True))
    return {"ok": error < 0.05, "error": error, "steps": steps, "first": found[0], "last": found[-1]}


# ---- kernels ----


def kernels(bench: Bench) -> Iterator[Cell]:
    bandwidth = bench.copy_bandwidth()
    yield "copy", lambda: {"GB/s": bandwidth / 1e9}
    shapes = {f"stage {s}": (*size, bench.batch) for s, size in STAGES.items()}
    shapes |= {"320x200, B=1": ((200, 320), 96, 6, 1), "1280x800 input, B=2": ((200, 320), 96, 6, 2)}
    if bench.smallest:
        shapes = {"stage 1": (3, 8, 2, 1)}
    for name, shape in shapes.items():
        for dtype in (torch.bfloat16, torch.float32):
            yield f"ss2d {name} {dtype}", lambda s=shape, d=dtype: time_scan(bench, s, d, bandwidth, bench.path)
        if not bench.smallest:
            yield f"ss2d {name} torch path", lambda s=shape: time_scan(bench, s, torch.float32, bandwidth, "torch")
    yield "state_fusion", lambda: time_fusion(bench, bandwidth)


def time_both(bench: Bench, function, leaves: list[Tensor], bandwidth: float, path: str) -> dict[str, Any]:
    """Forward and backward; the floor is every input and output once at the copy bandwidth."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    with bench.forced(path):
        with torch.no_grad():
            start = time.perf_counter()
            y = function(*leaves)
            bench.synchronize()
            first = time.perf_counter() - start
            forward = bench.ms(lambda: function(*leaves))
        out = function(*leaves)
        gy = torch.ones_like(out)
        backward = bench.ms(lambda: torch.autograd.grad(out, leaves, gy, retain_graph=True))
    moved = tensor_bytes(y, *leaves)
    floor, floor_backward = (1e3 * n / bandwidth for n in (moved, moved + tensor_bytes(*leaves)))
    return {
        "forward ms": forward,
        "of floor": floor / forward,
        "backward ms": backward,
        "of floor, backward": floor_backward / backward,
        "first call s": first,
    }


def time_scan(bench: Bench, shape, dtype, bandwidth: float, path: str) -> dict[str, Any]:
    return time_both(bench, ss2d, scan_arguments(bench, *shape, dtype=dtype), bandwidth, path)


def time_fusion(bench: Bench, bandwidth: float) -> dict[str, Any]:
    side, channels = (3, 4) if bench.smallest else (56, 128)
    h = torch.randn(bench.batch, side, side, channels, device=bench.device).permute(0, 3, 1, 2)
    weights = [torch.rand(3, device=bench.device)]
    weights += [torch.randn(channels, 1, 3, 3, device=bench.device) for _ in range(3)]
    return time_both(bench, lambda h, a, *k: state_fusion(h, list(k), a), [h, *weights], bandwidth, bench.path)


# ---- models ----


def models(bench: Bench) -> Iterator[Cell]:
    names = ("vmamba_nano",) if bench.smallest else ("vmamba_tiny", PEERS[0], *OURS[1:2], *PEERS[1:], *OURS[2:])
    modes = (("eval", "fp32"),) if bench.smallest else (
        ("eval", "bf16"), ("train", "bf16"), ("eval", "fp32"), ("train", "fp32"), ("eval", "tf32"), ("train", "tf32"),
        ("eval", "fp16"), ("train", "fp16"),
    )  # fmt: skip
    for part, precision in modes:
        for name in names:
            yield f"{name} {part} {precision}", lambda n=name, p=part, q=precision: time_model(bench, n, p, q)
    if bench.smallest:
        return
    for name in ("vmamba_tiny", PEERS[0], "spatial_mamba_tiny"):
        yield f"{name} eval bf16 compiled", lambda n=name: time_model(bench, n, "eval", "bf16", compiled=True)
        yield f"{name} B=1 latency, CUDA graph", lambda n=name: latency(bench, n)
    for size in (384, 512, 768, 1024):
        yield f"vmamba_tiny eval bf16 {size}", lambda s=size: time_model(bench, "vmamba_tiny", "eval", "bf16", size=s)


def time_model(
    bench: Bench, name: str, part: str, precision: str, size: int = 224, compiled: bool = False
) -> dict[str, Any]:
    size = 32 if bench.smallest else size
    batch = max(1, bench.batch * 224**2 // size**2) if not bench.smallest else 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    model = timm.create_model(name).to(bench.device).to(memory_format=torch.channels_last)
    model.train(part == "train")
    run = torch.compile(model) if compiled else model
    images = torch.randn(batch, 3, size, size, device=bench.device).to(memory_format=torch.channels_last)
    autocast = torch.autocast(bench.device.type, HALF.get(precision), enabled=precision in HALF)

    def step():
        with autocast, bench.forced(bench.path), torch.set_grad_enabled(part == "train"):
            out = run(images)
        if part == "train":
            model.zero_grad(set_to_none=True)
            out.float().logsumexp(1).sum().backward()

    ms = bench.ms(step)
    return {"images/s": 1e3 * batch / ms, "batch": batch, "peak MB": bench.peak_mb(step)}


def latency(bench: Bench, name: str) -> dict[str, Any]:
    model = timm.create_model(name).to(bench.device).eval()
    images = torch.randn(1, 3, 224, 224, device=bench.device)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        for _ in range(3):
            model(images)
        with torch.cuda.graph(graph):
            model(images)
    return {"ms": bench.ms(graph.replay)}


# ---- compile ----


def compile_part(bench: Bench) -> Iterator[Cell]:
    names = ("vmamba_nano",) if bench.smallest else ("vmamba_tiny", "spatial_mamba_tiny", "vanilla_vmamba_tiny")
    for name in names:
        yield f"{name} fullgraph", lambda n=name: one_graph(bench, n)
        yield f"{name} export", lambda n=name: exported(bench, n)
        for precision in HALF:
            yield f"{name} trains in {precision}", lambda n=name, q=precision: trains(bench, n, q)


def one_graph(bench: Bench, name: str) -> dict[str, Any]:
    """One graph, also for sizes not seen before, with the numbers of the eager model."""
    model = timm.create_model(name).to(bench.device).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager" if bench.smallest else "inductor")
    errors = []
    with torch.inference_mode():
        start = time.perf_counter()
        for size in (32, 64) if bench.smallest else (224, 256, 320):
            images = torch.randn(2, 3, size, size, device=bench.device)
            errors.append((compiled(images) - model(images)).abs().max().item())
        seconds = time.perf_counter() - start
    return {"ok": max(errors) < 1e-2, "error": max(errors), "seconds": seconds}


def exported(bench: Bench, name: str) -> dict[str, Any]:
    model = timm.create_model(name).to(bench.device).eval()
    images = torch.randn(2, 3, 64, 64, device=bench.device)
    program = torch.export.export(model, (images,))
    with torch.inference_mode():
        error = (program.module()(images) - model(images)).abs().max().item()
    return {"ok": error < 1e-3, "error": error}


def trains(bench: Bench, name: str, precision: str) -> dict[str, Any]:
    """Twenty steps under autocast, with a scaler in float16, stay finite and lower the loss."""
    torch.manual_seed(0)
    steps, size = (2, 32) if bench.smallest else (20, 224)
    model = timm.create_model(name, num_classes=10).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=precision == "fp16")
    images = torch.randn(2 if bench.smallest else 32, 3, size, size, device=bench.device)
    labels = torch.arange(len(images), device=bench.device) % 10
    losses = []
    for _ in range(steps):
        with torch.autocast(bench.device.type, HALF[precision]):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    finite = all(torch.isfinite(p).all() for p in model.parameters()) and all(x == x for x in losses)
    return {"ok": bool(finite) and (bench.smallest or losses[-1] < losses[0]), "first": losses[0], "last": losses[-1]}


# ---- official ----


def official(bench: Bench) -> Iterator[Cell]:
    if bench.official is None:
        return
    sys.path.insert(0, str(bench.official / "classification"))
    yield "official scan", lambda: official_scan(bench)
    for part in ("eval", "train"):
        yield f"official VMamba-T {part}", lambda p=part: official_model(bench, p)


# What the official code imports for parts of it that are not measured.
UNUSED = {
    "fvcore": (),
    "fvcore.nn": ("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count"),
    "einops": ("rearrange", "repeat"),
}


def official_module(bench: Bench):
    for package, names in UNUSED.items():
        try:
            importlib.import_module(package)
        except ImportError:
            stand_in = types.ModuleType(package)
            for name in names:
                setattr(stand_in, name, None)
            sys.modules[package] = stand_in
    module = importlib.import_module("models.vmamba")
    if bench.device.type == "cpu":  # only this context manager of its torch path needs a GPU
        importlib.import_module("models.csm_triton").torch.cuda.device = lambda _: contextlib.nullcontext()
    return module


def has_official_kernel() -> bool:
    return any(importlib.util.find_spec(f"selective_scan_{name}") is not None for name in ("cuda_oflex", "cuda_core"))


def official_scan(bench: Bench) -> dict[str, Any]:
    """Its block's cross scan, selective scan and merge at stage 1, beside ours on the same shapes."""
    side, channels, rank = (4, 8, 2) if bench.smallest else STAGES[1]
    module = official_module(bench)
    block = module.SS2D(d_model=channels, d_state=1, ssm_ratio=1.0, dt_rank=rank, forward_type="v05_noz")
    block = block.to(bench.device)
    x = torch.randn(bench.batch, channels, side, side, device=bench.device, requires_grad=True)
    out = block.forward_core(x)
    gy = torch.ones_like(out)
    ours = time_both(bench, ss2d, scan_arguments(bench, side, channels, rank, bench.batch), 1.0, bench.path)
    forward = bench.ms(lambda: block.forward_core(x))
    backward = bench.ms(lambda: torch.autograd.grad(out, x, gy, retain_graph=True))
    return {
        "kernel": "CUDA extension" if has_official_kernel() else "its torch path: the extension is not importable",
        "forward ms": forward,
        "backward ms": backward,
        "ours, times faster": forward / ours["forward ms"],
        "backward, times faster": backward / ours["backward ms"],
    }


def official_model(bench: Bench, part: str) -> dict[str, Any]:
    model = official_module(bench).vmamba_tiny_s1l8().to(bench.device)
    model.train(part == "train")
    size, batch = (32, 1) if bench.smallest else (224, bench.batch)
    images = torch.randn(batch, 3, size, size, device=bench.device)

    def step():
        with torch.autocast(bench.device.type, torch.bfloat16), torch.set_grad_enabled(part == "train"):
            out = model(images)
        if part == "train":
            model.zero_grad(set_to_none=True)
            out.float().logsumexp(1).sum().backward()

    return {"images/s": 1e3 * batch / bench.ms(step), "peak MB": bench.peak_mb(step)}


# ---- running ----

PARTS = {"check": check, "kernels": kernels, "models": models, "compile": compile_part, "official": official}


def run_part(name: str, bench: Bench, minutes: float) -> dict[str, Any]:
    """Measure the cells of a part until time is up. A cell that fails says why; the others go on."""
    deadline = time.monotonic() + 60 * minutes
    measured: dict[str, Any] = {}
    left_out = []
    for label, cell in PARTS[name](bench):
        if time.monotonic() > deadline:
            left_out.append(label)
            continue
        try:
            measured[label] = cell()
        except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:  # out of memory is one of them
            measured[label] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {label}: {describe(measured[label])}", flush=True)
    return {"measured": measured, "not measured": left_out}


def describe(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="check")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smallest", action="store_true", help="tiny sizes; with --device cpu kernels are interpreted")
    parser.add_argument("--official", type=Path, help="a checkout of the official repository")
    parser.add_argument("--minutes", type=float, default=7.5, help="per part")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; `--device cpu --smallest` shows that the script runs")
    if options.part == "official" and options.official is None:
        parser.error("--part official needs --official CHECKOUT_OF_THE_OFFICIAL_REPOSITORY")
    bench = Bench(torch.device(options.device), options.smallest, options.official)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU: not measured on a GPU"
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    parts = [p for p in PARTS if p != "official" or options.official] if options.part == "all" else [options.part]
    for part in parts:
        results[part] = {"machine": machine, "torch": torch.__version__, "vssm": vssm.__version__}
        results[part] |= run_part(part, bench, options.minutes)
        options.out.write_text(json.dumps(results, indent=1))
    failures = 0
    print(f"\n{machine}")
    for part in parts:
        cells = results[part]["measured"]
        wrong = [label for label, values in cells.items() if "failed" in values or values.get("ok") is False]
        failures += len(wrong)
        late = results[part]["not measured"]
        print(
            f"{part:<9} {len(cells)} cells, {len(wrong)} wrong or failed {wrong or ''}; not measured: {late or 'none'}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

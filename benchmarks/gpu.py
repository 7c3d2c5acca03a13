"""Checks and benchmarks on a GPU: correctness, kernels, models, torch.compile, and a comparison with the official code.

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
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "--smallest" in sys.argv and "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import timm
import torch
from gpu_around import around
from gpu_bench import STAGES, Bench, Cell, as_tuple, scan_arguments, time_both
from gpu_official import official
from torch import Tensor

import vssm
from vssm.ops import ss2d, use

OURS = ("vmamba_tiny", "spatial_mamba_tiny", "vmamba_small", "vmamba_base", "vanilla_vmamba_tiny")
OURS += ("spatial_mamba_small", "spatial_mamba_base")
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224", "xcit_small_12_p16_224")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


# ---- check ----


def check(bench: Bench) -> Iterator[Cell]:
    for stage, (side, channels, rank) in STAGES.items():
        size = (3, 8, 2) if bench.smallest else (side, channels, rank)
        for dtype in (torch.float32, torch.bfloat16):
            yield f"stage {stage} {dtype}", lambda s=size, d=dtype: compare_scan(bench, s, d, False)
            yield f"stage {stage} {dtype}, sequential", lambda s=size, d=dtype: compare_scan(bench, s, d, True)
        if bench.smallest:
            break
    for name, (function, leaves) in around(bench, batch=2).items():
        yield name, lambda f=function, t=leaves: compare(bench, f, t, torch.float32)
    yield "training follows the torch path", lambda: compare_training(bench)


def largest_errors(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((f.double() - e).abs().max() / e.abs().max().clamp(min=0.1)).item() for f, e in pairs)


def run_and_differentiate(function, leaves: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in leaves]
    outputs = as_tuple(function(*leaves))
    weights = [torch.cos(torch.arange(y.numel(), device=y.device, dtype=torch.float32)).view_as(y) for y in outputs]
    loss = sum((y * weight.to(y.dtype)).sum() for y, weight in zip(outputs, weights, strict=True))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, leaves)]


def compare(bench: Bench, function, leaves: list[Tensor], dtype) -> dict[str, Any]:
    with bench.forced(bench.path):
        first, again = run_and_differentiate(function, leaves), run_and_differentiate(function, leaves)
    with use("torch"):
        expected = run_and_differentiate(function, [t.double() for t in leaves])
    error, allowed = largest_errors(first, expected), 2e-5 if dtype == torch.float32 else 3e-2
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return {"ok": error <= allowed and same, "error": error, "allowed": allowed, "same bits twice": same}


def compare_scan(bench: Bench, size, dtype, sequential: bool) -> dict[str, Any]:
    leaves = scan_arguments(bench, *size, batch=1 if bench.smallest else 8, dtype=dtype)
    with bench.scanning(sequential):
        return compare(bench, ss2d, leaves, dtype)


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

    # Interpreting a whole model takes minutes; without a GPU the core is used instead.
    found, expected = losses(""), losses("torch")
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
        for sequential in (False, True):
            label = f"ss2d {name} forward, {'sequential' if sequential else 'in three passes'}"
            yield label, lambda s=shape, w=sequential: time_forward(bench, s, w)
        if not bench.smallest:
            yield f"ss2d {name} torch path", lambda s=shape: time_scan(bench, s, torch.float32, bandwidth, "torch")
        if name == "stage 1":
            yield "kernels of ss2d stage 1, slowest first", lambda s=shape: slowest(bench, s)
    for name, (function, leaves) in around(bench, bench.batch, half=True).items():
        for path in (bench.path,) if bench.smallest else (bench.path, "torch"):
            label = f"{name} {path}".strip()
            yield label, lambda f=function, t=leaves, p=path: time_both(bench, f, t, bandwidth, p)


def slowest(bench: Bench, shape) -> dict[str, Any]:
    """Milliseconds of each kernel in one forward and backward, from the profiler: the next candidates to optimize."""
    leaves = [t.detach().requires_grad_() for t in scan_arguments(bench, *shape, dtype=torch.bfloat16)]

    def step():
        with bench.forced(bench.path):
            ss2d(*leaves).sum().backward()

    step()
    cuda = bench.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        step()
        bench.synchronize()
    events = profile.key_averages()
    spent = {e.key[:60]: (e.device_time_total if cuda else e.self_cpu_time_total) / 1e3 for e in events}
    return dict(sorted(spent.items(), key=lambda item: -item[1])[:6])


def time_scan(bench: Bench, shape, dtype, bandwidth: float, path: str) -> dict[str, Any]:
    return time_both(bench, ss2d, scan_arguments(bench, *shape, dtype=dtype), bandwidth, path)


def time_forward(bench: Bench, shape, sequential: bool) -> dict[str, Any]:
    """Milliseconds of either way, by which `gpu.fills_gpu` chooses without having measured."""
    leaves = scan_arguments(bench, *shape, dtype=torch.bfloat16)
    with bench.scanning(sequential), bench.forced(bench.path), torch.no_grad():
        return {"forward ms": bench.ms(lambda: ss2d(*leaves))}


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
        for part in ("eval", "train"):
            yield (
                f"{name} {part} bf16 compiled",
                lambda n=name, p=part: time_model(bench, n, p, "bf16", compiled=True),
            )
        yield f"{name} B=1 latency, CUDA graph", lambda n=name: latency(bench, n)
    for batch in (1, 2):
        yield f"vmamba_tiny B={batch} 1280x800", lambda b=batch: latency(bench, "vmamba_tiny", (800, 1280), b)
    for size in (224, 384, 512, 640, 768, 1024):
        for name in ("vmamba_tiny", PEERS[0]):
            yield (
                f"{name} eval bf16 {size}x{size}",
                lambda n=name, s=size: time_model(bench, n, "eval", "bf16", size=s),
            )


def time_model(
    bench: Bench, name: str, part: str, precision: str, size: int = 224, compiled: bool = False
) -> dict[str, Any]:
    size = 32 if bench.smallest else size
    batch = max(1, bench.batch * 224**2 // size**2) if not bench.smallest else 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    sized = {"img_size": size} if name.startswith("swin") else {}
    model = timm.create_model(name, **sized).to(bench.device).to(memory_format=torch.channels_last)
    model.train(part == "train")
    run = torch.compile(model) if compiled else model
    images = torch.randn(batch, 3, size, size, device=bench.device).to(memory_format=torch.channels_last)
    autocast = torch.autocast(bench.device.type, HALF.get(precision), enabled=precision in HALF)

    def step():
        with autocast, torch.set_grad_enabled(part == "train"):
            out = run(images)
        if part == "train":
            model.zero_grad(set_to_none=True)
            out.float().logsumexp(1).sum().backward()

    ms = bench.ms(step)
    pixels = batch * size**2
    return {"images/s": 1e3 * batch / ms, "ns/pixel": 1e6 * ms / pixels, "batch": batch, "peak MB": bench.peak_mb(step)}


def latency(bench: Bench, name: str, size: tuple[int, int] = (224, 224), batch: int = 1) -> dict[str, Any]:
    """Milliseconds of a forward, replayed as a CUDA graph."""
    model = timm.create_model(name).to(bench.device).eval()
    images = torch.randn(batch, 3, *size, device=bench.device)
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
        yield f"{name} CUDA graph", lambda n=name: graphed(bench, n)
        for precision in HALF:
            yield f"{name} trains in {precision}", lambda n=name, q=precision: trains(bench, n, q)


def one_graph(bench: Bench, name: str) -> dict[str, Any]:
    """One graph, also for new sizes, with the outputs of the eager model."""
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


def graphed(bench: Bench, name: str) -> dict[str, Any]:
    """A captured forward gives the outputs of the eager one, for images that it was not captured with."""
    if bench.device.type != "cuda":
        return {"not measured": "CUDA graphs need a GPU"}
    model = timm.create_model(name).to(bench.device).eval()
    images, graph = torch.randn(2, 3, 224, 224, device=bench.device), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        for _ in range(3):
            model(images)
        with torch.cuda.graph(graph):
            out = model(images)
        images.normal_()
        graph.replay()
        error = (out - model(images)).abs().max().item()
    return {"ok": error < 1e-4, "error": error}


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


# ---- running ----

PARTS = {"check": check, "kernels": kernels, "models": models, "compile": compile_part, "official": official}


def run_part(name: str, bench: Bench, minutes: float) -> dict[str, Any]:
    """Measure the cells of a part until the time is up. A failed cell stores its error; the others continue."""
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
    parser.add_argument("--minutes", type=float, default=6.5, help="limit per part; a started cell is finished")
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
    if options.device == "cuda":
        print(*goals(results), sep="\n")
    return 1 if failures else 0


# Targets: (part, cell, value, cell to divide by or None, goal).
SWIN = PEERS[0]
GOALS = [
    *[("kernels", f"ss2d stage {s} torch.bfloat16", "of floor", None, 0.60) for s in (1, 2)],
    *[("kernels", f"ss2d stage {s} torch.bfloat16", "of floor, backward", None, 0.45) for s in (1, 2)],
    ("kernels", "ss2d 320x200, B=1 torch.bfloat16", "of floor", None, 0.45),
    ("models", "vmamba_tiny eval bf16", "images/s", f"{SWIN} eval bf16", 1.8),
    ("models", "vmamba_tiny train bf16", "images/s", f"{SWIN} train bf16", 1.2),
    ("models", "spatial_mamba_tiny eval bf16", "images/s", f"{SWIN} eval bf16", 1.5),
    ("models", "spatial_mamba_tiny train bf16", "images/s", f"{SWIN} train bf16", 1.1),
    ("official", "official scan", "ours, times faster", None, 2.0),
    ("official", "official scan", "backward, times faster", None, 2.0),
    ("official", "VMamba-T eval", "ours, times faster", None, 1.3),
    ("official", "VMamba-T train", "ours, times faster", None, 1.8),
]


def goals(results: dict[str, Any]) -> Iterator[str]:
    """One line per goal whose cells were measured, in this run or in an earlier one."""
    for part, label, value, over, goal in GOALS:
        cells = results.get(part, {}).get("measured", {})
        found = cells.get(label, {}).get(value)
        if over is not None and found is not None:
            base = cells.get(over, {}).get(value)
            found = None if not base else found / base
        if found is not None:
            beside = f" / {over}" if over else ""
            print_as = "reached" if found >= goal else "missed"
            yield f"  {label}{beside}, {value}: {found:.2f}, goal {goal:.2f} {print_as}"


if __name__ == "__main__":
    sys.exit(main())

"""The official VMamba compared with ours, for gpu.py: its scan with cross-scan and merge, and its VMamba-T.

Its CUDA extension is built from the sources in the checkout, for the present GPU only, next to them in `build/`. A
machine without a network can be given the checkout in a folder that git ignores (`build/official`). Where the extension
does not build, its torch path is measured, and the result says so.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import timm
import torch
from gpu_bench import STAGES, Bench, Cell, scan_arguments, time_both

import vssm  # noqa: F401  (registers the models)
from vssm.ops import ss2d


def official(bench: Bench) -> Iterator[Cell]:
    if bench.official is None:
        return
    sys.path.insert(0, str(bench.official / "classification"))
    kernel = build_extension(bench)
    yield "official scan", lambda: official_scan(bench, kernel)
    for part in ("eval", "train"):
        yield f"VMamba-T {part}", lambda p=part: official_model(bench, p)


# Imports of the official code for parts that are not measured.
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


EXTENSION = "selective_scan_cuda_oflex"


def build_extension(bench: Bench) -> str:
    """Make its CUDA extension importable; returns what was built, or why its torch path is used."""
    if importlib.util.find_spec(EXTENSION) is not None:
        return "its CUDA extension, as installed"
    if bench.device.type != "cuda":
        return "its torch path: the extension needs a GPU"
    assert bench.official is not None
    folder = bench.official / "kernels" / "selective_scan" / "csrc" / "selective_scan" / "cusoflex"
    sources = sorted(str(p) for p in folder.glob("*") if p.suffix in (".cpp", ".cu"))
    major, minor = torch.cuda.get_device_capability(bench.device)
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    target = bench.official / "build"
    target.mkdir(exist_ok=True)
    try:
        from torch.utils.cpp_extension import load

        flags = ["-O3", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda", "-std=c++17"]
        includes = [str(folder.parent)]
        module = load(
            EXTENSION, sources, extra_cuda_cflags=flags, extra_include_paths=includes, build_directory=str(target)
        )
    except (ImportError, OSError, RuntimeError) as error:  # no compiler, no ninja, or sources that do not compile
        return f"its torch path: the extension does not build ({str(error).splitlines()[0][:120]})"
    sys.modules[EXTENSION] = module
    return f"its CUDA extension, built for sm_{major}{minor}"


def official_scan(bench: Bench, kernel: str) -> dict[str, Any]:
    """Cross-scan, selective scan and merge of its block at stage 1, compared with ours on the same shapes."""
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
        "kernel": kernel,
        "forward ms": forward,
        "backward ms": backward,
        "ours, times faster": forward / ours["forward ms"],
        "backward, times faster": backward / ours["backward ms"],
    }


def official_model(bench: Bench, part: str) -> dict[str, Any]:
    """Its VMamba-T and ours, alternating, under bfloat16 autocast."""
    found = {"official": official_module(bench).vmamba_tiny_s1l8(), "ours": timm.create_model("vmamba_tiny")}
    if bench.smallest:
        found["ours"] = timm.create_model("vmamba_nano")
    size, batch = (32, 1) if bench.smallest else (224, bench.batch)
    images = torch.randn(batch, 3, size, size, device=bench.device)
    values: dict[str, Any] = {}
    for name, model in found.items():
        model = model.to(bench.device).train(part == "train")

        def step(model=model):
            with torch.autocast(bench.device.type, torch.bfloat16), torch.set_grad_enabled(part == "train"):
                out = model(images)
            if part == "train":
                model.zero_grad(set_to_none=True)
                out.float().logsumexp(1).sum().backward()

        values |= {f"{name} images/s": 1e3 * batch / bench.ms(step), f"{name} peak MB": bench.peak_mb(step)}
    return values | {"ours, times faster": values["ours images/s"] / values["official images/s"]}

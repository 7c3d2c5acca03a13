"""Triton without a GPU: kernels interpreted and compiled ahead of time, each in a process of its own.

Interpretation is chosen when Triton is imported, so it cannot happen in this process.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vssm.ops import CROSS, PathUnavailable, dispatch, explain, gpu, ss2d, use
from vssm.ops.routes import encode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
needs_triton = pytest.mark.skipif(gpu.missing_reason() is not None, reason=str(gpu.missing_reason()))
interpreting = pytest.mark.skipif(gpu.interpreted(), reason="this process interprets kernels itself")


# The scan takes as long as all others together. A process for each file would import torch and timm that often.
FILES = {str(path) for path in HERE.glob("test_triton_*.py")}
INTERPRETED = {"scan": [str(HERE / "test_triton_scan.py")]}
INTERPRETED["others"] = sorted(FILES.difference(INTERPRETED["scan"]))


def run(*command, **environment):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def architectures(request):
    """Compute capabilities of GPUs: one takes a minute of one core."""
    return (90, 80) if request.config.getoption("--full") else (90,)


@pytest.fixture(scope="module")
def processes(tmp_path_factory, architectures):
    """What the tests below wait for: minutes of one core, so two at a time."""
    cache = str(tmp_path_factory.mktemp("triton"))
    with ThreadPoolExecutor(2) as pool:
        found = {
            name: pool.submit(run, "pytest", "-q", "-p", "no:cacheprovider", *files, TRITON_INTERPRET="1")
            for name, files in INTERPRETED.items()
        }
        targets = [f"sm_{sm}" for sm in architectures]
        found["compiled"] = pool.submit(run, "tests.ops.compile_triton", *targets, TRITON_CACHE_DIR=cache)
        yield found


@needs_triton
@interpreting
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted(name, processes):
    done = processes[name].result()
    assert done.returncode == 0 and " passed" in done.stdout and " skipped" not in done.stdout, done.stdout[-6000:]


@needs_triton
@interpreting
def test_every_kernel_compiles_for_gpus_that_are_not_here(processes, architectures):
    done = processes["compiled"].result()
    assert done.returncode == 0, done.stderr[-6000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["sm"] for kernel in compiled} == set(architectures)
    for sm in architectures:
        names = {k["kernel"] for k in compiled if k["sm"] == sm}
        scans = "sequential_scan tile_states state_passing tile_scan gradients"
        convolutions = "fuse fuse_transposed correlate convolve convolve_gradients"
        others = "gather_states point_gradients scatter read_out term_gradients skip_gradients normalise"
        others += " normalise_gradients"
        assert names == {*scans.split(), *convolutions.split(), *others.split()}
    for kernel in compiled:
        # Every GPU gives a program 48 KiB of shared memory. Spills stay in the cache.
        assert kernel["shared"] <= 48 * 1024 and kernel["spilled"] <= 1024, kernel


def test_tiles_that_a_gpu_has_no_room_for_are_left_out(monkeypatch):
    """Stand-ins for a GPU of 227 KiB a program, one of 64, and one whose properties say so under another name."""
    both, narrow = [(16, 32), (16, 64)], [(16, 32)]
    assert gpu.scan_tiles(1024, 256, backward=True) == both
    gpus = {0: SimpleNamespace(shared_memory_per_block_optin=227 << 10, shared_memory_per_block=48 << 10)}
    gpus |= {1: SimpleNamespace(shared_memory_per_block_optin=64 << 10, shared_memory_per_block=48 << 10)}
    gpus |= {2: SimpleNamespace(shared_memory_per_block=64 << 10)}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    for device, of_rank_64 in ((0, both), (1, narrow), (2, narrow)):
        gpu._shared_memory_of.cache_clear()
        monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
        assert gpu.scan_tiles(1024, 64, backward=True) == of_rank_64
        assert gpu.scan_tiles(1024, 256, backward=True) == narrow  # one is left: its launch says what is missing
        assert gpu.scan_tiles(1024, 256, backward=False) == [(8, 128), (16, 64), (32, 32)]
    gpu._shared_memory_of.cache_clear()


def test_on_the_cpu_triton_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use("triton"), pytest.raises(PathUnavailable, match="when the process was started with TRITON_INTERPRET=1"):
        dispatch.choose("ss2d", torch.empty(1), dispatch.requested())


def test_on_a_gpu_triton_comes_before_torch_and_its_absence_is_said_once(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(gpu, "missing_reason", lambda: None)
    dispatch.reset()
    assert dispatch._choose("ss2d", cuda, torch.float16, "") == "triton"
    assert dispatch._choose("ss2d", cuda, torch.float64, "") == "torch"
    assert explain("ss2d", device="cuda").choices[0].why == "Triton kernels"
    monkeypatch.setattr(gpu, "missing_reason", lambda: "Triton is not installed; `pip install triton`")
    dispatch.reset()
    with pytest.warns(dispatch.SlowPathWarning, match="torch path runs instead.*pip install triton") as said:
        assert dispatch._choose("ss2d", cuda, torch.float32, "") == "torch"
        assert dispatch._choose("ss2d", cuda, torch.float16, "") == "torch"
    assert len(said) == 1
    with pytest.raises(PathUnavailable, match="'triton' was demanded for ss2d and cannot run: Triton is not installed"):
        dispatch._choose("ss2d", cuda, torch.float32, "triton")
    dispatch.reset()


class Failing:
    """Stands in for a kernel that does not run."""

    def __init__(self, error):
        self.error, self.fn = error, test_interpreted

    def __getitem__(self, grid):
        def fail(**arguments):
            raise self.error

        return fail


@needs_triton
def test_a_kernel_that_fails_is_named_and_nothing_runs_in_its_place():
    from triton.errors import TritonError
    from triton.runtime.errors import OutOfResources

    def launch(error):
        gpu.launch(Failing(error), (1, 1, 1), torch.device("cpu"))

    with pytest.raises(ValueError, match="needs 300000 of shared memory, this GPU has 232448; take smaller sizes"):
        launch(OutOfResources(300000, 232448, "shared memory"))
    for error in (TritonError("bad syntax"), RuntimeError("ptxas failed")):
        with pytest.raises(gpu.KernelError, match=r"test_interpreted of .*test_triton failed on cpu: (bad|ptxas)"):
            launch(error)
    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory$"):  # a caller may want to halve the batch
        launch(torch.OutOfMemoryError("no memory"))


def test_fake_cuda_tensors_need_no_gpu():
    """Shapes, dtypes and devices are known without a kernel: what torch.compile and torch.export ask for."""
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(2, 8, 4, 5, device="cuda", dtype=torch.bfloat16)
        x_proj, dt_weight = torch.empty(4, 4, 8, device="cuda"), torch.empty(4, 8, 2, device="cuda")
        dt_bias, A = torch.empty(4, 8, device="cuda"), torch.empty(32, 1, device="cuda")
        y = ss2d(x, x_proj, dt_weight, dt_bias, A)
        assert y.shape == x.shape and y.dtype == torch.float32 and y.device.type == "cuda"
        proj = torch.empty(2, 4, 5, 16, device="cuda", dtype=torch.bfloat16)
        dx, dproj, *_ = torch.ops.vssm.ss2d_backward(y, x, proj, dt_weight, dt_bias, A, None, encode(CROSS), "")
        assert dx.dtype == dproj.dtype == torch.bfloat16 and dx.device.type == "cuda"

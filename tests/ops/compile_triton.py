"""Compile every Triton kernel for GPUs that are not here, and print what each takes: a program, run by the tests.

    python -m tests.ops.compile_triton sm_90 sm_80

Triton is told of a GPU that is absent, and the operators are called on CPU tensors with the launch replaced: a kernel
is compiled for the arguments it was given, as its launcher would, and not run. One line of JSON per kernel: name,
target, registers, bytes spilled, bytes of shared memory, warps. For the scan of one state also what a warp executes
for each pixel, channel and route of its tile: instructions in all, and those that move data (a loop's body counts
once: with one state there is none over states; what is around the tile is shared out).
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vssm.ops import CROSS, Route, gpu
from vssm.ops.routes import encode


class AbsentGPU:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # by which a kernel remembers what it has compiled

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def dissect(tool, cubin, *options):
    """What a tool that comes with Triton says of a compiled kernel."""
    command = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([command, *options, file.name], capture_output=True, text=True, check=True).stdout


def resources(cubin):
    """(registers, spilled bytes) of a compiled kernel."""
    text = dissect("cuobjdump", cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def executed(cubin, elements):
    """Instructions of a compiled kernel per element, and those that move data."""
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w+)", dissect("nvdisasm", cubin, "-c"), re.M)
    moving = [name for name in lines if name.startswith(("LD", "ST", "SHFL"))]
    return {"instructions": round(len(lines) / elements, 1), "moving": round(len(moving) / elements, 1)}


class Compiler:
    """Stands in for `gpu.launch`. Not `every`: each kernel once, as it is launched first."""

    def __init__(self, capability: int, every: bool):
        self.capability, self.every, self.seen = capability, every, set()
        driver.set_active(AbsentGPU(capability))

    def __call__(self, kernel, grid, device, **arguments):
        if not self.every and kernel.fn.__name__ in self.seen:
            return
        compiled = kernel.warmup(grid=grid, **arguments)
        if compiled.hash in self.seen:
            return
        self.seen |= {compiled.hash, kernel.fn.__name__}
        registers, spilled = resources(compiled.asm["cubin"])
        assert compiled.metadata.target.arch == self.capability
        line = {"kernel": kernel.fn.__name__, "sm": self.capability, "registers": registers, "spilled": spilled}
        line |= {"shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps}
        if "STEPS" in arguments and arguments["N"] == 1:
            line |= {"columns": arguments["pixel_step"] > 1, "C": arguments["CHANNELS"], "R": arguments["R"]}
            elements = arguments["P"] * arguments["BC"] // 32 * len(arguments.get("ROUTES", [0]))
            line |= executed(compiled.asm["cubin"], elements)
        print(json.dumps(line), flush=True)


def scan_arguments(dtype, C, R, N, side, routes):
    K = len(routes)
    x = torch.zeros(2, side, side, C, dtype=dtype).permute(0, 3, 1, 2)
    proj = torch.zeros(2, side, side, K * (R + 2 * N), dtype=dtype)
    return [x, proj, torch.zeros(K, C, R), torch.zeros(K, C), torch.zeros(K * C, N), torch.zeros(K * C)], encode(routes)


def compile_scan():
    from vssm.ops.ss2d import triton as ss2d

    # VMamba-T's first and third stage; more states, columns lower than a tile and channels that fill none.
    tensors, routes = scan_arguments(torch.bfloat16, 96, 6, 1, 56, CROSS)
    ss2d.backward(ss2d.forward(*tensors, routes), *tensors, routes)
    tensors, routes = scan_arguments(torch.bfloat16, 384, 24, 1, 14, CROSS)
    gpu.SCAN_SEQUENTIAL = True
    ss2d.forward(*tensors, routes)
    gpu.SCAN_SEQUENTIAL = None
    tensors, routes = scan_arguments(torch.float32, 72, 24, 4, 14, (Route("columns", -1),))
    ss2d.backward(ss2d.forward(*tensors, routes), *tensors, routes)
    tensors, routes = scan_arguments(torch.float32, 72, 5, 4, 14, (Route("columns", -1),))  # a high rank takes long
    ss2d.states_backward(ss2d.states_forward(*tensors[:-1], routes), *tensors[:-1], routes)


def compile_sequences():
    from vssm.ops.selective_scan import triton as scan

    K, C, N, L = 4, 33, 4, 49
    u, B = torch.zeros(2, K * C, L), torch.zeros(2, K, N, L)
    bias = torch.zeros(K * C)
    args = u, u.clone(), torch.zeros(K * C, N), B, B.clone(), bias, bias, torch.zeros(2, K * C, N), True
    y, last = scan.forward(*args)
    scan.backward(y, last, *args)


def compile_readout():
    from vssm.ops.ss2d import triton_readout as readout

    for dtype, K, E in ((torch.float32, 1, 33), (torch.bfloat16, 4, 96)):
        h = torch.zeros(2, K, 14, 14, E, 1).permute(0, 1, 4, 5, 2, 3)
        C, x, skip = torch.zeros(2, K, 1, 14, 14), torch.zeros(2, E, 14, 14), torch.zeros(E)
        y = readout.forward(h, C.to(dtype), x.to(dtype), skip)
        readout.backward(y, h, C.to(dtype), x.to(dtype), skip)


def compile_norms():
    from vssm.ops.layer_norm import triton as norm

    for dtype, C in ((torch.float32, 33), (torch.bfloat16, 192), (torch.bfloat16, 8192)):
        x, weight, bias = torch.zeros(50, C, dtype=dtype), torch.zeros(C), torch.zeros(C)
        y = norm.forward(x, weight, bias, x, 1e-5)
        norm.backward(y, x, weight, bias, x, 1e-5)
        norm.backward(norm.forward(x, weight, None, None, 1e-5, False), x, weight, None, None, 1e-5, centred=False)


def compile_fusion():
    from vssm.ops.state_fusion import triton as fusion

    for dtype in (torch.float32, torch.bfloat16):
        h = torch.zeros(2, 14, 14, 128, dtype=dtype).permute(0, 3, 1, 2)
        C, D = torch.zeros(2, 1, 14, 14), torch.zeros(128)
        weights = torch.zeros(3, 128, 1, 3, 3), torch.zeros(3)
        fusion.backward(fusion.forward(h, *weights, [1, 3, 5]), h, *weights, [1, 3, 5])
        y = fusion.readout_forward(h, *weights, C, h, D, [1, 3, 5])
        fusion.readout_backward(y, h, *weights, C, h, D, [1, 3, 5])


def compile_depthwise():
    from vssm.ops.depthwise import triton as depthwise

    for dtype, C in ((torch.float32, 33), (torch.bfloat16, 96)):
        x = torch.zeros(2, 14, 14, C, dtype=dtype).permute(0, 3, 1, 2)
        args = torch.zeros(C, 1, 3, 3), torch.zeros(C), "silu", True
        depthwise.backward(depthwise.forward(x, *args), x, *args)


def compile_causal():
    from vssm.ops.causal_conv1d import triton as causal

    for dtype, C in ((torch.float32, 33), (torch.bfloat16, 384)):
        x = torch.zeros(2, 197, C, dtype=dtype).mT
        args = torch.zeros(C, 4), torch.zeros(C), "silu", True
        causal.backward(causal.forward(x, *args), x, *args)


def compile_gather():
    from vssm.ops.state_gather import triton as gather

    for dtype, C in ((torch.float32, 33), (torch.bfloat16, 96)):
        h = torch.zeros(2, 4, 1, 14, 14, C, dtype=dtype).permute(0, 1, 5, 2, 3, 4)
        args = h, torch.zeros(2, 4, 4, 2, 14, 14), torch.zeros(2, 4, 4, 14, 14)
        gather.backward(gather.forward(*args), *args)


def main():
    gpu.dot_precision = lambda device, half=False: "tf32" if half else "tf32x3"
    for index, name in enumerate(sys.argv[1:]):
        gpu.launch = Compiler(int(name.removeprefix("sm_")), every=index == 0)
        compile_scan()
        compile_sequences()
        compile_readout()
        compile_norms()
        compile_fusion()
        compile_depthwise()
        compile_causal()
        compile_gather()


if __name__ == "__main__":
    main()

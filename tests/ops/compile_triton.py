"""Compile every Triton kernel for GPUs that are not here, and print what each takes: a program, run by the tests.

    python -m tests.ops.compile_triton sm_90 sm_80

The operators are called on CPU tensors with the launch replaced: instead of running, a kernel is compiled for the
arguments it was given. One line of JSON per kernel: name, target, registers, spilled and shared bytes.
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
from triton.compiler import ASTSource

from vssm.ops import CROSS, gpu
from vssm.ops.routes import encode

_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


def _signature(value, path, constants, attributes):
    """The type of one argument as Triton's launcher would see it: 1 is a constant, multiples of 16 are marked."""
    if isinstance(value, tuple):
        return tuple(_signature(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        if value.storage_offset() * value.element_size() % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return _TYPES[value.dtype]
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def source(kernel, arguments):
    """The ASTSource of `kernel` for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        else:
            if parameter.do_not_specialize:
                signature[parameter.name] = "i32"
                continue
            marked = {}
            signature[parameter.name] = _signature(value, (i,), constants, marked)
            if not parameter.do_not_specialize_on_alignment:
                attributes |= marked
    return ASTSource(kernel, signature, constants, attributes)


def resources(cubin):
    """(registers, spilled bytes) of a compiled kernel, by the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


class Compiler:
    """Stands in for `gpu.launch`."""

    def __init__(self, capabilities, report):
        self.capabilities, self.report, self.seen = capabilities, report, set()

    def __call__(self, kernel, grid, device, **arguments):
        options = {k: arguments.pop(k) for k in ("num_warps", "num_stages") if k in arguments}
        unit = source(kernel, arguments)
        for capability in self.capabilities:
            key = unit.hash(), capability, tuple(options.items())
            if key in self.seen:
                continue
            self.seen.add(key)
            compiled = triton.compile(unit, target=GPUTarget("cuda", capability, 32), options=options)
            registers, spilled = resources(compiled.asm["cubin"])
            self.report(kernel, capability, arguments, compiled, registers, spilled)


def _print(kernel, capability, arguments, compiled, registers, spilled):
    shared = compiled.metadata.shared
    line = {"kernel": kernel.fn.__name__, "sm": capability, "registers": registers, "spilled": spilled}
    print(json.dumps(line | {"shared": shared, "warps": compiled.metadata.num_warps}), flush=True)


def compile_scan():
    from vssm.ops.ss2d import triton as ss2d

    for dtype, C, R, N, side in ((torch.float32, 96, 6, 1, 56), (torch.bfloat16, 384, 24, 16, 14)):
        x = torch.zeros(2, side, side, C, dtype=dtype).permute(0, 3, 1, 2)
        proj = torch.zeros(2, side, side, 4 * (R + 2 * N), dtype=dtype)
        weights = torch.zeros(4, C, R), torch.zeros(4, C), torch.zeros(4 * C, N)
        routes = encode(CROSS)
        y = ss2d.forward(x, proj, *weights, torch.zeros(4 * C), routes)
        ss2d.backward(y, x, proj, *weights, torch.zeros(4 * C), routes)
    ss2d.states_backward(ss2d.states_forward(x, proj, *weights, routes), x, proj, *weights, routes)


def compile_sequences():
    from vssm.ops.selective_scan import triton as scan

    K, C, N, L = 4, 33, 4, 49
    u, B = torch.zeros(2, K * C, L), torch.zeros(2, K, N, L)
    bias = torch.zeros(K * C)
    args = u, u.clone(), torch.zeros(K * C, N), B, B.clone(), bias, bias, True, torch.zeros(2, K * C, N)
    y, last = scan.forward(*args)
    scan.backward(y, last, *args)


def compile_fusion():
    from vssm.ops.state_fusion import triton as fusion

    for dtype in (torch.float32, torch.bfloat16):
        h = torch.zeros(2, 14, 14, 128, dtype=dtype).permute(0, 3, 1, 2)
        C, D = torch.zeros(2, 1, 14, 14), torch.zeros(128)
        weights = torch.zeros(3, 128, 1, 3, 3), torch.zeros(3)
        fusion.backward(fusion.forward(h, *weights, [1, 3, 5]), h, *weights, [1, 3, 5])
        y = fusion.readout_forward(h, *weights, C, h, D, [1, 3, 5])
        fusion.readout_backward(y, h, *weights, C, h, D, [1, 3, 5])


def main():
    capabilities = [int(name.removeprefix("sm_")) for name in sys.argv[1:]]
    gpu.launch = Compiler(capabilities, _print)
    gpu.dot_precision = lambda device: "tf32x3"
    compile_scan()
    compile_sequences()
    compile_fusion()


if __name__ == "__main__":
    main()

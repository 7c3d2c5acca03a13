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

from vssm.ops import gpu

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
            signature[parameter.name] = _signature(value, (i,), constants, attributes)
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


def sequences(dtype, K, C, N, L):
    u, dt = torch.zeros(2, K * C, L, dtype=dtype), torch.zeros(2, K * C, L, dtype=dtype)
    B = torch.zeros(2, K, N, L, dtype=dtype)
    per_channel = torch.zeros(K * C)
    return u, dt, torch.zeros(K * C, N), B, B.clone(), per_channel, per_channel, True, torch.zeros(2, K * C, N)


def compile_scan():
    from vssm.ops.selective_scan import triton as scan

    for dtype, C, N, L in ((torch.float32, 96, 1, 3136), (torch.bfloat16, 33, 16, 49)):
        args = sequences(dtype, 4, C, N, L)
        y, last = scan.forward(*args)
        scan.backward(y, last, *args)
        states = (*args[:4], *args[6:])
        scan.states_backward(scan.states_forward(*states), *states)


def main():
    capabilities = [int(name.removeprefix("sm_")) for name in sys.argv[1:]]
    gpu.launch = Compiler(capabilities, _print)
    compile_scan()


if __name__ == "__main__":
    main()

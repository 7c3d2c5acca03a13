"""Derivatives beyond the kernels' and registrations on Triton, interpreted. Run by test_triton.py."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from torch.func import grad, jvp
from torch.library import opcheck

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.cases import CASES, Calls, loss
from vssm.ops import gpu, use
from vssm.ops.operator import OPERATORS

TRITON = [name for name in CASES if name.split()[0] in OPERATORS and "zoh" not in name]
TRITON = [name for name in TRITON if "triton" in OPERATORS[name.split()[0]].paths]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """An interpreted tile takes as long as it has positions."""
    monkeypatch.setattr(gpu, "SCAN_TILE", (8, 32))


def both(function):
    """The same on Triton's path and on the reference."""
    results = []
    for path in ("triton", "reference"):
        with use(path):
            results.append(function())
    return zip(*results, strict=True)


@pytest.mark.parametrize("name", TRITON)
def test_second_derivatives_and_tangents(name):
    case = CASES[name]
    values = tuple(v.float() for v in case.tensors.values())

    def second():
        leaves = [v.clone().requires_grad_() for v in values]
        first = torch.autograd.grad(loss(case(*leaves)), leaves, create_graph=True)
        return torch.autograd.grad(loss(first), leaves)

    def transformed():
        tangents = tuple(v.cos() for v in values)
        return *jvp(case, values, tangents)[1], *grad(lambda *x: loss(case(*x)), tuple(range(len(values))))(*values)

    for function in (second, transformed):
        for found, expected in both(function):
            assert (found - expected).abs().max() <= 2e-5 * expected.abs().max().clamp(min=1)


def test_schemas_and_shapes():
    """What depends on the path; registrations do not, and test_contract.py has them."""
    with use("triton"), Calls() as calls:
        for name in TRITON:
            leaves = [v.float().requires_grad_() for v in CASES[name].tensors.values()]
            torch.autograd.grad(loss(CASES[name](*leaves)), leaves)
    names = {op._overloadpacket.__name__ for op in calls.seen}
    assert names >= {name.split()[0] for name in TRITON}
    for op, args in calls.seen.items():
        first = not op._overloadpacket.__name__.endswith("_backward")
        given = [a.detach().clone().requires_grad_(first) if isinstance(a, torch.Tensor) else a for a in args]
        opcheck(op, given, test_utils=("test_schema", "test_faketensor"))

"""The self-test: it covers every operator, passes here, and finds each kernel that is a little wrong."""

import contextlib
import sys
import time

import pytest
import torch

import vssm.ops
from tests.ops.agree import needs_core
from tests.ops.cases import Calls
from vssm.ops import PathUnavailable, dispatch, native, self_check, self_test, use
from vssm.ops.operator import OPERATORS, Operator
from vssm.ops.self_check import BOUND
from vssm.ops.self_check.cases import BUILDERS, DTYPES, SIZES, Size, cases_of, lay_out

SMALL = (Size(2, 17, 7, 5, 1, "channels_last", wide=True),)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in BOUND}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(self_check.cases, "SIZES", SMALL)


def test_every_operator_of_the_dispatch_table_has_cases():
    """A new operator needs an entry in BUILDERS."""
    assert set(BUILDERS) == set(dispatch.operators()) >= set(OPERATORS)


@needs_core
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_cases_run_the_operator_they_are_filed_under(name, small):
    case = next(cases_of(name))
    with use("core"), torch.no_grad(), Calls() as calls:
        case(case.maps | case.weights)
    assert getattr(torch.ops.vssm, name).default in calls.seen


def test_sizes_are_odd_and_cover_what_kernels_cut_by():
    assert {1, 3, 17, 96} <= {s.C for s in SIZES} and {1, 2, 16} <= {s.N for s in SIZES}
    assert {(1, 1), (7, 5), (14, 14)} <= {(s.H, s.W) for s in SIZES}
    assert {"contiguous", "channels_last", "transposed", "sliced", "expanded gradients"} == {s.layout for s in SIZES}


def test_layouts_keep_the_values_in_other_memory():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    strides = {"contiguous": (60, 20, 5, 1), "channels_last": (60, 1, 15, 3), "transposed": (60, 20, 1, 4)}
    strides["sliced"] = (84, 28, 7, 1)
    for layout, expected in strides.items():
        y = lay_out(x, layout)
        assert torch.equal(y, x) and y.stride() == expected, layout
    assert lay_out(x, "sliced").storage_offset() == 1


@pytest.mark.parametrize("path", ["", "torch"])
def test_every_path_is_right_at_one_size(path, small):
    with use(path) if path else contextlib.nullcontext():
        results = self_test()
    assert [r for r in results if not r.ok] == []
    assert {r.operator for r in results} == set(dispatch.operators())
    assert ({r.path for r in results} == {"torch"}) == (path == "torch" or not native.available())


@needs_core
def test_threads_are_for_the_core_as_it_is_chosen(small, monkeypatch):
    """In every call they would wait for each other, for minutes on a busy machine."""
    seen = set()
    evaluate = self_check._evaluate

    def spy(case, tensors, cotangents, way):
        seen.add((str(way), next(iter(tensors.values())).dtype, torch.get_num_threads()))
        return evaluate(case, tensors, cotangents, way)

    monkeypatch.setattr(self_check, "_evaluate", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        self_test(operators=["rms_norm"])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert {(way, dtype) for way, dtype, threads in seen if threads == 3} == {(f"core {native.isa()}", torch.float32)}
    assert {threads for _, _, threads in seen} == {1, 3}


@pytest.mark.full
def test_every_path_of_this_machine_is_right():
    began = time.process_time()
    results, seconds = self_test(), time.process_time() - began
    assert [r for r in results if not r.ok] == []
    found = {(r.operator, r.path, r.dtype) for r in results}
    assert len(found) == len(results)
    paths = ["torch", *(f"core {isa}" for isa in native.isas() if native.available())]
    for operator in dispatch.operators():
        for dtype, name in NAMES.items():
            for path in paths:
                runs = "core" not in path or not (operator == "linear" and path.split()[1] not in ("avx512", "avx2"))
                runs &= dtype in DTYPES.get(operator, BOUND)
                assert ((operator, path, name) in found) == runs, (operator, path, name)
    assert all(r.cases >= (3 if "16" in r.dtype else 7) for r in results)
    assert seconds < 60  # 10 of one core; the bound leaves room for a busy machine


@pytest.mark.full
def test_the_torch_path_alone_is_right():
    with use("torch"):
        results = self_test()
    assert {r.path for r in results} == {"torch"} and {r.operator for r in results} == set(dispatch.operators())
    assert [r for r in results if not r.ok] == []


@pytest.mark.full
def test_bounds_are_a_small_multiple_of_what_the_reference_loses_itself():
    """The reference in the dtype of the case against the reference in float64, over all cases."""
    with use("reference"):
        results = self_test()
    for dtype, name in NAMES.items():
        lost = max(r.error for r in results if r.dtype == name and r.path == "reference")
        if dtype is not torch.float64:  # there the two are the same
            assert 3 * lost < BOUND[dtype] < 100 * lost, (name, lost)


def _scaled(y, factor):
    if isinstance(y, torch.Tensor):
        return y * factor
    return type(y)(None if part is None else part * factor for part in y)


@needs_core
@pytest.mark.parametrize("half", ["forward", "backward"])
def test_a_kernel_that_is_one_percent_off_is_found(half, small, monkeypatch):
    """Every kernel of the core, in float64 and float32. That of conv2d follows."""
    original = Operator._function

    def broken(self, path, name):
        function = original(self, path, name)
        if path != "core" or function is None or not name.endswith(half):
            return function
        return lambda *args: _scaled(function(*args), 1.01)

    monkeypatch.setattr(Operator, "_function", broken)
    plain_backward = {"linear"} if half == "backward" else set()
    for result in self_test(operators=sorted(OPERATORS.keys() - plain_backward)):
        if result.dtype in ("float64", "float32"):
            assert result.ok == (result.path == "torch"), result


@needs_core
def test_a_wrong_weight_of_conv2d_is_found(small, monkeypatch):
    module = sys.modules["vssm.ops.conv2d"]
    original = module.channels_last_weight
    monkeypatch.setattr(module, "channels_last_weight", lambda weight: original(weight) * 1.01)
    wrong = {(r.path.split()[0], r.dtype) for r in self_test(operators=["conv2d"]) if not r.ok}
    assert wrong == {("core", "float32")}


@needs_core
def test_a_kernel_that_fails_or_gives_no_numbers_is_a_finding(small, monkeypatch):
    from vssm.ops.rms_norm import core

    def fail(*args):
        raise RuntimeError("core kernel failed: out of memory\nat line 3")

    monkeypatch.setattr(core, "forward", fail)
    for result in self_test(operators=["rms_norm"]):
        assert result.ok == (result.path == "torch")
        if not result.ok:
            assert result.error == float("inf")
            assert result.worst.startswith("RuntimeError: core kernel failed: out of memory, batch 2, 17 channels")
    monkeypatch.setattr(core, "forward", lambda x, *_: torch.full_like(x, float("nan")))
    assert {r.error for r in self_test(operators=["rms_norm"]) if r.path != "torch"} == {float("inf")}
    monkeypatch.setattr(core, "forward", lambda x, *_: x.new_zeros(3))
    assert all(r.error == float("inf") for r in self_test(operators=["rms_norm"]) if r.path != "torch")


def test_a_path_that_cannot_run_and_an_unknown_operator_are_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use("triton"), pytest.raises(PathUnavailable, match="'triton' was demanded for rms_norm and cannot run"):
        self_test(operators=["rms_norm"])
    with pytest.raises(ValueError, match="unknown operator 'scan'; known: batch_norm, "):
        self_test(operators=["scan"])
    with pytest.raises(ValueError, match=r"device 'cuda:99' is not available here \(.*\); choose another one"):
        self_test("cuda:99")


def test_settings_of_torch_come_back(small):
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [setting.fp32_precision for setting in settings]
    isa = native.isa() if native.available() else ""
    self_test(operators=["rms_norm"])
    assert [setting.fp32_precision for setting in settings] == before and dispatch.requested() == ""
    assert not native.available() or native.isa() == isa


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'self_tests'"):
        vssm.ops.self_tests  # noqa: B018

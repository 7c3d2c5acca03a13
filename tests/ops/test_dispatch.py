"""Which path runs, how it is demanded, and what is said about it."""

import warnings

import pytest
import torch

from tests.ops.agree import needs_core
from tests.ops.test_ss2d import arguments
from vssm.ops import PathUnavailable, SlowPathWarning, dispatch, explain, gpu, native, ss2d, use


@pytest.fixture
def no_core(monkeypatch):
    """The core as on a machine without a compiler."""
    monkeypatch.setattr(native, "unavailable_reason", lambda: "the core was not built; install with a C++ compiler")
    monkeypatch.setattr(native, "available", lambda: False)
    dispatch.reset()
    yield
    dispatch.reset()


def test_use_is_scoped_and_nests():
    assert dispatch.requested() == ""
    with use("torch"):
        assert dispatch.requested() == "torch"
        with use("reference"):
            assert dispatch.requested() == "reference"
        assert dispatch.requested() == "torch"
    assert dispatch.requested() == ""


def test_use_is_left_after_an_error():
    with pytest.raises(ZeroDivisionError), use("torch"):
        raise ZeroDivisionError
    assert dispatch.requested() == ""


def test_unknown_path_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown path 'cuda': choose one of reference, portable, unrolled, torch"):
        use("cuda")


def test_without_the_core_the_torch_path_runs_and_says_so_once(no_core):
    args = arguments(dtype=torch.float32)
    with pytest.warns(SlowPathWarning, match=r"torch path runs instead of a faster one.*install with a C"):
        y = ss2d(*args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss2d(*args)  # once
    with use("reference"):
        torch.testing.assert_close(y, ss2d(*args), rtol=1e-5, atol=1e-5)


def test_a_demanded_core_that_is_absent_raises_with_the_remedy(no_core):
    with use("core"), pytest.raises(PathUnavailable, match=r"'core' was demanded for ss2d.*install with"):
        ss2d(*arguments())


@needs_core
def test_backward_takes_the_path_of_its_forward(monkeypatch):
    from vssm.ops.ss2d import core, two_level

    taken = []
    for module, name in ((core, "core"), (two_level, "torch")):
        original = module.backward

        def spy(*args, original=original, name=name):
            taken.append(name)
            return original(*args)

        monkeypatch.setattr(module, "backward", spy)
    args = [t.requires_grad_() for t in arguments()]
    for path in ("torch", "core"):
        with use(path):
            y = ss2d(*args)
        y.sum().backward()
    with use("torch"):
        y = ss2d(*args)
    with use("core"):
        y.sum().backward()
    assert taken == ["torch", "core", "torch"]


@needs_core
def test_float64_and_half_run_on_the_core_by_themselves():
    for dtype in dispatch.FLOATS:
        assert dispatch.choose("ss2d", torch.empty(1, dtype=dtype)) == "core"


def test_explain_says_what_runs_and_why_not():
    here = explain("ss2d")
    assert here.choices[0].path == ("core" if native.available() else "torch")
    elsewhere = explain("ss2d", device="cuda")
    assert elsewhere.choices[0].path == ("triton" if gpu.missing_reason() is None else "torch")
    assert "runs on the CPU" in elsewhere.choices[0].others["core"]
    assert "ss2d" in str(explain())
    with use("reference"):
        assert explain("ss2d").choices[0].why == "demanded by vssm.ops.use"


def test_explain_names_unknown_operators():
    with pytest.raises(ValueError, match="unknown operator 'scan'; known: "):
        explain("scan")


def test_unsupported_dtype_is_named():
    with use("torch"), pytest.raises(PathUnavailable, match=r"torch\.int32 is not supported"):
        dispatch.choose("ss2d", torch.empty(1, dtype=torch.int32), dispatch.requested())

"""vssm info --self-test: a line per operator, and exit code 1 with one message when a path is wrong."""

import math
import re

import pytest

from tests.ops.agree import needs_core
from vssm.ops import dispatch, native, self_check
from vssm.ops.self_check import Result
from vssm.ops.self_check.cases import Size
from vssm_cli import self_test
from vssm_cli.command import main


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """tests/ops/test_self_check.py runs them all."""
    monkeypatch.setattr(self_check.cases, "SIZES", (Size(2, 17, 7, 5, 2, "transposed", wide=True),))
    monkeypatch.setattr(dispatch, "operators", lambda: ["causal_conv1d", "linear", "rms_norm"])


def rows(text):
    """Operator -> the words of its line."""
    lines = [line.split(maxsplit=6) for line in text.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0] in dispatch.operators()}


def test_a_machine_that_computes_right(capsys):
    assert main(["info", "--device", "cpu", "--self-test"]) == 0
    shown = capsys.readouterr()
    found = rows(shown.out)
    assert shown.err == "" and list(found) == dispatch.operators()
    for calls, error, bound, dtype, result, paths in found.values():
        assert int(calls) > 0 and float(error) <= float(bound) and result == "ok" and "torch" in paths, dtype
    total = sum(int(words[0]) for words in found.values())
    assert re.search(rf"^all right: {total} calls, forward and backward, in \d+ s$", shown.out, re.MULTILINE)


@needs_core
def test_a_machine_with_one_wrong_kernel(capsys, monkeypatch):
    """Wrong with one of the instruction sets, by one percent."""
    from vssm.ops.rms_norm import core

    original, wrong = core.forward, native.isas()[-1]
    monkeypatch.setattr(core, "forward", lambda *a: original(*a) * (1.01 if native.isa() == wrong else 1))
    assert main(["info", "--device", "cpu", "--self-test"]) == 1
    shown = capsys.readouterr()
    found = rows(shown.out)
    assert [words[4] for words in found.values()] == ["ok", "ok", "WRONG"] and "all right" not in shown.out
    assert found["rms_norm"][5] == f"core {wrong}"
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(
        f"vssm: error: rms_norm is wrong on path core {wrong} in float64: relative error 1.0e-02, at most 5e-14 is "
        "rounding; result 0"
    )
    assert "batch 2, 17 channels, 7x5, d_state 2, transposed" in shown.err
    assert "with vssm.ops.use('torch')" in shown.err and "Please report this" in shown.err


def test_the_message_groups_what_is_wrong_alike_and_says_what_failed():
    def result(operator, path, error=1.0, worst="result 0"):
        return Result(operator, path, "float32", 1, error, 5e-5, worst)

    both = [result(operator, path) for operator in ("linear", "rms_norm") for path in ("core avx512", "core avx2")]
    failed = result("mlp", "core avx2", math.inf, "RuntimeError: bad call, batch 1")
    said = self_test.message([*both, failed], [*both, failed])
    assert said.startswith(
        "mlp is wrong on path core avx2 in float32: no finite result; RuntimeError: bad call, batch 1; also wrong: "
        "linear, rms_norm (core avx512, core avx2). Do not"
    )
    assert "also wrong" not in self_test.message([failed], [failed])


def test_a_wrong_path_of_torch_is_not_the_remedy(capsys, monkeypatch):
    from vssm.ops.operator import OPERATORS

    original = OPERATORS["rms_norm"].composition
    monkeypatch.setattr(OPERATORS["rms_norm"], "composition", lambda *args: original(*args) * 1.01)
    monkeypatch.setattr(OPERATORS["rms_norm"], "plain", lambda *args: original(*args) * 1.01)
    with dispatch.use("torch"):
        assert main(["info", "--device", "cpu", "--self-test"]) == 1
    assert "with vssm.ops.use('reference')" in capsys.readouterr().err

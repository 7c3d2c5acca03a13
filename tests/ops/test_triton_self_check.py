"""The self-test on Triton's path, interpreted. Run by test_triton.py."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from vssm.ops import self_check, self_test, use
from vssm.ops.rms_norm import triton as rms_norm
from vssm.ops.self_check.cases import Size


def test_a_right_and_a_wrong_kernel(monkeypatch):
    # The small size is not for Triton, which compiles its kernels for each anew.
    sizes = Size(1, 3, 2, 1, 1), Size(1, 5, 3, 2, 1, "transposed", wide=True)
    monkeypatch.setattr(self_check.cases, "SIZES", sizes)
    with use("triton"):
        results = self_test(operators=["rms_norm", "causal_conv1d"])
        assert {(r.path, r.dtype) for r in results} == {("triton", d) for d in ("float32", "bfloat16", "float16")}
        assert all(r.ok for r in results) and [r.cases for r in results] == [1, 1, 1, 2, 2, 2]
        original = rms_norm.backward
        monkeypatch.setattr(rms_norm, "backward", lambda *args: [g * 1.01 for g in original(*args)])
        assert not any(r.ok for r in self_test(operators=["rms_norm"]) if r.dtype == "float32")

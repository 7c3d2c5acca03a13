"""The checks that operators share: what passes, and which argument an error names."""

import pytest
import torch

from vssm.ops import checks

F32, F64, INT = torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
META = torch.zeros(2, device="meta")


@pytest.mark.parametrize("given", [{}, {"x": None}, {"x": F32, "bias": None}, {"x": None, "y": F32, "z": F32}])
def test_what_fits_passes(given):
    checks.same_device(**given)
    checks.floating(**given)


def test_the_first_tensor_on_another_device_is_named():
    with pytest.raises(ValueError, match=r"^bias is on meta but weight is on cpu; move it with \.to\('cpu'\)$"):
        checks.same_device(x=None, weight=F32, scale=F64, bias=META)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_dtype_that_no_path_computes_is_named(dtype):
    with pytest.raises(ValueError, match=rf"^bias has dtype {dtype}; supported: float32, float64, bfloat16, float16"):
        checks.floating(x=F32, bias=torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_dtype_passes(dtype):
    x = torch.zeros(2, dtype=dtype)
    checks.floating(x=x)
    checks.same_dtype(x=x, y=None, z=x)


def test_the_first_tensor_of_another_dtype_is_named():
    with pytest.raises(ValueError, match=r"^B has dtype torch\.float64 but u has torch\.float32; convert it with"):
        checks.same_dtype(u=F32, dt=None, B=F64)
    with pytest.raises(ValueError, match=r"^u has dtype torch.int64; supported"):
        checks.same_dtype(u=INT, B=INT)


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_a_weight_that_is_not_one_element_per_channel(shape):
    with pytest.raises(ValueError, match=r"^D must be \(2,\), one element per channel of x, got "):
        checks.per_channel("D", torch.zeros(shape), 2)


def test_a_weight_per_channel_and_none_pass():
    checks.per_channel("D", torch.zeros(2), 2)
    checks.per_channel("D", None, 2)


@pytest.mark.parametrize("shape", [(1, 0, 2, 2), (1, 2, 0, 2), (1, 2, 2, 0)])
def test_an_empty_map_is_named(shape):
    with pytest.raises(ValueError, match=r"^h is empty: .*C, H and W must be at least 1"):
        checks.not_empty(torch.zeros(shape), "h")


def test_an_empty_batch_of_maps_passes():
    checks.not_empty(torch.zeros(0, 1, 1, 1))


def test_an_unknown_activation_lists_the_known_ones():
    checks.activation("silu", "none", "silu")
    with pytest.raises(ValueError, match=r"^unknown act 'selu': choose one of none, silu$"):
        checks.activation("selu", "none", "silu")

"""Stems, downsamplings, norm and MLP."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vssm.nn import (
    BottleneckDownsample,
    ConvDownsample,
    ConvStem,
    DepthwiseConv3x3,
    LayerNorm,
    Mlp,
    PatchMerging,
    PatchStem,
    PositionEmbedding,
    ResidualStem,
)


def test_layer_norm_and_its_gate():
    norm = LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, z = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    want = F.layer_norm(x, (6,), norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(norm(x), want)
    torch.testing.assert_close(norm(x, z), want * F.silu(z))


def test_mlp_uses_the_exact_gelu():
    mlp = Mlp(4, 12).double()
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x), approximate="none")))


@pytest.mark.parametrize(("act", "residual"), [("none", False), ("none", True), ("silu", False)])
def test_depthwise_conv(act, residual):
    conv = DepthwiseConv3x3(4, act=act, residual=residual)
    x = torch.randn(2, 5, 6, 4)
    want = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=4).permute(0, 2, 3, 1)
    want = F.silu(want) if act == "silu" else x + want if residual else want
    torch.testing.assert_close(conv(x), want)


@pytest.mark.parametrize("size, merged", [((6, 8), (3, 4)), ((5, 8), (3, 4)), ((5, 7), (3, 4)), ((1, 1), (1, 1))])
def test_patch_merging_order_and_padding(size, merged):
    layer = PatchMerging(2, 4)
    layer.norm = nn.Identity()
    layer.proj = nn.Identity()
    x = torch.randn(1, *size, 2)
    y = layer(x)
    assert y.shape == (1, *merged, 8)
    padded = torch.zeros(1, 2 * merged[0], 2 * merged[1], 2)
    padded[:, : size[0], : size[1]] = x  # zeros at the bottom and right
    at = merged[0] - 1, merged[1] - 1
    cell = padded[0, 2 * at[0] : 2 * at[0] + 2, 2 * at[1] : 2 * at[1] + 2]
    want = torch.cat([cell[0, 0], cell[1, 0], cell[0, 1], cell[1, 1]])
    torch.testing.assert_close(y[0, at[0], at[1]], want)


@pytest.mark.parametrize(
    "layer, size, out",
    [
        (ConvDownsample(4, 8, 2), (7, 9), (3, 4)),
        (ConvDownsample(4, 8, 3), (7, 9), (4, 5)),
        (BottleneckDownsample(4, 8), (7, 9), (4, 5)),
        (PatchMerging(4, 8), (7, 9), (4, 5)),
    ],
)
def test_downsampled_sizes(layer, size, out):
    assert layer.eval()(torch.randn(2, *size, 4)).shape == (2, *out, 8)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("stem, exact", [(PatchStem, True), (ConvStem, False), (ResidualStem, False)])
def test_stem_sizes(stem, exact, patch):
    y = stem(3, 8, patch).eval()(torch.randn(2, 3, 33, 47))
    size = (33 // patch, 47 // patch) if exact else (-(-33 // patch), -(-47 // patch))
    assert y.shape == (2, *size, 8)


def _normal_stem():
    torch.manual_seed(0)
    stem = ResidualStem(3, 16, 4).double().eval()
    for layer in stem.children():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return stem


def test_stem_in_inference_is_its_layers_one_by_one():
    """Also after weights and statistics have changed in place; in half precision it is nearer to the exact result."""
    stem = _normal_stem()
    for _ in range(2):
        plain = copy.deepcopy(stem)
        plain.conv2.register_forward_hook(lambda *_: None)  # hooked: nothing is folded
        x = torch.randn(2, 3, 33, 47, dtype=torch.float64)
        with torch.no_grad():
            before = x.clone()
            torch.testing.assert_close(stem(x), plain(x), rtol=1e-10, atol=1e-10)
            assert torch.equal(x, before)
            half, plain_half = (copy.deepcopy(s).bfloat16()(x.bfloat16()) - plain(x) for s in (stem, plain))
            assert half.norm() < 1.1 * plain_half.norm()
            for tensor in (t for t in stem.state_dict().values() if t.is_floating_point()):
                tensor.mul_(1.25)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        stem(x)
    assert not any("batch_norm" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("change", ["gradients", "no statistics", "one learns", "autocast", "transformed"])
def test_stem_is_not_folded(change):
    stem = _normal_stem()
    if change == "no statistics":
        stem.norm2 = nn.BatchNorm2d(8, track_running_stats=False).double().eval()
    elif change == "one learns":
        stem.norm4.train()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    stem._fixed = None  # what calls it fails
    with torch.set_grad_enabled(change == "gradients"), torch.autocast("cpu", enabled=change == "autocast"):
        y = torch.vmap(stem)(x[:, None]) if change == "transformed" else stem(x)
    assert y.isfinite().all()


@pytest.mark.parametrize(("momentum", "frozen"), [(0.1, False), (None, False), (0.1, True)])
def test_stem_in_training_is_its_layers_one_by_one(momentum, frozen):
    torch.manual_seed(0)
    stem = ResidualStem(3, 16, 4).double()
    for layer in stem.children():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.momentum = momentum
    stem.norm3.train(not frozen)
    plain = copy.deepcopy(stem)
    seen = []
    plain.conv2.register_forward_hook(lambda *_: seen.append(True))  # hooked: nothing is fused
    for step in range(2):
        x = torch.randn(2, 3, 33, 47, dtype=torch.float64)
        y, want = stem(x), plain(x)
        torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
        assert len(seen) == step + 1
        y.square().sum().backward()
        want.square().sum().backward()
    for (name, p), (_, q) in zip(stem.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8, msg=name)
    torch.testing.assert_close(dict(stem.named_buffers()), dict(plain.named_buffers()))
    assert int(stem.norm1.num_batches_tracked) == 2 and int(stem.norm3.num_batches_tracked) == 2 * (not frozen)


def test_a_hooked_bottleneck_is_its_layers_one_by_one():
    layer = BottleneckDownsample(4, 8).double()
    x = torch.randn(2, 7, 9, 4, dtype=torch.float64)
    seen = []
    want = layer(x)
    layer.conv2.register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)
    assert seen == [True]


def test_position_embedding_refuses_another_grid():
    layer = PositionEmbedding(4, (3, 5))
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(layer(x), x + layer.weight.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="for a 3 x 5 grid, this image gives 5 x 3"):
        layer(torch.randn(2, 5, 3, 4))

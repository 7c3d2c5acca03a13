"""Fusion operators by name: dynamic, deformable and local attention, each against a plain computation."""

import io
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F

import vssm
from vssm.nn import STATE_FNS, DeformableFusion, DynamicFusion, LocalAttentionFusion, StateFusion, resolve_state_fn

DESIGNS = {
    "dynamic": DynamicFusion,
    "dynamic outputs": partial(DynamicFusion, kernel_size=3, dilations=(1, 3), mix="outputs"),
    "deformable": partial(DeformableFusion, dilations=(1, 2)),
    "local_attention": LocalAttentionFusion,
}
designs = pytest.mark.parametrize("design", DESIGNS)
NEW = ["dynamic", "deformable", "local_attention"]


def _made(design, *sizes):
    torch.manual_seed(0)
    module = DESIGNS[design](*sizes).double()
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return module


def _states(B=2, K=1, C=4, N=1, H=5, W=4):
    """Random states in the memory order that the scan writes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, K, N, H, W, C, generator=generator, dtype=torch.float64).permute(0, 1, 5, 2, 3, 4)


@designs
@pytest.mark.parametrize("sizes", [(4, 1, 1), (4, 2, 1), (4, 1, 3), (4, 2, 2)])
def test_routes_have_their_own_weights_and_states_share_them(design, sizes):
    C, K, N = sizes
    module, h = _made(design, *sizes), _states(K=K, N=N)
    y = module(h)
    assert y.shape == h.shape and y.dtype == h.dtype
    changed = h.clone()
    changed[:, K - 1] += 1
    assert torch.equal(module(changed)[:, : K - 1], y[:, : K - 1])
    assert not torch.allclose(module(changed)[:, K - 1], y[:, K - 1])
    # The weights hang on the mean over N alone, so that states may be swapped with their results.
    torch.testing.assert_close(module(h.flip(3)), y.flip(3), rtol=1e-12, atol=1e-12)


@designs
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 2), (4, 4)])
def test_any_size_and_no_sample_sees_another(design, size):
    module, h = _made(design, 4), _states(3, H=size[0], W=size[1])
    y = module(h)
    assert y.shape == h.shape and y.isfinite().all()
    for i in range(3):
        torch.testing.assert_close(module(h[i : i + 1]), y[i : i + 1], rtol=1e-12, atol=1e-12)


@designs
def test_gradients_by_finite_differences(design):
    module, h = _made(design, 2, 1, 2), _states(1, C=2, N=2, H=2, W=3).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def function(h, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (h,))

    assert torch.autograd.gradcheck(function, (h, *module.parameters()), fast_mode=True)


def test_dynamic_is_a_mixture_that_the_map_chooses():
    module, h = _made("dynamic", 4), _states()
    (conv,) = module.dynamic
    mean = h[:, 0, :, 0].mean((2, 3))
    logits = F.relu(mean @ conv.fc1.weight[:, :, 0, 0].T) @ conv.fc2.weight[:, :, 0, 0].T + conv.fc2.bias
    pi = (logits / 30).softmax(1)
    torch.testing.assert_close(conv.attention(h)[:, 0], pi)
    padded = F.pad(h[:, 0, :, 0], (5, 5, 5, 5), mode="replicate")
    for b in range(2):
        kernel = sum(p * k for p, k in zip(pi[b], conv.kernels[:, 0], strict=True))
        want = F.conv2d(padded[b : b + 1], kernel[:, None], groups=4) + module.static(h)[b : b + 1, 0, :, 0]
        torch.testing.assert_close(module(h)[b : b + 1, 0, :, 0], want)
    outputs = DynamicFusion(4, mix="outputs").double()
    outputs.load_state_dict(module.state_dict())
    torch.testing.assert_close(outputs(h), module(h))
    module.set_temperature(1.0)
    torch.testing.assert_close(conv.attention(h)[:, 0], logits.softmax(1))
    assert conv.state_dict()["temperature"] == 1


def test_deformable_begins_as_the_plain_fusion_and_follows_its_offsets():
    h = _states(K=2, N=2, H=7, W=6)
    plain, module = StateFusion(4, 2, 2).double(), DeformableFusion(4, 2, 2).double()
    torch.testing.assert_close(module(h), plain(h), rtol=1e-12, atol=1e-12)
    module = DeformableFusion(4, dilations=(1,)).double()
    with torch.no_grad():
        for p in module.kernels:
            p.zero_()[:, :, 1, 1] = 1
        bias = module.offsets.bias.view(9, 2)
        bias[4] = torch.tensor([1.0, -0.5])  # of the centre: a row down, half a column to the left
    h = _states(H=7, W=6)
    want = (h[..., 3, 2] + h[..., 3, 3]) / 2
    torch.testing.assert_close(module(h)[..., 2, 3], want)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_local_attention_is_the_neighbourhoods_softmax(window):
    torch.manual_seed(0)
    module = LocalAttentionFusion(4, heads=2, window=window).double()
    torch.nn.init.normal_(module.bias)
    h = _states(1, H=5, W=6)
    state, y = h[0, 0, :, 0], module(h)[0, 0, :, 0]
    q, k = torch.einsum("qc,chw->qhw", module.qk.weight[:, :, 0, 0], state).view(2, 2, 8, 5, 6)
    for row, column in ((0, 0), (2, 3), (4, 5)):
        for head in range(2):
            near = [(r, c) for r in range(5) for c in range(6) if max(abs(r - row), abs(c - column)) <= 2]
            logits = [q[head, :, row, column] @ k[head, :, r, c] / 8**0.5 for r, c in near]
            bias = [module.bias[0, head, r - row + 2, c - column + 2] for r, c in near]
            weights = (torch.stack(logits) + torch.stack(bias)).softmax(0)
            want = sum(w * state[2 * head : 2 * head + 2, r, c] for w, (r, c) in zip(weights, near, strict=True))
            torch.testing.assert_close(y[2 * head : 2 * head + 2, row, column], want)


@pytest.mark.parametrize("name", NEW)
def test_in_a_model(name):
    torch.manual_seed(0)
    small = {"depths": (1,), "dims": (16,), "num_classes": 5, "state_fn": name}
    model = timm.create_model("spatial_mamba_nano", **small).eval()
    x = torch.randn(2, 3, 33, 20)
    y = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = []
        model.stages[0].blocks[0].mixer.state_fn.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
        torch.testing.assert_close(model(x).float(), y, rtol=0.1, atol=0.05)
    assert seen == [torch.float32]
    model = timm.create_model("spatial_mamba_nano", **small).eval()  # without the hook
    y = model(x)
    scriptable, file = timm.create_model("spatial_mamba_nano", scriptable=True, **small).eval(), io.BytesIO()
    scriptable.load_state_dict(model.state_dict())
    torch.jit.save(torch.jit.script(scriptable), file)
    file.seek(0)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(file)(x), y, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), y, rtol=1e-4, atol=1e-5)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, parameter


def _count(name, **options):
    with torch.device("meta"):
        return vssm.complexity(timm.create_model(name, **options))


def test_counts():
    """Parameters and multiply-adds of the designs, by hand from sums over the blocks."""
    widths = [(48, 16), *[(96, 8)] * 2, *[(192, 4)] * 2]  # E and side of the map of every block of the nano model
    channels, square = sum(e for e, _ in widths), sum(e * e for e, _ in widths)
    pixels = sum(e * side * side for e, side in widths)
    attention = square // 4 + channels + 4 * len(widths)
    plain, design_a = _count("spatial_mamba_nano"), _count("spatial_mamba_nano", state_fn="dynamic")
    outputs = partial(DynamicFusion, kernel_size=3, dilations=(1, 3, 5), mix="outputs")
    design_b = _count("spatial_mamba_nano", state_fn=outputs)
    deformable = _count("spatial_mamba_nano", state_fn="deformable")
    assert design_a.params - plain.params == 4 * 121 * channels + attention
    assert design_b.params - plain.params == 3 * (4 * 9 * channels + attention)
    assert deformable.params - plain.params == 54 * channels + len(widths) * 54
    assert design_a.by_operator["conv"] - plain.by_operator["conv"] == 121 * pixels + square // 4 + channels
    assert design_b.by_operator["conv"] - plain.by_operator["conv"] == 3 * (36 * pixels + square // 4 + channels)
    assert deformable.by_operator["conv"] - plain.by_operator["conv"] == 54 * pixels
    assert deformable.by_operator["sampling"] == 4 * 27 * pixels


def test_the_published_size_of_dynamic_convolution():
    counted = _count("spatial_mamba_tiny_dynamic")
    assert counted.params == 32_989_446 and round(counted.macs / 1e6) == 4792


def test_names():
    for name, factory in STATE_FNS.items():
        assert resolve_state_fn(name) is factory
        model = vssm.create_model("vmamba_nano", state_fn=name, depths=(1,), dims=(16,))
        state_fn = model.stages[0].blocks[0].mixer.state_fn
        assert state_fn is None if factory is None else isinstance(state_fn, factory)
    assert resolve_state_fn(StateFusion) is StateFusion and resolve_state_fn(None) is None
    assert vssm.create_model("spatial_mamba_nano", state_fn="none").stages[0].blocks[0].mixer.state_fn is None
    vssm.create_model("vim_nano", state_fn="none")
    for name in ("vmamba_nano", "spatial_mamba_nano", "vim_nano"):
        with pytest.raises(ValueError, match="unknown state_fn 'sasff': choose one of none, sasf, dynamic, deformable"):
            vssm.create_model(name, state_fn="sasff")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DynamicFusion(4, kernel_size=4), "kernel_size must be odd and positive, got 4"),
        (lambda: DynamicFusion(4, dilations=()), "dilations must be positive"),
        (lambda: DynamicFusion(4, experts=0), "experts and reduction must be at least 1"),
        (lambda: DynamicFusion(4, mix="both"), "unknown mix 'both': choose one of kernels, outputs"),
        (lambda: DynamicFusion(4).set_temperature(0), "temperature must be positive, got 0"),
        (lambda: DeformableFusion(4, dilations=(0,)), "dilations must be positive"),
        (lambda: LocalAttentionFusion(4, heads=3), "heads must divide dim = 4, got 3"),
        (lambda: LocalAttentionFusion(4, radius=-1), "radius must not be negative"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Relevance adds up to the logit, and its rules are those of the paper, computed by hand and by another way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vssm
from tests.goldens import image
from vssm import add_adaptors
from vssm.analysis import NoSuchPart, blocks, relevance, scan_of
from vssm.analysis.matrices import mixing_rows
from vssm.analysis.relevance_rules import Constants, by_rules, gelu, product, silu
from vssm.nn import SS2D, Mlp

SMALL = {"dims": (8, 16), "depths": (1, 2), "num_classes": 5, "drop_path_rate": 0.1}
OLD = {"stem": "v1", "downsample": "v1", "mlp_ratio": 0.0, "conv_bias": True, "gate": True}
VIM = {"dim": 16, "depth": 2, "num_classes": 5}
POOLED = VIM | {"class_token": False, "d_state": 1}
MODELS = {
    "vmamba": ("vmamba_nano", SMALL),
    "vmamba, N = 4": ("vmamba_nano", SMALL | {"d_state": 4, "ssm_ratio": 2.0, "downsample": "v2"}),
    "vanilla": ("vmamba_nano", SMALL | OLD | {"d_state": 3}),
    "linear gate": ("vmamba_nano", SMALL | {"gate": "linear", "act": "gelu"}),
    "gate by GELU": ("vmamba_nano", SMALL | {"gate": True, "act": "gelu", "conv": False}),
    "gate by ReLU": ("vmamba_nano", SMALL | {"gate": True, "act": "relu", "scan": "bidirectional"}),
    "positions": ("vmamba_nano", SMALL | {"pos_embed": True, "img_size": 32}),
    "zero-order hold": ("vmamba_nano", SMALL | {"discretization": "zoh", "d_state": 2}),
    "cascade": ("vmamba_nano", SMALL | {"scan": "cascade", "d_state": 2}),
    "sasf": ("vmamba_nano", SMALL | {"state_fn": "sasf", "d_state": 2}),
    "max pooling": ("vmamba_nano", SMALL | {"global_pool": "catavgmax"}),
    "spatial mamba": ("spatial_mamba_nano", SMALL),
    "dynamic": ("spatial_mamba_nano", SMALL | {"state_fn": "dynamic"}),
    "deformable": ("spatial_mamba_nano", SMALL | {"state_fn": "deformable"}),
    "local attention": ("spatial_mamba_nano", SMALL | {"state_fn": "local_attention", "d_state": 2}),
    "vim": ("vim_nano", VIM),
    "vim, mean of tokens": ("vim_nano", VIM | {"global_pool": "avg"}),
    "vim, other grid": ("vim_nano", VIM | {"img_size": 24}),
    "vim without class token": ("vim_nano", POOLED),
    "vim + sasf": ("vim_nano", POOLED | {"state_fn": "sasf"}),
    "mamba adaptor": ("mamba_adaptor_b1", SMALL | {"patch_size": 2}),
    "mamba adaptor, parallel": ("mamba_adaptor_b2", SMALL | {"patch_size": 2, "parallel": True}),
}
ADDED = {"spatial mamba + adaptors": "spatial mamba", "vim + adaptors": "vim", "vmamba + shared adaptors": "vmamba"}
IMAGE = image(1, (3, 32, 32), torch.float64)


def network(name, dtype=torch.float64):
    """With weights, and statistics of batch norms, far enough from the initial ones for every part to matter."""
    torch.manual_seed(0)
    kind, options = MODELS[ADDED.get(name, name)]
    model = vssm.create_model(kind, **options)
    if name in ADDED:
        add_adaptors(model, share="stage" if "shared" in name else "none")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.3)
                norm.running_var.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


@pytest.mark.parametrize("name", [*MODELS, *ADDED])
def test_relevance_is_conserved(name):
    """map.sum() + bias = logit, where the logit is that of the untouched model and the bias is counted by itself."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model, x = network(name, dtype), IMAGE.to(dtype)
        found = relevance(model, x, 2)
        with torch.no_grad():
            logit = model(x[None])[0, 2].item()
        assert found.logit == logit and found.cls == 2
        assert found.map.shape == (32, 32) and found.map.dtype == torch.float64
        assert abs(found.map.sum().item() + found.bias - logit) <= tolerance * abs(logit)
        assert found.map.abs().sum() > 0.01 * abs(logit), "the image has a part in it"
        assert abs(found.bias) > 1e-3 * abs(logit), "and so have the constants"


@pytest.mark.parametrize("name", [*MODELS, *ADDED])
def test_by_the_rules_the_network_is_the_same_and_its_gradient_is_not(name):
    model, x = network(name), IMAGE[None].clone().requires_grad_(True)
    want = model(x)
    (plain,) = torch.autograd.grad(want[0, 2], x)
    with by_rules(model, Constants()):
        found = model(x)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-12)
    (held,) = torch.autograd.grad(found[0, 2], x)
    maps = relevance(model, IMAGE, 2).map
    torch.testing.assert_close((x * held).detach()[0].sum(0), maps)
    other = (x * plain).detach()[0].sum(0)
    assert (other - maps).norm() > 0.05 * maps.norm(), "gradient times input is something else"


def test_a_linear_model():
    """Relevance is w x, summed over the colours, and the bias is the bias."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 4)).double().eval()
    x = torch.randn(3, 8, 6, dtype=torch.float64)
    found = relevance(model, x, 3)
    torch.testing.assert_close(found.map, (model[1].weight[3].view(3, 8, 6) * x).sum(0).detach())
    assert found.bias == pytest.approx(model[1].bias[3].item(), rel=1e-12)
    assert found.logit == pytest.approx(model(x[None])[0, 3].item(), rel=1e-12)
    assert relevance(model, x).cls == model(x[None])[0].argmax()


@pytest.mark.parametrize("act", [nn.SiLU, nn.GELU, nn.ReLU])
def test_layer_by_layer(act):
    """LRP-0 from the top: R_i = sum_j x_i w_ji R_j / z_j, and an activation hands on what it gets."""
    model = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 7), act(), nn.Linear(7, 5), act(), nn.Linear(5, 4)).double().eval()
    )
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    inputs = [x.flatten()]
    with torch.no_grad():
        for layer in model[1:]:
            inputs.append(layer(inputs[-1]))
        R = torch.zeros(4, dtype=torch.float64)
        R[1], constants = inputs[-1][1], 0.0
        for at in (5, 3, 1):
            layer, a, z = model[at], inputs[at - 1], inputs[at]
            quotient = torch.where(R == 0, 0, R / z)
            constants += (layer.bias * quotient).sum().item()
            R = a * (layer.weight.T @ quotient)
    found = relevance(model, x, 1)
    torch.testing.assert_close(found.map, R.view(3, 2, 2).sum(0))
    assert found.bias == pytest.approx(constants, rel=1e-9)


@pytest.mark.parametrize("rule, function", [(silu, F.silu), (gelu, F.gelu)])
def test_activations(rule, function):
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)  # 0 is among them
    torch.testing.assert_close(rule(x), function(x), rtol=1e-9, atol=1e-12)
    (slope,) = torch.autograd.grad(rule(x).sum(), x)
    at = x != 0
    torch.testing.assert_close(slope[at], (function(x) / x)[at].detach(), rtol=1e-7, atol=1e-9)
    assert slope[~at].item() == 0.5, "the limit"


def test_a_gate_and_what_it_multiplies_have_half_each():
    a, b = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = product(a, b)
    torch.testing.assert_close(y, a * b)
    slopes = torch.autograd.grad(y.sum(), (a, b))
    for x, slope in zip((a, b), slopes, strict=True):
        torch.testing.assert_close(x * slope, 0.5 * a * b)


@pytest.mark.parametrize("kind", ["layer", "rms", "batch"])
def test_norms(kind):
    """The gradient of a norm is that of the affine function with its deviation fixed, its constant is a leaf."""
    x = (torch.randn(2, 3, 4, 5, dtype=torch.float64) + 1).requires_grad_(True)
    if kind == "batch":
        norm = nn.BatchNorm2d(3)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    else:
        norm = vssm.nn.LayerNorm(5) if kind == "layer" else vssm.nn.RMSNorm(5)
    with torch.no_grad():
        for p in norm.parameters():
            p += torch.randn_like(p)
    norm, constant = norm.double().eval(), None
    if kind == "batch":
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        want, constant = x * scale[:, None, None], norm.bias - norm.running_mean * scale
    elif kind == "layer":
        deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
        want, constant = (x - x.mean(-1, keepdim=True)) / deviation * norm.weight, norm.bias
    else:
        want = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach() * norm.weight
    constants, weights = Constants(), torch.randn_like(x)
    with by_rules(norm, constants):
        y = norm(x)
    torch.testing.assert_close(y, norm(x))
    got, should = (torch.autograd.grad((f * weights).sum(), x, retain_graph=True)[0] for f in (y, want))
    torch.testing.assert_close(got, should)
    assert len(constants.leaves) == (constant is not None)
    if constant is not None:
        torch.testing.assert_close(constants.leaves[0], constant)


@pytest.mark.parametrize("name", ["vmamba, N = 4", "zero-order hold", "spatial mamba", "dynamic", "deformable"])
@pytest.mark.parametrize("adaptors", ["", "t", "s", "ts"])
def test_the_scan_is_the_matrix_that_the_image_chose(name, adaptors):
    """The gradient through a scan is that of y = M u, M from `vssm.analysis.matrices`, by the equations."""
    model = network(name)
    if adaptors:
        add_adaptors(model, temporal="t" in adaptors, spatial="s" in adaptors)
        with torch.no_grad():
            for part, p in model.named_parameters():
                if "adaptor" in part:
                    p += 0.2 * torch.randn_like(p)
    model.eval()
    scan, mixer = scan_of(model, IMAGE, "1.1"), blocks(model)["1.1"]
    u = torch.empty_like(scan.y.flatten(1))
    u[:, scan.routes[0].reads.flatten()] = scan.routes[0].u.flatten(0, 1).T
    M = torch.cat(list(mixing_rows(scan, each_channel=True)))  # (queries, E, pixels)
    weights = torch.randn_like(scan.y)
    want = torch.einsum("eq,qel->el", weights.flatten(1), M)
    assert isinstance(mixer, SS2D)
    got = _gradient_of_scan(mixer, u.view_as(scan.y)[None], weights)
    torch.testing.assert_close(got.flatten(1), want, rtol=1e-8, atol=1e-10)


def _gradient_of_scan(mixer, u, weights):
    """Of the scan as the mixer's rule has it: what stands around it is made to do nothing."""
    u = u.clone().requires_grad_(True)
    with by_rules(mixer, Constants()):
        for layer in (mixer.in_proj, mixer.conv, mixer.out_norm, mixer.out_proj):
            layer.forward = lambda x: x
        mixer.conv_acts, mixer.gate = True, "none"
        y = mixer(u.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return torch.autograd.grad((y[0] * weights).sum(), u)[0][0]


def test_nothing_of_an_empty_image():
    """An image of zeros has no relevance: the constants have all."""
    for name in ("vmamba", "spatial mamba", "vim"):
        found = relevance(network(name), torch.zeros_like(IMAGE), 0)
        assert found.map.abs().max() == 0 and found.bias == pytest.approx(found.logit, rel=1e-9)


def test_shared_constants_count_each_time():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Flatten(), layer, layer).double().eval()
    found = relevance(model, torch.randn(1, 2, 2, dtype=torch.float64), 1)
    want = (layer.weight[1] @ layer.bias + layer.bias[1]).item()
    assert found.bias == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("name", ["vmamba", "spatial mamba", "vim", "mamba adaptor"])
def test_the_model_is_left_as_it_was(name):
    model = network(name)
    model.set_grad_checkpointing()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        want = model(IMAGE[None])

    def unchanged():
        assert not any("forward" in vars(module) for module in model.modules())
        assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
        assert all(p.grad is None for p in model.parameters())
        assert any(getattr(module, "grad_checkpointing", False) for module in model.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model(IMAGE[None]), want)

    relevance(model, IMAGE)
    unchanged()
    with torch.no_grad():
        relevance(model, IMAGE)
    unchanged()
    with pytest.raises(KeyError, match="on purpose"), by_rules(model, Constants()):
        assert "forward" in vars(blocks(model)[next(iter(blocks(model)))])
        raise KeyError("on purpose")
    unchanged()


def test_networks_without_rules():
    model = network("vmamba")
    model.stages[1].blocks[0].mlp = nn.Sequential(nn.Linear(16, 16), nn.Tanh()).double().eval()
    with pytest.raises(ValueError, match=r"^stages\.1\.blocks\.0\.mlp\.1 is a Tanh, for which there is no rule"):
        relevance(model, IMAGE)
    assert not any("forward" in vars(module) for module in model.modules())
    other = network("spatial mamba")
    other.stages[0].blocks[0].mixer.set_state_fn(nn.Softsign().eval())
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0\.mixer\.state_fn is a Softsign"):
        relevance(other, IMAGE)

    class Twice(Mlp):
        def forward(self, x, residual=None):
            return super().forward(2 * x, residual)

    model = network("vmamba")
    model.stages[0].blocks[0].mlp = Twice(8, 8).double().eval()
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0\.mlp is a Twice"):
        relevance(model, IMAGE)
    model = network("vmamba")
    model.norm.forward = lambda x: x
    with pytest.raises(ValueError, match=r"^norm is a LayerNorm with a forward of its own"):
        relevance(model, IMAGE)
    tanh = nn.Sequential(nn.Flatten(), nn.GELU("tanh")).eval()
    with pytest.raises(ValueError, match=r"^1 is a GELU"):
        relevance(tanh, torch.zeros(3, 2, 2))
    batch = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="without running statistics"):
        relevance(batch, torch.zeros(3, 2, 2))


def test_bad_requests():
    model = network("vmamba")
    with pytest.raises(ValueError, match=r"expected one image .* got \(2, 3, 32, 32\)"):
        relevance(model, IMAGE.expand(2, 3, 32, 32))
    with pytest.raises(NoSuchPart, match="no class 5; the model has 5, 0 to 4"):
        relevance(model, IMAGE, 5)
    with pytest.raises(NoSuchPart, match="no class -1"):
        relevance(model, IMAGE, -1)
    with pytest.raises(ValueError, match=r"got torch\.bfloat16; call \.float\(\)"):
        relevance(model, IMAGE.bfloat16())
    with pytest.raises(ValueError, match=r"this one is training; call model\.eval\(\)"):
        relevance(network("vmamba").train(), IMAGE)
    unpooled = vssm.create_model("vmamba_nano", **SMALL | {"num_classes": 0, "global_pool": ""}).eval()
    with pytest.raises(ValueError, match=r"expected logits \(1, classes\) from the model, got \(1, 8, 8, 16\)"):
        relevance(unpooled, IMAGE.float())
    model.head.fc.register_forward_hook(lambda module, inputs, output: output + torch.is_grad_enabled())
    with pytest.raises(RuntimeError, match=r"by the rules of relevance the logit of class 0 is .*; remove hooks"):
        relevance(model, IMAGE, 0)

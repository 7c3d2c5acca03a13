"""The promises of timm's contract, for every name this package registers.

Nothing here knows a model: a new name is tested as soon as it is registered. What needs real numbers runs on the nano
models, on the tiny ones where that is cheap, and on all names with --full; what shapes can tell runs on all names, on
the meta device.
"""

import copy
import io
import math
import pickle

import pytest
import timm
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import vssm
from vssm.models import NAMES

NANO = ["vmamba_nano", "spatial_mamba_nano", "vim_nano"]
QUICK = [*NANO, "vmamba_tiny_s1l8", "vanilla_vmamba_tiny", "spatial_mamba_tiny"]
nano = pytest.mark.parametrize("name", NANO)
nano_hierarchies = pytest.mark.parametrize("name", NANO[:2])
quick = pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in NAMES])
some = pytest.mark.parametrize("name", [n if n in NANO else pytest.param(n, marks=pytest.mark.full) for n in NAMES])
every = pytest.mark.parametrize("name", NAMES)
hierarchies = pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("vim_")])


def _meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options).eval()


def _nano(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=options.pop("num_classes", 10), **options).eval()


def _shallow(name, **options):
    """One block per stage: what compiles, exports and scripts a block does so as often as there are blocks."""
    small = {"dim": 24, "depth": 2} if name == "vim_nano" else {"dims": (16, 24), "depths": (1, 1)}
    return _nano(name, **small | options)


def _images(model, batch=2, size=(64, 64)):
    return torch.randn(batch, model.in_chans, *size)


def _trace(model):
    """An FX graph of the model, as timm traces one."""
    options = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train, evaluation = get_graph_node_names(model, tracer_kwargs=options)
    return create_feature_extractor(
        model, train_return_nodes=[train[-1]], eval_return_nodes=[evaluation[-1]], tracer_kwargs=options
    )


def _grads(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _assert_same_grads(got, want, rtol=1e-4):
    for name, gradient in want.items():
        scale = gradient.abs().max()
        assert (got[name] - gradient).abs().max() <= rtol * scale + 1e-9, name


# ---- registration and configuration ----


@every
def test_is_registered(name):
    assert timm.is_model(name) and name in timm.list_models(name) and name in vssm.list_models()


@hierarchies
def test_configuration_describes_the_model(name):
    model = _meta(name)
    cfg, state = model.default_cfg, model.state_dict()
    assert model.num_classes == cfg["num_classes"] == len(state[cfg["classifier"] + ".weight"])
    assert state[cfg["first_conv"] + ".weight"].shape[1] == 3
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, *cfg["pool_size"], model.num_features)  # NHWC
    assert model.output_fmt == "NHWC"
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (1, model.head_hidden_size)
    assert model(x).shape == (1, model.num_classes)
    assert model.get_classifier() is model.head.fc

    model.reset_classifier(0)
    assert model.num_classes == 0 and model.to("meta")(x).shape == pre_logits.shape
    model.reset_classifier(7, "max")
    assert model.to("meta")(x).shape == (1, 7)
    model.reset_classifier(0, "")
    assert model.to("meta")(x).shape == features.shape
    assert _meta(name, num_classes=0, global_pool="")(x).shape == features.shape


@hierarchies
def test_features_fit_their_description(name):
    model = _meta(name, features_only=True)
    info = model.feature_info
    assert info.reduction() == [info.reduction()[0] * 2**i for i in range(len(info))]
    for height, width in ((64, 96), (97, 65)):
        maps = model(torch.empty(2, 3, height, width, device="meta"))
        assert len(maps) == len(info) >= 3
        for y, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
            assert y.shape[:2] == (2, channels) and y.is_contiguous()
            # Patches (the vanilla stem) drop an incomplete one, everything else rounds up.
            for side, got in zip((height, width), y.shape[2:], strict=True):
                assert got in (
                    math.ceil(side / stride),
                    math.ceil(side // info.reduction()[0] * info.reduction()[0] / stride),
                )


@every
def test_in_chans(name):
    model = _meta(name, in_chans=1)
    assert model(torch.empty(1, 1, 64, 64, device="meta")).shape == (1, 1000)


@every
def test_layer_decay_groups(name):
    model = _meta(name)
    depth = sum(len(part.blocks) for part in getattr(model, "stages", [model]))
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scales = sorted({g["lr_scale"] for g in groups})
    assert len(scales) == depth + 2 and scales[-1] == 1  # stem, blocks, head
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert set(model.group_matcher(coarse=True)) == {"stem", "blocks"}


# ---- forward and backward ----


@quick
def test_forward_and_checkpointing(name):
    model = timm.create_model(name, num_classes=10).eval()
    x = _images(model, 1)
    with torch.no_grad():
        y = model(x)
    assert y.shape == (1, 10) and y.isfinite().all() and y.std() > 0
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


@some
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, num_classes=10, drop_path_rate=0.0).train()
    for parameter, gradient in _grads(model, _images(model)).items():
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0, parameter


@nano
def test_checkpointing_gives_the_same_gradients(name):
    model = _nano(name)
    x = _images(model)
    want = {k: g.clone() for k, g in _grads(model, x).items()}
    model.set_grad_checkpointing()
    _assert_same_grads(_grads(model, x), want)


@nano
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (8, 8), (9, 70), (40, 17)])
def test_any_size(name, size):
    model = _nano(name)
    y = model(_images(model, 2, size))
    assert y.shape == (2, 10) and y.isfinite().all()


@nano
def test_an_image_does_not_see_its_batch(name):
    model = _nano(name)
    x = _images(model, 3)
    y = model(x)
    torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(3)]), y, rtol=1e-4, atol=1e-5)


@nano
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_image_stays_alone(name, value):
    model = _nano(name)
    x = _images(model, 3)
    y = model(x)
    x[1, :, 5, 7] = value
    broken = model(x)
    assert torch.equal(broken[0], y[0]) and torch.equal(broken[2], y[2])
    assert not broken[1].isfinite().any()


@nano
@pytest.mark.parametrize(
    "shape, message",
    [
        ((3, 32, 32), r"expected an image batch \(B, 3, H, W\), got 3 dimensions"),
        ((1, 1, 3, 32, 32), "got 5 dimensions"),
        ((1, 4, 32, 32), r"expected 3 channels, got 4 .* in_chans=4"),
        ((0, 3, 32, 32), "the batch is empty"),
        ((1, 3, 0, 32), "the image is 0 x 32, too small"),
        ((1, 3, 32, 3), r"the image is 32 x 3, too small for a total stride of \d; resize it to at least \d x \d"),
    ],
)
def test_what_is_no_image_batch_is_refused(name, shape, message):
    model = _nano(name)
    for function in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"got torch.uint8; convert it with .float"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


# ---- intermediates ----


@nano_hierarchies
def test_forward_intermediates(name):
    model = _nano(name)
    x = _images(model)
    features, maps = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x))
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    torch.testing.assert_close(model.forward_intermediates(x, indices=[1], intermediates_only=True), [maps[1]])
    torch.testing.assert_close(model.forward_intermediates(x, indices=2, intermediates_only=True), maps[-2:])
    nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close([m.permute(0, 3, 1, 2) for m in nhwc], maps)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed[:-1], maps[:-1])
    torch.testing.assert_close(normed[-1].permute(0, 2, 3, 1), features)
    last, early = model.forward_intermediates(x, indices=[0], stop_early=True)
    torch.testing.assert_close(last.permute(0, 3, 1, 2), maps[0])
    torch.testing.assert_close(early, maps[:1])
    with pytest.raises(ValueError, match="choose one of NCHW, NHWC"):
        model.forward_intermediates(x, output_fmt="NLC")


@nano_hierarchies
def test_pruned_models_give_the_same_maps(name):
    model = _nano(name)
    x = _images(model)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(model.stages) == 2 and model.num_classes == 0 and model.num_features == maps[1].shape[1]
    torch.testing.assert_close(model.forward_intermediates(x, [0, 1], intermediates_only=True), maps[:2])
    torch.testing.assert_close(model(x).permute(0, 3, 1, 2), maps[1])


@nano_hierarchies
@pytest.mark.parametrize("feature_cls", ["getter", "list", "dict", "hook", "fx"])
def test_feature_wrappers_agree(name, feature_cls):
    whole = _nano(name)
    x = _images(whole, size=(33, 47))
    want = whole.forward_intermediates(x, intermediates_only=True)
    wrapper = timm.create_model(name, features_only=True, feature_cls=feature_cls).eval()
    state = whole.state_dict()
    wrapper.load_state_dict(dict(zip(wrapper.state_dict(), state.values(), strict=False)))
    found = wrapper(x)
    found = list(found.values()) if isinstance(found, dict) else found
    if feature_cls != "getter":
        found = [y.permute(0, 3, 1, 2) for y in found]
    torch.testing.assert_close(found, want)


@nano_hierarchies
def test_output_norms(name):
    plain = _nano(name)
    backbone = timm.create_model(name, features_only=True, out_norms=True, out_indices=(0, 2)).eval()
    state = {f"model.{k}": v for k, v in plain.state_dict().items() if not k.startswith(("head.", "norm."))}
    norms = {k: torch.randn_like(v) for k, v in backbone.state_dict().items() if "out_norms" in k}
    assert {k.split(".")[2] for k in norms} == {"0", "2"}  # a map that is not returned has no norm
    backbone.load_state_dict(state | norms)
    x = _images(plain)
    maps = plain.forward_intermediates(x, [0, 2], intermediates_only=True, output_fmt="NHWC")
    for i, y, found in zip((0, 2), maps, backbone(x), strict=True):
        weight, bias = (norms[f"model.out_norms.{i}.{p}"] for p in ("weight", "bias"))
        want = torch.nn.functional.layer_norm(y, y.shape[-1:], weight, bias, 1e-5)
        torch.testing.assert_close(found.permute(0, 2, 3, 1), want)


# ---- other forms of a model ----


@nano
def test_copies(name):
    model = _nano(name)
    x = _images(model)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)  # noqa: S301
    torch.testing.assert_close(
        model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5
    )


@nano
def test_precisions(name):
    model = _nano(name)
    x = _images(model)
    want = copy.deepcopy(model).double()(x.double())
    assert want.dtype == torch.float64
    torch.testing.assert_close(model(x).double(), want, rtol=1e-4, atol=1e-5)
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.005)):
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(x)
        for y in (mixed, copy.deepcopy(model).to(dtype)(x.to(dtype))):
            assert y.dtype == dtype
            assert (y.double() - want).abs().max() < tolerance * want.abs().max()


@nano
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_stays_finite(name, dtype):
    model = _nano(name).train()
    x = 30 * _images(model)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    torch.nn.functional.cross_entropy(y.float(), torch.tensor([1, 2])).backward()
    for parameter, p in model.named_parameters():
        assert p.grad.dtype == torch.float32 and p.grad.isfinite().all(), parameter


@some
def test_torchscript(name):
    model = timm.create_model(name, num_classes=10, scriptable=True).eval()
    usual = timm.create_model(name, num_classes=10).eval()
    usual.load_state_dict(model.state_dict())
    x = _images(model, 1)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    with torch.no_grad():
        y = torch.jit.load(file)(x)
        torch.testing.assert_close(y, model(x))
        torch.testing.assert_close(y, usual(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="scriptable=True"):
        torch.jit.script(usual)


@pytest.mark.parametrize("name", [*NANO, "mamba_adaptor_b1"])
def test_fx_without_leaf_modules_is_refused_with_the_remedy(name):
    model = _meta(name, num_classes=3)
    with pytest.raises(ValueError, match=r"symbolic_trace cannot.*torch\.export\.export.*get_notrace_modules"):
        torch.fx.symbolic_trace(model)


@some
def test_fx(name):
    model = timm.create_model(name, num_classes=10, drop_path_rate=0.1).eval()
    x = _images(model, 1)
    traced = _trace(model)
    with torch.no_grad():
        (y,) = traced(x).values()
        torch.testing.assert_close(y, model(x))
        scriptable = timm.create_model(name, num_classes=10, scriptable=True).eval()
        scriptable.load_state_dict(model.state_dict())
        (scripted,) = torch.jit.script(_trace(scriptable))(x).values()
    torch.testing.assert_close(scripted, y, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected 3 channels"):
        traced(x[:, :2])
    traced.train()
    (y,) = traced(torch.cat([x, x])).values()
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@nano
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiles_as_one_graph(name, backend):
    model = _shallow(name)
    x = _images(model)
    for no_grad in (torch.no_grad, torch.enable_grad):
        torch._dynamo.reset()
        vssm.ops.dispatch.reset()  # nothing is known yet of what runs: a choice made while tracing breaks no graph
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        with no_grad():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [NANO[0], *(pytest.param(n, marks=pytest.mark.full) for n in NANO[1:])])
def test_trains_when_compiled(name):
    model = _shallow(name)
    x = _images(model)
    want = {k: g.clone() for k, g in _grads(model, x).items()}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    compiled(x).square().sum().backward()
    _assert_same_grads({k: p.grad for k, p in model.named_parameters()}, want)


@nano
@pytest.mark.parametrize("free", [False, pytest.param(True, marks=pytest.mark.full)])
def test_exports(name, free):
    model = _shallow(name)
    x = _images(model)
    side = torch.export.Dim("height", min=32, max=512), torch.export.Dim("width", min=32, max=512)
    sizes = ({0: torch.export.Dim("batch", min=1, max=64), 2: side[0], 3: side[1]},) if free else None
    exported = torch.export.export(model, (x,), dynamic_shapes=sizes).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)
    if free:
        x = _images(model, 3, (50, 37))
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [NANO[2], *(pytest.param(n, marks=pytest.mark.full) for n in NANO[:2])])
def test_compiled_at_several_sizes(name):
    """Right at each size, the third of which fits no patches."""
    model = _shallow(name, **{"depth": 1} if name == "vim_nano" else {"depths": (1,), "dims": (16,)})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for size in ((32, 32), (48, 48), (37, 50)):
            x = _images(model, 2, size)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


# ---- names ----


@pytest.mark.parametrize(
    ("name", "option", "near"),
    [("vmamba_tiny", "d_stat", "d_state"), ("vim_nano", "path_size", "patch_size"), (NANO[1], "dilation", "dilations")],
)
def test_an_unknown_option_names_the_nearest(name, option, near):
    with pytest.raises(TypeError, match=rf"{name} has no option '{option}'; nearest: {near}.*; it has .*drop_rate"):
        timm.create_model(name, **{option: 4})


@nano_hierarchies
def test_output_norms_are_for_features_only(name):
    with pytest.raises(ValueError, match=r"out_norms are norms of feature maps.*features_only=True"):
        timm.create_model(name, out_norms=True)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'vmamba_tyni'; nearest: vmamba_tiny"):
        vssm.create_model("vmamba_tyni")
    with pytest.raises(ValueError, match="list_models"):
        vssm.create_model("qqqqqqqq")
    assert vssm.create_model("resnet10t").num_classes == 1000

"""Shortcuts are invisible: to hooks, exchanged modules, modes, tracers. The reference is the plain composition.

A model that was built to be scripted takes none, so it is what every shortcut must equal.
"""

import copy
import itertools
import re
from contextlib import ExitStack, contextmanager
from functools import cache

import pytest
import timm
import torch
from timm.layers import DropPath, set_scriptable
from torch import nn
from torch.nn.utils import parametrizations, prune

import vssm
from vssm.nn import Mlp
from vssm.nn.shortcut import Shortcut, add_branch, as_built

SMALL = {"dims": (8, 12), "depths": (1, 1), "patch_size": 2}
ONE_STAGE = {"dims": (8,), "depths": (1,), "patch_size": 2}
CASES = {
    "vmamba": ("vmamba_nano", SMALL),
    "vanilla": ("vmamba_nano", {**SMALL, "mlp_ratio": 0.0, "gate": True, "stem": "v1", "downsample": "v1"}),
    "sasf": ("vmamba_nano", {**SMALL, "state_fn": "sasf", "downsample": "v2"}),
    "gate": ("vmamba_nano", {**ONE_STAGE, "gate": "linear", "act": "gelu", "conv": False}),
    "deformable": ("vmamba_nano", {**ONE_STAGE, "state_fn": "deformable"}),
    "attention": ("vmamba_nano", {**ONE_STAGE, "state_fn": "local_attention"}),
    "spatial": ("spatial_mamba_nano", SMALL),
    "dynamic": ("spatial_mamba_nano", {**ONE_STAGE, "state_fn": "dynamic"}),
    "vim": ("vim_nano", {"dim": 8, "depth": 2, "img_size": 8, "d_state": 3}),
    "vim_sasf": (
        "vim_nano",
        {"dim": 8, "depth": 1, "img_size": 8, "d_state": 1, "class_token": False, "state_fn": "sasf"},
    ),
}
case = pytest.mark.parametrize("name", CASES)
# What is outside of their blocks is that of another case: it is swept there.
ONLY_BLOCKS = ("gate", "deformable", "attention", "dynamic", "vim_sasf")


@pytest.fixture(autouse=True)
def one_thread():
    """The maps are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _built(name, scriptable, options):
    torch.manual_seed(0)
    variant, own = CASES[name]
    given = {"drop_path_rate": 0.0, "num_classes": 3, "scriptable": scriptable} | own | dict(options)
    model = timm.create_model(variant, **given).double()
    with torch.no_grad():
        for i, (_, t) in enumerate(sorted(model.named_parameters())):  # off their special values
            t.add_(0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(i), dtype=t.dtype))
    return model


def build(name, scriptable=False, **options):
    return copy.deepcopy(_built(name, scriptable, tuple(options.items())))


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def alike(names, only_blocks=False):
    """Module names grouped by what they are in their block: in all blocks and stages at once they are tested."""
    groups = {}
    for name in names:
        if only_blocks and "blocks" not in name:
            continue
        inside = re.sub(r"^(stages\.\d+\.)?blocks\.\d+", "block", name)
        groups.setdefault(re.sub(r"^stages\.\d+", "stage", inside), []).append(name)
    return groups.values()


def called(model):
    """Names of the modules that a forward calls, as the plain composition does."""
    found = []
    handles = [m.register_forward_hook(lambda *_, n=n: found.append(n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        model(images())
    for handle in handles:
        handle.remove()
    return found


@contextmanager
def exchanged(model, name, wrap):
    parent, _, child = name.rpartition(".")
    parent = model.get_submodule(parent)
    original = getattr(parent, child)
    setattr(parent, child, wrap(original))
    yield
    setattr(parent, child, original)


class Scale(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *args, **options):
        return 1.5 * self.inside(*args, **options)


def run(model, backward=True):
    """Logits of an inference, then of a step in training mode; its gradients, the buffers after it. Those stay."""
    before = {n: b.clone() for n, b in model.named_buffers()}
    torch.manual_seed(5)
    with torch.no_grad():
        inferred = model.eval()(images())
    y = model.train()(images())
    gradients = {}
    if backward:
        model.zero_grad()
        y.square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
    after = {n: b.clone() for n, b in model.named_buffers()}
    for n, b in model.named_buffers():
        b.copy_(before[n])
    return {"inferred": inferred, "trained": y.detach(), **gradients, **after}


def assert_same(got, want):
    assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in want.items()}
    flat = [torch.cat([t.flatten().double() for t in tensors.values()]) for tensors in (got, want)]
    if not torch.allclose(*flat, rtol=1e-9, atol=1e-9):  # the quick way; the next explains
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@case
def test_equals_the_plain_composition(name):
    assert_same(run(build(name)), run(build(name, scriptable=True)))


@case
def test_every_module_of_the_composition_is_called(name):
    """Nothing with parameters is read behind a module's back: then hooks on it would never be called."""
    model = build(name, scriptable=True).eval()
    names = set(called(model))
    for n, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        assert not own or not n or n in names or isinstance(module, nn.ParameterList), n


@case
def test_hooks_are_called_as_often_as_in_the_composition(name):
    plain, model = build(name, scriptable=True), build(name)
    times, want = called(plain.eval()), run(plain)
    for names in alike(set(times), name in ONLY_BLOCKS):
        seen, handles = [], []
        for n in names:
            module = model.get_submodule(n)

            def note(kind, n=n, seen=seen):
                return lambda *_: seen.append((n, kind))

            handles += [
                module.register_forward_pre_hook(note("before")),
                module.register_forward_hook(note("after")),
                module.register_full_backward_pre_hook(note("backward before")),
                module.register_full_backward_hook(note("backward after")),
            ]
        assert_same(run(model), want)
        for n in names:
            count = times.count(n)
            kinds = {kind: seen.count((n, kind)) for kind in ("before", "after", "backward before", "backward after")}
            # run goes forward twice and backward once.
            wanted = {"before": 2 * count, "after": 2 * count, "backward before": count, "backward after": count}
            assert kinds == wanted, (n, kinds)
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_one_hook_of_each_kind_is_enough(kind):
    """Each alone, for a module is as built only if none of the four is there."""
    for name, inside in itertools.product(["vmamba", "spatial", "vim"], ["fc1", "fc2", "in_proj", "out_proj"]):
        model = build(name)
        for n, module in model.named_modules():
            if n.endswith(inside):
                seen = []
                handle = getattr(module, f"register_{kind}")(lambda *_, seen=seen: seen.append(True))
                model(images()).sum().backward()
                assert len(seen) == 1, (n, kind)
                handle.remove()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_on_all_modules(kind):
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    counts = []
    for scriptable in (True, False):
        model, seen = build("spatial", scriptable), []
        handle = register(lambda module, *_, seen=seen: seen.append(type(module).__name__))
        try:
            model(images()).sum().backward()
        finally:
            handle.remove()
        counts.append(sorted(seen))
    assert counts[0] == counts[1] and len(counts[0]) > 30


@case
def test_exchanged_modules(name):
    """A module that stands around another acts in evaluation and in training alike."""
    model, plain = build(name), build(name, scriptable=True)
    own = run(plain, backward=False)
    for names in alike(set(called(plain.eval())), name in ONLY_BLOCKS):
        with ExitStack() as stack:
            for n, m in itertools.product(names, (model, plain)):
                stack.enter_context(exchanged(m, n, Scale))
            got, want = run(model, backward=False), run(plain, backward=False)
        assert_same(got, want)
        acts = [not torch.allclose(want[m], own[m], rtol=1e-9, atol=1e-12) for m in ("inferred", "trained")]
        assert acts[0] == acts[1], names


@pytest.mark.parametrize("name", ["vanilla", "spatial", "vim_sasf"])
def test_a_wrapper_around_a_module_changes_nothing(name):
    model = build(name)
    want = run(model, backward=False)
    for names in alike(set(called(build(name, scriptable=True).eval())) - {"head"}):  # which takes an option
        with ExitStack() as stack:
            for n in names:
                stack.enter_context(exchanged(model, n, nn.Sequential))
            got = run(model, backward=False)
        assert_same({k: got[k] for k in ("inferred", "trained")}, {k: want[k] for k in ("inferred", "trained")})


@case
def test_a_module_in_training_mode_inside_an_eval_model(name):
    options = {"drop_path_rate": 0.5, "drop_rate": 0.5}
    pair = build(name, **options), build(name, scriptable=True, **options)
    for names in alike((n for n, _ in pair[0].named_modules() if n), name in ONLY_BLOCKS):
        outputs = []
        for model in pair:
            model.eval()
            for n in names:
                model.get_submodule(n).train()
            torch.manual_seed(3)
            with torch.no_grad():
                outputs.append({"y": model(images()), **dict(model.named_buffers())})
        assert_same(*outputs)


def test_batch_norms_in_training_mode_inside_an_eval_model():
    """As test-time adaptation puts them: one batch is one batch, however large."""
    torch.manual_seed(0)
    model = timm.create_model("spatial_mamba_nano", num_classes=4).eval()
    plain = timm.create_model("spatial_mamba_nano", num_classes=4, scriptable=True).eval()
    plain.load_state_dict(model.state_dict())
    x, found = torch.randn(64, 3, 32, 32), []
    for m in (model, plain):
        norms = [b.train() for b in m.modules() if isinstance(b, nn.BatchNorm2d)]
        with torch.no_grad():
            found.append(m(x))
        assert [int(b.num_batches_tracked) for b in norms] == [1] * 7
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()), rtol=1e-4, atol=1e-5)


def test_drop_path_in_training_mode_inside_an_eval_model_drops():
    for name in ("vmamba", "spatial", "vim"):
        model = build(name, drop_path_rate=0.9).eval()
        still = model(images())
        assert torch.equal(model(images()), still)
        drops = [m.train() for m in model.modules() if isinstance(m, DropPath)]
        assert drops and not torch.allclose(model(images()), still)


def test_other_layers_in_place_of_a_norm_and_an_mlp():
    model = build("vanilla").eval()
    for stage in model.stages:
        stage.blocks[0].mixer.out_norm = nn.LayerNorm(stage.blocks[0].mixer.inner_dim).double()
    assert model(images()).isfinite().all()
    model = build("vmamba")
    model.stages[0].blocks[0].mlp = nn.Identity()
    for training in (True, False):
        assert model.train(training)(images()).shape == (2, 3)


def _quantised(linear):
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear})[0]


class _Tagged(torch.Tensor):
    """A parameter of another type, as quantisers and sharded training put them."""


def _with_own_forward(linear):
    linear.forward = lambda x: torch.zeros(*x.shape[:-1], linear.out_features)
    return linear


def _tagged(linear):
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(_Tagged))
    return linear


def _compiled(linear):
    linear.compile(backend="eager")
    return linear


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        _quantised,
        _with_own_forward,
        _tagged,
        nn.Sequential,
        lambda layer: nn.Bilinear(4, 4, 4),
    ],
)
def test_what_is_not_as_built(change):
    layer = nn.Linear(4, 4)
    assert as_built(layer, nn.Linear) and not as_built(layer, nn.Module) and not as_built(None, nn.Linear)
    assert not as_built(change(layer), nn.Linear)


def test_removed_hooks_leave_a_layer_as_built():
    layer = nn.Linear(4, 4)
    for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        handle = getattr(layer, f"register_{kind}")(lambda *_: None)
        assert not as_built(layer, nn.Linear)
        handle.remove()
        assert as_built(layer, nn.Linear)


def test_add_branch():
    norm, branch, x = nn.LayerNorm(4), Mlp(4, 8), torch.randn(2, 3, 4)
    want = x + branch(norm(x))
    for drop_path in (nn.Identity(), DropPath(0.5).eval(), DropPath(0.0)):
        torch.testing.assert_close(add_branch(x, norm, branch, Mlp, drop_path), want)
    torch.testing.assert_close(add_branch(x, norm, branch, Mlp, Scale(nn.Identity())), x + 1.5 * branch(norm(x)))
    torch.testing.assert_close(add_branch(x, norm, nn.Sequential(branch), Mlp, nn.Identity()), want)


def test_scripting_is_refused_with_the_remedy_or_works():
    with pytest.raises(ValueError, match=r"timm.create_model\(..., scriptable=True\)"):
        torch.jit.script(build("vmamba"))
    with pytest.raises(ValueError, match="set_scriptable"):
        torch.jit.script(Mlp(4, 8))
    with set_scriptable(True):
        layer = Mlp(4, 8)
    assert isinstance(layer, Shortcut) and not layer.shortcuts
    x = torch.randn(2, 4)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
    for options in ({"discretization": "zoh"}, {"scan": "cascade"}):
        with pytest.raises(ValueError, match="cannot be scripted"):
            vssm.create_model("vmamba_nano", scriptable=True, **options)


@case
def test_quantised_linear_layers(name):
    """torch looks for nn.Linear by type: it finds every one, and the network stays within its rounding."""
    model = build(name).float().eval()
    count = sum(type(m) is nn.Linear for m in model.modules())
    assert count == sum(isinstance(m, nn.Linear) for m in model.modules()) >= 3
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    found = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(found) == count
    x = images().float()
    with torch.no_grad():
        want, got = model(x), quantised(x)
    assert (got - want).abs().max() < 0.05 * want.abs().max()
    assert not torch.equal(got, want)

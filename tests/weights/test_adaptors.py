"""Adaptors around whole models: the same function at the start, what trains, files and whom they refuse."""

import copy

import pytest
import timm
import torch

import vssm
from vssm.nn import AdaptorS, AdaptorT, StateFusion
from vssm.weights import CheckpointError

NANO = ["vmamba_nano", "spatial_mamba_nano", "vim_nano"]


def _nano(name="vmamba_nano", **options):
    torch.manual_seed(0)
    return vssm.create_model(name, num_classes=5, **options).eval()


def _train_a_little(model):
    """One step of plain gradient descent on what trains."""
    model.train()
    torch.manual_seed(1)
    for _ in range(2):  # the second reaches what a gain of 0 hid
        loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.3 * parameter.grad
    return model.eval()


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_same_function_at_the_start(name, dtype, tolerance):
    model, x = _nano(name).to(dtype), torch.randn(2, 3, 40, 32, dtype=dtype)
    before, names = model(x), set(model.state_dict())
    assert vssm.add_adaptors(model) is model
    torch.testing.assert_close(model(x), before, rtol=0, atol=tolerance)
    added = set(model.state_dict()) - names
    assert names < set(model.state_dict()) and all(".adaptor_" in name for name in added)
    assert all(p.dtype == dtype for p in model.parameters())


class SplitFusion(StateFusion):
    """Not the kind that a mixer fuses with its scan."""


@pytest.mark.parametrize(
    "name, options",
    [
        ("vmamba_nano", {"state_fn": lambda *sizes: torch.nn.Identity()}),
        ("vmamba_nano", {"state_fn": lambda *sizes: torch.nn.Identity(), "d_state": 2}),
        ("spatial_mamba_nano", {"state_fn": SplitFusion}),
        ("vim_nano", {"class_token": False, "state_fn": lambda *sizes: torch.nn.Identity()}),
    ],
)
@pytest.mark.parametrize("adaptors", [{}, {"share": "stage"}, {"selection": "static", "points": 1}, {"parallel": True}])
def test_bit_for_bit_at_the_start_on_the_split_path(name, options, adaptors):
    model, x = _nano(name, **options), torch.randn(2, 3, 40, 32)
    before = model(x)
    assert torch.equal(vssm.add_adaptors(model, **adaptors)(x), before)


@pytest.mark.parametrize("options", [{"temporal": False}, {"spatial": False}, {"dilations": (1,)}, {"parallel": True}])
def test_parts_and_forms(options, tmp_path):
    base, x = _nano(), torch.randn(2, 3, 32, 32)
    model = vssm.add_adaptors(copy.deepcopy(base), **options)
    vssm.freeze_base(model)
    _train_a_little(model)
    kinds = {type(m) for m in model.modules() if isinstance(m, AdaptorT | AdaptorS)}
    assert kinds == ({AdaptorT, AdaptorS} - {AdaptorT if "temporal" in options else None} - {
        AdaptorS if "spatial" in options else None})  # fmt: skip
    again = vssm.load_adaptors(copy.deepcopy(base), vssm.save_adaptors(model, tmp_path / "a.safetensors"))
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NANO)
def test_fine_tuning_goes_through_a_small_file(name, tmp_path):
    base, x = _nano(name), torch.randn(2, 3, 32, 32)
    model = vssm.add_adaptors(copy.deepcopy(base), share="stage")
    share = vssm.freeze_base(model)
    assert share.trainable < 0.25 * share.total and "parameters train" in str(share)
    _train_a_little(model)
    for kind in (AdaptorT, AdaptorS):
        adaptors = [m for m in model.modules() if isinstance(m, kind)]
        assert adaptors and all(p.abs().max() > 0 for m in adaptors for p in m.parameters())
    for parameter, p in base.named_parameters():
        trains = dict(model.named_parameters())[parameter].requires_grad
        assert torch.equal(dict(model.named_parameters())[parameter], p) != trains or not trains, parameter
    file = vssm.save_adaptors(model, tmp_path / "few.safetensors")
    torch.save(model.state_dict(), tmp_path / "all.pth")
    assert file.stat().st_size < 0.4 * (tmp_path / "all.pth").stat().st_size
    again = vssm.load_adaptors(copy.deepcopy(base), file)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert not torch.allclose(again(x), base(x), atol=1e-3)


def test_shared_adaptors_are_one_per_stage():
    apart = vssm.add_adaptors(timm.create_model("vmamba_tiny"))
    shared = vssm.add_adaptors(timm.create_model("vmamba_tiny"), share="stage")
    base = 30_249_064
    # Per channel: 4 routes x 4 points x 3 numbers and 4 gains; three 3x3 kernels. Per route 12 biases.
    channels = 2 * 96 + 2 * 192 + 8 * 384 + 2 * 768
    assert sum(p.numel() for p in apart.parameters()) - base == (4 * 12 + 4 + 27) * channels + 14 * 4 * 12
    assert sum(p.numel() for p in shared.parameters()) - base == (4 * 12 + 4 + 27) * 1440 + 4 * 4 * 12


def test_a_cascade_takes_spatial_adaptors_only():
    model, x = _nano(scan="cascade"), torch.randn(1, 3, 32, 32)
    before = model(x)
    with pytest.raises(ValueError, match=r"no states on one grid: add spatial adaptors only \(temporal=False\)"):
        vssm.add_adaptors(model)
    torch.testing.assert_close(vssm.add_adaptors(model, temporal=False)(x), before, rtol=0, atol=1e-6)


def test_what_is_refused(tmp_path):
    base = _nano()
    model = vssm.add_adaptors(copy.deepcopy(base))
    with pytest.raises(ValueError, match="has adaptors already; add them once"):
        vssm.add_adaptors(model)
    with pytest.raises(ValueError, match="temporal and spatial are both False"):
        vssm.add_adaptors(_nano(), temporal=False, spatial=False)
    with pytest.raises(ValueError, match="ResNet contains no SSM to attach an adaptor to"):
        vssm.add_adaptors(timm.create_model("resnet10t"))
    with pytest.raises(ValueError, match=r"has no adaptors; vssm\.add_adaptors"):
        vssm.freeze_base(base)
    with pytest.raises(ValueError, match="every parameter trains"):
        vssm.save_adaptors(model, tmp_path / "x.safetensors")
    vssm.freeze_base(model)
    with pytest.raises(ValueError, match=r"must be a file that ends in .safetensors"):
        vssm.save_adaptors(model, tmp_path / "x.pth")
    file = vssm.save_adaptors(model, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="has adaptors already; load onto a model without"):
        vssm.load_adaptors(model, file)

    def refuses(other, message):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(CheckpointError, match=message):
            vssm.load_adaptors(other, file)
        assert other.state_dict().keys() == before.keys()
        assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())

    torch.manual_seed(7)
    refuses(vssm.create_model("vmamba_nano", num_classes=5), "belongs to other weights of vmamba_nano")
    with pytest.raises(ValueError, match="selects 9 states, and the map has only 2 x 4; give larger images"):
        vssm.add_adaptors(_nano(), points=9)(torch.randn(1, 3, 16, 32))
    refuses(_nano("vim_nano"), "has the adaptors of a vmamba_nano, the model is a vim_nano")
    refuses(vssm.create_model("vmamba_nano", num_classes=6), "the number of classes that the adaptors were trained for")
    file.write_bytes(b"nonsense")
    refuses(_nano(), "is not a whole safetensors file")


def test_counted_and_compiled():
    plain, model = vssm.complexity(_nano()), vssm.add_adaptors(_nano())
    counted = vssm.complexity(model)
    channels = sum(m.gain.shape[1] * m.gain.shape[0] for m in model.modules() if isinstance(m, AdaptorT))
    assert channels > 0 and counted.by_operator["sampling"] % 20 == 0
    assert plain.macs < counted.macs < 1.6 * plain.macs
    small = vssm.create_model("vmamba_nano", num_classes=4, dims=(16,), depths=(1,)).eval()
    model, x = vssm.add_adaptors(small), torch.randn(1, 3, 32, 32)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)

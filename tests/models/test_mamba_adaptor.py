"""The backbones b1 and b2: the size that the paper's segmentation models have, and the ablations as options."""

import pytest
import timm
import torch

import vssm
from vssm.nn import AdaptorS, AdaptorT
from vssm.tasks.segmentation import UPerNet

SMALL = {"dims": (16, 24), "depths": (1, 1), "patch_size": 2, "num_classes": 5}


def _small(**options):
    torch.manual_seed(0)
    return vssm.create_model("mamba_adaptor_b1", **SMALL, **options).eval()


@pytest.mark.parametrize(
    "name, channels, printed, counted",
    [
        ("mamba_adaptor_b1", 448, (38, 708), (37_902_460, 699_257_433_856)),
        ("mamba_adaptor_b2", 512, (58, 971), (58_018_940, 957_528_459_264)),
    ],
)
def test_size_with_upernet(name, channels, printed, counted):
    """Parameters within 2.5 M and multiply-adds at 512 x 2048 within 2 % of what the paper's supplement prints."""
    with torch.device("meta"):
        backbone = timm.create_model(name, features_only=True, out_norms=True)
        model = UPerNet(backbone, backbone.feature_info.channels(), channels=channels)
    found = vssm.complexity(model, (3, 512, 2048), batch_norm="eval")
    assert (found.params, found.macs) == counted
    assert abs(found.params / 1e6 - printed[0]) < 2.5 and abs(found.macs / 1e9 / printed[1] - 1) < 0.02


def test_adaptors_are_in_every_mixer_and_do_something():
    model = _small()
    assert sum(isinstance(m, AdaptorT) for m in model.modules()) == 2
    assert sum(isinstance(m, AdaptorS) for m in model.modules()) == 2
    assert all((m.gain == 1).all() for m in model.modules() if isinstance(m, AdaptorT))
    for block in (model.stages[0].blocks[0], model.stages[1].blocks[0]):
        torch.nn.init.normal_(block.mixer.in_proj.weight)  # at the start of a training states are next to nothing
    x = torch.randn(2, 3, 20, 24)
    plain = vssm.create_model("vmamba_tiny", **SMALL).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "adaptor" not in k})
    assert (model(x) - plain(x)).abs().max() > 1e-3
    model.train()(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    "options, temporal, spatial",
    [
        ({"selection": "static"}, 1, 1),
        ({"scales": (1,)}, 1, 1),
        ({"temporal": False}, 0, 1),
        ({"spatial": False}, 1, 0),
        ({"temporal": False, "spatial": False}, 0, 0),
        ({"parallel": True}, 1, 1),
        ({"points": 2, "d_state": 2}, 1, 1),
    ],
)
def test_ablations_are_one_override_each(options, temporal, spatial):
    model = _small(**options)
    assert sum(isinstance(m, AdaptorT) for m in model.modules()) == 2 * temporal
    found = [m for m in model.modules() if isinstance(m, AdaptorS)]
    assert len(found) == 2 * spatial
    for adaptor in found:
        torch.nn.init.normal_(adaptor.kernels[0])
        assert tuple(adaptor.dilations) == options.get("scales", (1, 3, 5))
    x = torch.randn(1, 3, 16, 16)
    y = model(x)
    assert y.isfinite().all()
    if "parallel" in options:
        sequential = _small()
        sequential.load_state_dict(model.state_dict())
        assert (sequential(x) - y).abs().max() > 1e-3


def test_its_adaptors_are_its_own(tmp_path):
    model = _small()
    with pytest.raises(ValueError, match="MambaAdaptor has adaptors already"):
        vssm.add_adaptors(model)
    with pytest.raises(
        ValueError, match="MambaAdaptor was built with its adaptors and has no base without; save the whole"
    ):
        vssm.save_adaptors(model, tmp_path / "x.safetensors")
    assert 0 < vssm.freeze_base(model).trainable < sum(p.numel() for p in model.parameters())
    bare = _small(temporal=False, spatial=False)
    assert "learned" in str(vssm.add_adaptors(bare))


def test_small_images_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="selects 4 states, and the map has only 1 x 2; give larger images, or build"):
        _small()(torch.randn(1, 3, 4, 8))
    assert _small(points=2)(torch.randn(1, 3, 4, 8)).shape == (1, 5)

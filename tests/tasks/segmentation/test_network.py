"""UPerNet on backbones by name."""

import pytest
import torch

import vssm
from vssm.tasks.segmentation import upernet
from vssm.tasks.synced import SyncedBatchNorm


def test_the_published_size():
    with torch.device("meta"):
        model = upernet("vmamba_tiny_s1l8", 150)
    counted = vssm.complexity(model, (3, 512, 2048), batch_norm="eval")
    assert (counted.params, counted.macs) == (61_902_572, 948_780_189_696)
    assert model.multiple == 1


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("vmamba_nano", 1), ("spatial_mamba_nano", 1), ("test_convnext.r160_in1k", 32), ("test_resnet.r160_in1k", 32)],
)
def test_backbones(name, multiple):
    model = upernet(name, 3, channels=8, aux_channels=4).eval()
    strides = model.backbone.feature_info.reduction()
    assert model.multiple == multiple and model.num_classes == 3
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64 // strides[0], 96 // strides[0])
    assert any(isinstance(module, SyncedBatchNorm) for module in model.aux_head.modules())


def test_this_packages_backbones_take_any_size():
    model = upernet("vmamba_nano", 3, channels=8, aux_channels=0).eval()
    assert model(torch.randn(1, 3, 67, 41)).shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vmamba_nanno"}, "unknown model 'vmamba_nanno'; nearest: vmamba_nano"),
        ({"backbone": "vim_tiny"}, "vim_tiny has maps of one stride"),
        ({"num_classes": 256}, "num_classes is 256; labels have 8 bits and 255 is ignored"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"aux_channels": -1}, "aux_channels is -1; it must be at least 0"),
        ({"drop_rate": 1.0}, r"drop_rate is 1\.0; it must be in \[0, 1\)"),
        ({"backbone_args": {"dept": 3}}, "vmamba_nano"),
        ({"backbone": torch.nn.Identity()}, "Identity has no feature_info"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        upernet(**{"backbone": "vmamba_nano", "num_classes": 3, **arguments})

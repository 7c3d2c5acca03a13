"""UPerNet: its sums by hand, its size as published, and the same numbers as transformers' implementation."""

import pytest
import timm
import torch
import torch.nn.functional as F

import vssm
from vssm.tasks.segmentation import FCNHead, UPerNet, UPerNetHead

WIDTHS = (4, 6, 8, 10)


def _maps(height=32, width=48, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), generator=generator, dtype=dtype)
        for i, c in enumerate(WIDTHS)
    ]


def _filled(module):
    generator = torch.Generator().manual_seed(1)
    for name, t in module.state_dict().items():
        if t.is_floating_point():
            t.copy_(0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype))
            if "running_var" in name:
                t.abs_().add_(0.5)
    return module.eval()


def test_a_single_path_by_hand():
    """With everything else at zero the scores are the last map's, resized along the way that the pyramid takes."""
    head = UPerNetHead(WIDTHS, 3, channels=5).double().eval()
    for p in head.parameters():
        p.data.zero_()

    def passes(conv):  # channel 0 through a convolution and its norm unchanged
        conv[0].weight.data[0, 0, conv[0].weight.shape[-1] // 2, conv[0].weight.shape[-1] // 2] = 1
        conv[1].weight.data.fill_((1 + conv[1].eps) ** 0.5)

    passes(head.pooling.bottleneck)
    for conv in head.fpn_convs:
        passes(conv)
    passes(head.fpn_bottleneck)
    head.classifier.weight.data[2, 0] = 2
    head.classifier.bias.data[1] = 7
    maps = _maps()
    x = maps[-1][:, :1].relu()
    for y in maps[2::-1]:  # top-down, through every level
        x = F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False)
    scores = head(maps)
    assert scores.shape == (2, 3, 32, 48)
    torch.testing.assert_close(scores[:, 2:], 2 * x)
    assert (scores[:, 0] == 0).all() and (scores[:, 1] == 7).all()
    # ... and straight from the last level, the last of the four that are joined.
    head.fpn_bottleneck[0].weight.data.zero_()[0, 15, 1, 1] = 1
    straight = F.interpolate(maps[-1][:, :1].relu(), size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(maps)[:, 2:], 2 * straight)


@pytest.mark.parametrize("size", [(32, 48), (33, 17), (8, 8), (5, 1)])
def test_any_sizes(size):
    head = _filled(UPerNetHead(WIDTHS, 3, channels=5).double())
    scores = head(_maps(*size))
    assert scores.shape == (2, 3, *size) and scores.isfinite().all() and scores.std() > 0


def test_the_numbers_of_transformers():
    from transformers import UperNetConfig
    from transformers.models.upernet import modeling_upernet as upernet

    config = UperNetConfig(hidden_size=5, num_labels=3, pool_scales=[1, 2, 3, 6], auxiliary_in_channels=8)
    config.auxiliary_channels = 7
    for theirs, ours, maps in (
        (upernet.UperNetHead(config, WIDTHS), UPerNetHead(WIDTHS, 3, channels=5), _maps()),
        (upernet.UperNetFCNHead(config, in_channels=WIDTHS), FCNHead(8, 3, channels=7), _maps()),
    ):
        ours, theirs = _filled(ours.double()), theirs.double().eval()
        tensors = {k: v for k, v in ours.state_dict().items() if "num_batches" not in k}
        names = [name for name in theirs.state_dict() if "num_batches" not in name]
        order = _their_order(list(tensors)) if isinstance(ours, UPerNetHead) else list(tensors)
        assert len(names) == len(order)
        theirs.load_state_dict({a: tensors[b] for a, b in zip(names, order, strict=True)}, strict=False)
        found = ours(maps[2] if isinstance(ours, FCNHead) else maps)
        torch.testing.assert_close(found, theirs(maps), rtol=1e-10, atol=1e-10)


def _their_order(names):
    """Theirs: classifier, pooling, bottleneck, laterals, pyramid, its bottleneck."""
    keys = ("classifier", "pooling.convs", "pooling.bottleneck", "laterals", "fpn_convs", "fpn_bottleneck")
    return [n for key in keys for n in names if n.startswith(key)]


def test_the_published_size_with_vmamba():
    """Parameters and multiply-adds at 512 x 2048 as the authors of VMamba count their segmentation model."""
    with torch.device("meta"):
        backbone = timm.create_model("vmamba_tiny_s1l8", features_only=True, out_norms=True)
        model = UPerNet(backbone, backbone.feature_info.channels())
    counted = vssm.complexity(model, (3, 512, 2048), batch_norm="eval")
    assert (counted.params, counted.macs) == (61_902_572, 948_780_189_696)
    parts = [sum(p.numel() for p in part.parameters()) for part in (model.head, model.aux_head)]
    assert parts == [31_497_366, 923_798]


def test_training_gives_the_auxiliary_scores_too():
    backbone = timm.create_model("vmamba_nano", features_only=True)
    model = UPerNet(backbone, backbone.feature_info.channels(), num_classes=3, channels=8, aux_channels=4)
    scores, aux = model(torch.randn(2, 3, 32, 48))
    assert scores.shape == (2, 3, 16, 24) and aux.shape == (2, 3, 8, 12)
    (scores.square().mean() + aux.square().mean()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(torch.randn(1, 3, 32, 48)).shape == (1, 3, 16, 24)
    without = UPerNet(backbone, backbone.feature_info.channels(), 3, channels=8, aux_channels=0).train()
    assert without(torch.randn(2, 3, 32, 48)).shape == (2, 3, 16, 24)


def test_what_is_refused():
    with pytest.raises(ValueError, match="in_channels needs two maps or more"):
        UPerNetHead((4,), 3)
    with pytest.raises(ValueError, match="expected 4 maps, got 3"):
        UPerNetHead(WIDTHS, 3, channels=5)(_maps()[:3])

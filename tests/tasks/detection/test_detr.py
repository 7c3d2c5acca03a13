"""RT-DETRv2 and D-FINE of transformers on our backbones, in the form of the other detectors."""

import pytest
import segmentation_models_pytorch as smp
import torch
import transformers

from vssm.data.padded import PaddedImages
from vssm.tasks.detection.detr import Detr, d_fine, rt_detr_v2

FACTORIES = {"rt_detr_v2": rt_detr_v2, "d_fine": d_fine}
kinds = pytest.mark.parametrize("kind", FACTORIES)


def build(kind="rt_detr_v2", backbone="vmamba_nano", **options):
    torch.manual_seed(0)
    return FACTORIES[kind](backbone, 3, **{"width": 32, "queries": 20, "layers": 2, "num_denoising": 5, **options})


def images():
    generator = torch.Generator().manual_seed(1)
    return PaddedImages.of(
        [torch.randn(3, h, w, generator=generator) for h, w in ((64, 60), (40, 90))], [(128, 120), (20, 90)]
    )


def targets():
    return [{"boxes": torch.tensor([[6.0, 4, 40, 30], [10, 20, 30, 36]]), "labels": torch.tensor([2, 0])},
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]  # fmt: skip


@kinds
def test_losses_are_those_of_transformers(kind):
    model = build(kind).train()
    torch.manual_seed(1)
    losses = model(images(), targets())
    torch.manual_seed(1)
    labels = [{"class_labels": t["labels"], "boxes": torch.stack([
        (t["boxes"][:, 0] + t["boxes"][:, 2]) / 2 / 96, (t["boxes"][:, 1] + t["boxes"][:, 3]) / 2 / 64,
        (t["boxes"][:, 2] - t["boxes"][:, 0]) / 96, (t["boxes"][:, 3] - t["boxes"][:, 1]) / 64], 1)}
        for t in targets()]  # fmt: skip
    expected = model.net(images().pixels, labels=labels).loss
    torch.testing.assert_close(sum(losses.values()), expected)
    assert {"loss_vfl", "loss_bbox", "loss_giou"} <= set(losses) and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    absent = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert not [name for name in absent if "backbone" in name], absent


@kinds
def test_results_are_in_pixels_of_the_original(kind):
    model = build(kind, kept=7).eval()
    with torch.no_grad():
        found = model(images())
        outputs = model.net(images().pixels)
    for i, (d, (h, w), (oh, ow)) in enumerate(zip(found, images().sizes, images().originals)):
        pairs = sorted(((s, q, c) for q, row in enumerate(outputs.logits[i].sigmoid().tolist())
                        for c, s in enumerate(row)), reverse=True)[:7]  # fmt: skip
        assert d.labels.tolist() == [c for _, _, c in pairs] and d.masks is None and d.size == (oh, ow)
        for box, (score, q, _), found_score in zip(d.boxes.tolist(), pairs, d.scores.tolist()):
            cx, cy, bw, bh = outputs.pred_boxes[i, q].tolist()
            x = [min(max((cx + side * bw / 2) * 96, 0), w) * ow / w for side in (-1, 1)]
            y = [min(max((cy + side * bh / 2) * 64, 0), h) * oh / h for side in (-1, 1)]
            assert box == pytest.approx([x[0], y[0], x[1], y[1]], abs=1e-3) and found_score == pytest.approx(score)


@pytest.mark.full
def test_it_learns_one_image():
    model = build("d_fine", score=0.3, num_denoising=10).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    batch = PaddedImages.of([torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))])
    for _ in range(110):
        optimiser.zero_grad()
        sum(model(batch, targets()[:1]).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        found = model.eval()(batch)[0]
    for box, label in zip(targets()[0]["boxes"], targets()[0]["labels"]):
        best = found.labels.tolist().index(int(label))
        assert (found.boxes[best] - box).abs().max() < 5


@pytest.mark.parametrize("name", ["vmamba_nano", "spatial_mamba_nano", "resnet18"])
def test_any_backbone(name):
    model = build(backbone=name).eval()
    strides = model.net.config.feat_strides
    assert strides == ([8, 16, 32] if name == "resnet18" else [2, 4, 8])
    assert len(model(images())) == 2
    norms = [n for n, _ in model.named_parameters() if "out_norms" in n]
    assert len(norms) == (0 if name == "resnet18" else 6)


def test_arguments_and_weights_of_the_backbone():
    model = build(backbone_args={"drop_path_rate": 0.5, "out_norms": False})
    assert not [n for n, _ in model.named_parameters() if "out_norms" in n]
    rates = {getattr(m, "drop_prob", 0.0) for m in model.modules()}
    assert max(rates) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vmamba_tinny"}, "unknown model"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"layers": 1}, "layers must be at least 2, got 1"),
        ({"decoder_leyers": 3}, "RTDetrV2Config has no field 'decoder_leyers'"),
        ({"backbone_args": {"dims": (8, 16, 32)}}, "channels, with backbone_args"),
        ({"decoder_attention_heads": 5}, "divisible by"),
        ({"dropout": "much"}, "dropout"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_targets_that_are_refused():
    with pytest.raises(ValueError, match="label 0 is 3; with 3 classes"):
        build().train()(images(), [{"boxes": torch.ones(1, 4).cumsum(1), "labels": torch.tensor([3])}] * 2)
    with pytest.raises(ValueError, match="targets are for training"):
        build().eval()(images(), targets())


def test_without_transformers(monkeypatch):
    monkeypatch.setattr("vssm.tasks.detection.detr.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs transformers and scipy, not installed here: pip install transformers"):
        Detr("DFine", "vmamba_nano", 3)


# ---- as users of transformers and segmentation_models_pytorch write it ----


def test_a_backbone_by_its_name_in_transformers():
    import vssm.models

    assert "vmamba_tiny" in vssm.models.NAMES  # the import registers the names
    config = transformers.TimmBackboneConfig(backbone="vmamba_nano", out_indices=[0, 1, 2])
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32}
    small = {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "dim_feedforward": 32,
        "num_queries": 6,
    }
    options = transformers.Mask2FormerConfig(
        backbone_config=config, num_labels=3, feature_strides=[2, 4, 8], **widths, **small
    )
    model = transformers.Mask2FormerForUniversalSegmentation(options)
    x = torch.randn(1, 3, 64, 64)
    masks = torch.zeros(2, 64, 64)
    masks[0, :30], masks[1, 30:] = 1, 1
    out = model(pixel_values=x, mask_labels=[masks], class_labels=[torch.tensor([0, 2])])
    assert out.loss.isfinite() and out.class_queries_logits.shape == (1, 6, 4)
    out.loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "_backbone.model.stem" in n)


def test_a_backbone_by_its_name_in_segmentation_models():
    model = smp.FPN("tu-vmamba_tiny", encoder_weights=None, classes=3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)

"""The whole networks, narrow, on small images: training, evaluation, what is refused."""

import pytest
import timm
import torch
from torch import nn

from vssm.data.padded import PaddedImages
from vssm.tasks.backbone import create_backbone
from vssm.tasks.detection import cascade_mask_rcnn, mask_rcnn
from vssm.tasks.detection.assign import Sampler
from vssm.tasks.detection.roi_heads import StageConfig
from vssm.tasks.detection.rpn import RPNConfig

NARROW = {"fpn_channels": 8, "box_channels": 16, "mask_channels": 8}
FACTORIES = {"mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}


def build(kind="mask_rcnn", backbone="vmamba_nano", **options):
    torch.manual_seed(0)
    return FACTORIES[kind](backbone, 3, **{**NARROW, **options})


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, h, w, generator=generator) for h, w in sizes]


def targets(*sizes):
    made = []
    for h, w in sizes:
        masks = torch.zeros(2, h, w, dtype=torch.bool)
        masks[0, 4:30, 6:40], masks[1, 20:36, 10:30] = True, True
        made.append({"boxes": torch.tensor([[6.0, 4, 40, 30], [10, 20, 30, 36]]), "labels": torch.tensor([2, 0]),
                     "masks": masks})  # fmt: skip
    return made


SIZES = ((64, 60), (40, 90))


@pytest.mark.parametrize("kind", FACTORIES)
def test_losses_reach_every_parameter(kind):
    model = build(kind).train()
    losses = model(PaddedImages.of(images(*SIZES)), targets(*SIZES))
    stages = [""] if kind == "mask_rcnn" else ["_1", "_2", "_3"]
    assert sorted(losses) == sorted(["rpn_cls", "rpn_box", *(n + s for n in ("cls", "box", "mask") for s in stages)])
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.full
def test_it_learns_one_image():
    widths = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16}
    model = build(score=0.3, rpn=RPNConfig(kept=(100, 50)), stage=StageConfig(sampler=Sampler(64, 0.25)), **widths)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    (image,), (target,) = images((64, 64)), targets((64, 64))
    for _ in range(100):
        losses = model([image], [target])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    found = model.eval()([image])[0]
    assert sorted(found.labels[:2].tolist()) == [0, 2] and (found.scores[:2] > 0.6).all()
    for box, label, mask in zip(found.boxes[:2], found.labels[:2], found.paste(slice(0, 2))):
        index = target["labels"].tolist().index(int(label))
        assert (box - target["boxes"][index]).abs().max() < 4
        truth = target["masks"][index]
        assert (mask & truth).sum() / (mask | truth).sum() > 0.7


@pytest.mark.parametrize("kind", FACTORIES)
def test_results_are_in_the_original_image_and_do_not_depend_on_the_batch(kind):
    model = build(kind, score=0.0, rpn=RPNConfig(kept=(50, 50))).eval()
    pictures, originals = images(*SIZES), [(128, 120), (20, 90)]
    with torch.no_grad():
        found = model(PaddedImages.of(pictures, originals))
        plain = model([pictures[0]])[0]  # of the size of its own padding, as in the batch of two heights
    assert [d.size for d in found] == originals and all(len(d) > 5 for d in found)
    for d in found:
        assert (d.boxes >= 0).all() and (d.boxes[:, 2] <= d.size[1] + 1e-3).all()
        assert (d.boxes[:, 3] <= d.size[0] + 1e-3).all()
        assert (d.scores.diff() <= 0).all() and d.labels.max() < 3 and d.masks.shape[1:] == (28, 28)
    assert plain.size == (64, 60)
    half = PaddedImages.of(pictures[:1], [(128, 120)])
    with torch.no_grad():
        torch.testing.assert_close(model(half)[0].boxes, 2 * plain.boxes)


def test_boxes_alone():
    model = build(masks=False)
    assert not any("mask" in name for name, _ in model.named_parameters())
    target = {key: value for key, value in targets((64, 64))[0].items() if key != "masks"}
    assert sorted(model.train()(images((64, 64)), [target])) == ["box", "cls", "rpn_box", "rpn_cls"]
    assert model.eval()(images((64, 64)))[0].masks is None


def test_the_same_seed_gives_the_same_losses():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        losses = build().train()(images((64, 64)), targets((64, 64)))
        found.append([loss.item() for loss in losses.values()])
    assert found[0] == found[1]


def test_training_in_bfloat16():
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images((64, 64)), targets((64, 64)))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


# ---- backbones ----


@pytest.mark.parametrize(
    ("name", "arguments", "norms"),
    [
        ("resnet18", {}, False),
        ("convnext_atto", {}, True),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}, True),
    ],
)
def test_any_backbone_of_timm(name, arguments, norms):
    backbone = create_backbone(name, **arguments).eval()
    info = backbone.feature_info
    x = images((64, 96))[0][None]
    maps = backbone(x)
    assert info.reduction() == [4, 8, 16, 32]
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(info.channels(), info.reduction())
    ]
    assert len(backbone.out_norms) == 4 * norms
    if norms:
        for level in maps:
            torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), atol=1e-4, rtol=0)
            assert (level.var(1, correction=0) - 1).abs().max() < 0.05
        plain = create_backbone(name, out_norms=False, **arguments).eval()
        plain.net.load_state_dict(backbone.net.state_dict())
        assert (plain(x)[3] - maps[3]).abs().max() > 0.01
    model = build(backbone=name, backbone_args=arguments).eval()
    assert len(model(images((64, 96)))) == 1


def test_a_module_as_backbone():
    net = timm.create_model("vmamba_nano", features_only=True, out_norms=True)
    model = build(backbone=net)
    named = build()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in named.named_parameters()]
    assert any("out_norms.2" in name for name, _ in named.named_parameters())
    assert not any("out_norms" in n for n, _ in build(backbone_args={"out_norms": False}).named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vmamba_tinny"}, "unknown model 'vmamba_tinny'; nearest: vmamba_tiny"),
        ({"backbone": "vim_tiny"}, "vim_tiny has maps of one stride"),
        ({"backbone": "vit_tiny_patch16_224"}, "needs maps that are each half as fine"),
        ({"backbone": "vmamba_nano", "backbone_args": {"width": 3}}, "no option 'width'"),
        ({"backbone": nn.Conv2d(3, 3, 1)}, r"Conv2d has no feature_info.channels\(\)"),
        ({"backbone": nn.Conv2d(3, 3, 1), "pretrained": True}, "do nothing for a module"),
        ({"fpn_channels": 0}, "fpn_channels must be at least 1, got 0"),
        ({"kind": "cascade_mask_rcnn", "stages": ()}, "stages must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# ---- targets ----


def _changed(**changes):
    (target,) = targets((64, 64))
    target = {**target, **changes}
    return [{key: value for key, value in target.items() if value is not None}]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "a network in training needs targets"),
        ([], "1 images, but targets of 0"),
        (_changed(boxes=None), "the target of image 0 has no boxes"),
        (_changed(masks=None), "has no masks; a network for boxes is built with masks=False"),
        (_changed(boxes=torch.zeros(2, 3)), r"boxes must be \(N, 4\) float, got \[2, 3\]"),
        (_changed(boxes=torch.zeros(2, 4)), r"box 0 is \[0.0, 0.0, 0.0, 0.0\]; x2 and y2 must be above"),
        (_changed(boxes=torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, float("nan")]])), "box 1 is"),
        (_changed(labels=torch.tensor([0, 3])), "label 1 is 3; with 3 classes it is in 0..2"),
        (_changed(labels=torch.tensor([0.0, 1.0])), "2 boxes need labels"),
        (_changed(masks=torch.zeros(2, 64, 60, dtype=torch.bool)), r"masks must be \[2, 64, 64\] bool"),
        (_changed(masks=torch.zeros(2, 64, 64)), "bool, got .* torch.float32"),
    ],
)
def test_targets_that_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        build().train()(images((64, 64)), made)


def test_targets_in_evaluation_are_refused():
    with pytest.raises(ValueError, match="targets are for training"):
        build().eval()(images((64, 64)), targets((64, 64)))

"""Sizes of the networks as the papers' authors count them."""

import pytest
import torch

import vssm
from vssm.tasks.backbone import create_backbone
from vssm.tasks.detection import cascade_mask_rcnn, mask_rcnn

FACTORIES = {"mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}


@pytest.mark.parametrize(
    ("kind", "backbone", "params", "macs"),
    [
        ("mask_rcnn", "vmamba_tiny", 49_755_312, 271_163_376_640),
        ("mask_rcnn", "spatial_mamba_tiny", 46_387_782, 261_231_088_640),
        ("cascade_mask_rcnn", "spatial_mamba_tiny", 84_222_984, 740_234_736_640),
        pytest.param("mask_rcnn", "spatial_mamba_small", 62_713_200, 315_298_288_640, marks=pytest.mark.full),
        pytest.param("mask_rcnn", "spatial_mamba_base", 115_251_840, 493_511_664_640, marks=pytest.mark.full),
        pytest.param("cascade_mask_rcnn", "spatial_mamba_small", 100_548_402, 794_301_936_640, marks=pytest.mark.full),
    ],
)
def test_published_sizes(kind, backbone, params, macs):
    with torch.device("meta"):
        model = FACTORIES[kind](backbone)
    counted = vssm.complexity(model, (3, 1280, 800))
    assert (counted.params, counted.macs) == (params, macs)


def test_resnet50_whose_first_stage_is_frozen():
    """As VMamba's authors publish it: the norms of the frozen stem and stage are in evaluation, 2 per element for 5."""
    with torch.device("meta"):
        model = mask_rcnn("resnet50")
    counted = vssm.complexity(model, (3, 1280, 800))
    frozen = 640 * 400 * 64 + 320 * 200 * (3 * (64 + 64 + 256) + 256)
    assert (counted.params, counted.macs - 3 * frozen) == (44_396_336, 260_152_304_640)


def test_parts():
    with torch.device("meta"):
        one, three = mask_rcnn("vmamba_tiny"), cascade_mask_rcnn("vmamba_tiny")

    def size(part):
        return sum(p.numel() for p in part.parameters())

    assert size(one.backbone) == 29_481_408 and size(one.fpn) == 369_664 + 2_360_320 and size(one.rpn) == 593_935
    assert [size(s.box) for s in one.roi_heads.stages] == [14_306_705]
    assert [size(s.mask) for s in one.roi_heads.stages] == [2_643_280]
    assert [size(s.box) for s in three.roi_heads.stages] == [15_618_449] * 3


def test_counting_needs_no_memory_and_changes_nothing():
    model = mask_rcnn("vmamba_nano", 3, fpn_channels=8, box_channels=8, mask_channels=8).train()
    before = [p.clone() for p in model.parameters()]
    real = vssm.complexity(model, (3, 64, 96))
    assert model.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    with torch.device("meta"):
        same = mask_rcnn("vmamba_nano", 3, fpn_channels=8, box_channels=8, mask_channels=8)
    assert vssm.complexity(same, (3, 64, 96)).by_operator == real.by_operator
    backbone = vssm.complexity(create_backbone("vmamba_nano"), (3, 64, 96))
    # Box head: 1000 regions. Mask head: 100.
    box = 1000 * (8 * 49 * 8 + 8 * 8 + 8 * 4 + 8 * 12)
    mask = 100 * (4 * 196 * 9 * 64 + 196 * 4 * 64 + 784 * 8 * 3)
    pixels = [32 * 48, 16 * 24, 8 * 12, 4 * 6]
    fpn = 8 * sum(c * n for c, n in zip(create_backbone("vmamba_nano").feature_info.channels(), pixels))
    fpn += 9 * 64 * sum(pixels[:3]) + 8 * sum(pixels[:2])  # nearest: one per element
    rpn = (9 * 64 + 8 * 15) * sum(pixels)
    assert real.macs == backbone.macs + fpn + rpn + box + mask

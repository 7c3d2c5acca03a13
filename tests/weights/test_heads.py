"""Detection and segmentation files with the names of mmdet and mmseg, into our networks, and what they compute then."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.goldens import official_keys, official_state
from vssm.tasks.detection import cascade_mask_rcnn, mask_rcnn
from vssm.tasks.segmentation import upernet
from vssm.weights import CheckpointError, load_checkpoint

K = 4


def _conv(name, cin, cout, k, bias=True):
    yield f"{name}.weight", (cout, cin, k, k)
    if bias:
        yield f"{name}.bias", (cout,)


def _linear(name, cin, cout):
    yield from ((f"{name}.weight", (cout, cin)), (f"{name}.bias", (cout,)))


def _norm(name, c):
    yield from ((f"{name}.{part}", (c,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def detector_keys(dims, stages, c=256, width=1024, classes=80):
    """What mmdet's FPN, RPNHead, Shared2FCBBoxHead or Shared4Conv1FCBBoxHead, and FCNMaskHead call their tensors."""
    for i, dim in enumerate(dims):
        yield from _conv(f"neck.lateral_convs.{i}.conv", dim, c, 1)
    for i in range(len(dims)):
        yield from _conv(f"neck.fpn_convs.{i}.conv", c, c, 3)
    yield from _conv("rpn_head.rpn_conv", c, c, 3)
    yield from _conv("rpn_head.rpn_cls", c, 3, 1)
    yield from _conv("rpn_head.rpn_reg", c, 12, 1)
    for stage in range(stages):
        box = "roi_head.bbox_head" + (f".{stage}" if stages > 1 else "")
        yield from _linear(f"{box}.fc_cls", width, classes + 1)
        yield from _linear(f"{box}.fc_reg", width, 4 * classes)
        for i in range(4 if stages > 1 else 0):
            yield from _conv(f"{box}.shared_convs.{i}.conv", c, c, 3, bias=False)
            yield from _norm(f"{box}.shared_convs.{i}.bn", c)
        yield from _linear(f"{box}.shared_fcs.0", c * 49, width)
        if stages == 1:
            yield from _linear(f"{box}.shared_fcs.1", width, width)
    for stage in range(stages):
        mask = "roi_head.mask_head" + (f".{stage}" if stages > 1 else "")
        for i in range(4):
            yield from _conv(f"{mask}.convs.{i}.conv", c, c, 3)
        yield f"{mask}.upsample.weight", (c, c, 2, 2)
        yield f"{mask}.upsample.bias", (c,)
        yield from _conv(f"{mask}.conv_logits", c, classes, 1)


def segmentation_keys(dims, c=512, aux=256, classes=150):
    """What mmseg's UPerHead and FCNHead call their tensors."""

    def conv(name, cin, cout, k):
        yield from _conv(f"{name}.conv", cin, cout, k, bias=False)
        yield from _norm(f"{name}.bn", cout)

    yield from _conv("decode_head.conv_seg", c, classes, 1)
    for i in range(4):
        yield from conv(f"decode_head.psp_modules.{i}.1", dims[-1], c, 1)
    yield from conv("decode_head.bottleneck", dims[-1] + 4 * c, c, 3)
    for i, dim in enumerate(dims[:-1]):
        yield from conv(f"decode_head.lateral_convs.{i}", dim, c, 1)
    for i in range(len(dims) - 1):
        yield from conv(f"decode_head.fpn_convs.{i}", c, c, 3)
    yield from conv("decode_head.fpn_bottleneck", len(dims) * c, c, 3)
    yield from _conv("auxiliary_head.conv_seg", aux, classes, 1)
    yield from conv("auxiliary_head.convs.0", dims[-2], aux, 3)


def _file(path, backbone, heads):
    """A file as mmengine writes one, filled; the tensors."""
    state = {
        f"backbone.{name}": tensor for name, tensor in official_state(official_keys()[f"backbone_{backbone}"]).items()
    }
    state |= {name: torch.tensor(7) for name in state if name.endswith("num_batches_tracked")}
    generator = torch.Generator().manual_seed(0)
    for name, shape in heads:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        else:
            state[name] = 0.05 * torch.randn(shape, generator=generator) + ("running_var" in name)
    torch.save({"meta": {"epoch": 12, "dataset_meta": {"CLASSES": ("person",)}}, "state_dict": state}, path)
    return state


DIMS = {"vmamba_tiny_s1l8": (96, 192, 384, 768), "spatial_mamba_tiny": (64, 128, 256, 512)}
NARROW = {"c": 8, "width": 16, "classes": K}
OURS = {"num_classes": K, "fpn_channels": 8, "box_channels": 16, "mask_channels": 8}


@pytest.mark.parametrize("backbone", DIMS)
@pytest.mark.parametrize("stages", [1, 3])
def test_a_detector_takes_all_of_a_file(tmp_path, backbone, stages):
    state = _file(tmp_path / "file.pth", backbone, detector_keys(DIMS[backbone], stages, **NARROW))
    model = (mask_rcnn if stages == 1 else cascade_mask_rcnn)(backbone, **OURS)
    report = load_checkpoint(model, tmp_path / "file.pth")
    assert report.loaded == len(state) == len(model.state_dict())
    assert not report.unused and not report.initialised and report.entry == "state_dict"
    index = stages - 1
    box, mask = model.roi_heads.stages[index].box, model.roi_heads.stages[index].mask
    suffix = f".{index}" if stages > 1 else ""
    assert torch.equal(box.cls.bias, state[f"roi_head.bbox_head{suffix}.fc_cls.bias"])
    assert torch.equal(mask.predictor.mask_fcn_logits.bias, state[f"roi_head.mask_head{suffix}.conv_logits.bias"])
    # What the heads compute, written out with the file's own names.
    w = {name: tensor.double() for name, tensor in state.items()}
    model.double().eval()
    x = torch.randn(3, 8, 7, 7, dtype=torch.float64)
    scores, deltas = box(x)
    at = f"roi_head.bbox_head{suffix}."
    y = x
    for i in range(4 if stages > 1 else 0):
        y = F.conv2d(y, w[f"{at}shared_convs.{i}.conv.weight"], padding=1)
        bn = [w[f"{at}shared_convs.{i}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        y = F.batch_norm(y, *bn).relu()
    y = y.flatten(1)
    for i in range(2 if stages == 1 else 1):
        y = F.linear(y, w[f"{at}shared_fcs.{i}.weight"], w[f"{at}shared_fcs.{i}.bias"]).relu()
    torch.testing.assert_close(scores, F.linear(y, w[f"{at}fc_cls.weight"], w[f"{at}fc_cls.bias"]).float())
    expected = F.linear(y, w[f"{at}fc_reg.weight"], w[f"{at}fc_reg.bias"])
    torch.testing.assert_close(deltas.flatten(1), expected.float())
    x, at = torch.randn(2, 8, 14, 14, dtype=torch.float64), f"roi_head.mask_head{suffix}."
    y = x
    for i in range(4):
        y = F.conv2d(y, w[f"{at}convs.{i}.conv.weight"], w[f"{at}convs.{i}.conv.bias"], padding=1).relu()
    y = F.conv_transpose2d(y, w[f"{at}upsample.weight"], w[f"{at}upsample.bias"], stride=2).relu()
    y = F.conv2d(y, w[f"{at}conv_logits.weight"], w[f"{at}conv_logits.bias"])
    torch.testing.assert_close(mask(x), y.float())


def test_pyramid_and_proposals_compute_with_the_names_of_the_file(tmp_path):
    backbone = "spatial_mamba_tiny"
    state = _file(tmp_path / "file.pth", backbone, detector_keys(DIMS[backbone], 1, **NARROW))
    model = mask_rcnn(backbone, **OURS)
    load_checkpoint(model, tmp_path / "file.pth")
    maps = [torch.randn(1, dim, n, n + 1) for dim, n in zip(DIMS[backbone], (13, 7, 4, 2))]
    model.backbone = nn.Identity()
    lateral = [F.conv2d(x, state[f"neck.lateral_convs.{i}.conv.weight"], state[f"neck.lateral_convs.{i}.conv.bias"])
               for i, x in enumerate(maps)]  # fmt: skip
    for i in (3, 2, 1):
        lateral[i - 1] = lateral[i - 1] + F.interpolate(lateral[i], size=lateral[i - 1].shape[-2:], mode="nearest")
    levels = [F.conv2d(x, state[f"neck.fpn_convs.{i}.conv.weight"], state[f"neck.fpn_convs.{i}.conv.bias"], padding=1)
              for i, x in enumerate(lateral)]  # fmt: skip
    levels.append(levels[-1][:, :, ::2, ::2])
    found = model.maps(maps)
    for a, b in zip(found, levels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    scores, deltas = model.rpn.head(found)
    for level, a, b in zip(levels, scores, deltas, strict=True):
        y = F.conv2d(level, state["rpn_head.rpn_conv.weight"], state["rpn_head.rpn_conv.bias"], padding=1).relu()
        torch.testing.assert_close(a, F.conv2d(y, state["rpn_head.rpn_cls.weight"], state["rpn_head.rpn_cls.bias"]),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
        torch.testing.assert_close(b, F.conv2d(y, state["rpn_head.rpn_reg.weight"], state["rpn_head.rpn_reg.bias"]),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("backbone", DIMS)
def test_a_segmentation_network_takes_all_of_a_file(tmp_path, backbone):
    state = _file(tmp_path / "file.pth", backbone, segmentation_keys(DIMS[backbone], c=8, aux=6, classes=K))
    model = upernet(backbone, K, channels=8, aux_channels=6)
    report = load_checkpoint(model, tmp_path / "file.pth")
    assert report.loaded == len(state) == len(model.state_dict()) and not report.unused and not report.initialised
    for ours, official in [
        (model.head.pooling.convs[2][0].weight, "decode_head.psp_modules.2.1.conv.weight"),
        (model.head.pooling.bottleneck[1].running_var, "decode_head.bottleneck.bn.running_var"),
        (model.head.laterals[1][1].bias, "decode_head.lateral_convs.1.bn.bias"),
        (model.head.fpn_convs[2][0].weight, "decode_head.fpn_convs.2.conv.weight"),
        (model.head.fpn_bottleneck[0].weight, "decode_head.fpn_bottleneck.conv.weight"),
        (model.head.classifier.bias, "decode_head.conv_seg.bias"),
        (model.aux_head.conv[1].weight, "auxiliary_head.convs.0.bn.weight"),
        (model.aux_head.classifier.weight, "auxiliary_head.conv_seg.weight"),
    ]:
        assert torch.equal(ours, state[official]), official


@pytest.mark.parametrize(("stages", "factory"), [(1, mask_rcnn), (3, cascade_mask_rcnn)])
def test_the_published_sizes_fit(tmp_path, stages, factory):
    """Names and shapes at full width, on the meta device."""
    from vssm.weights.heads import to_our_heads

    for backbone, dims in DIMS.items():
        with torch.device("meta"):
            model = factory(backbone)
            heads = {name: torch.empty(shape) for name, shape in detector_keys(dims, stages)}
            found = to_our_heads(heads, "the list")
        own = {n: tuple(t.shape) for n, t in model.state_dict().items() if not n.startswith("backbone.")}
        assert {name: tuple(t.shape) for name, t in found.items()} == own
    with torch.device("meta"):
        model = upernet("spatial_mamba_tiny")
        heads = {name: torch.empty(shape) for name, shape in segmentation_keys(DIMS["spatial_mamba_tiny"])}
    own = {n: tuple(t.shape) for n, t in model.state_dict().items() if not n.startswith("backbone.")}
    assert {name: tuple(t.shape) for name, t in to_our_heads(heads, "the list").items()} == own


# ---- other forms and uses ----


def _detector(seed, classes=K, **options):
    torch.manual_seed(seed)
    return mask_rcnn("vmamba_nano", classes, **{"fpn_channels": 8, "box_channels": 8, "mask_channels": 8, **options})


@pytest.mark.parametrize("wrap", ["", "module.", "model."])
def test_a_file_of_our_own(tmp_path, wrap):
    source, model = _detector(1), _detector(2)
    torch.save({f"{wrap}{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "file.pth")
    report = load_checkpoint(model, tmp_path / "file.pth")
    assert report.loaded == len(source.state_dict()) and not report.unused and not report.initialised
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values()))


def test_other_classes(tmp_path):
    source, model = _detector(1, classes=5), _detector(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "file.pth")
    with pytest.raises(
        CheckpointError, match=r"other shapes, 6: roi_heads.stages.0.box.cls.weight \(6, 8\) instead of"
    ):
        load_checkpoint(model, tmp_path / "file.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = load_checkpoint(model, tmp_path / "file.pth", head="reset")
    parts = ("box.cls", "box.reg", "mask.predictor.mask_fcn_logits")
    classifiers = [f"roi_heads.stages.0.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    assert sorted(report.unused) == sorted(report.initialised) == sorted(classifiers)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in classifiers else source.state_dict()[name])


def test_a_classifier_starts_a_detector(tmp_path):
    import vssm

    source, model = vssm.create_model("vmamba_nano"), _detector(2)
    torch.save(source.state_dict(), tmp_path / "file.pth")
    report = load_checkpoint(model, tmp_path / "file.pth")
    outside = [name for name in model.state_dict() if not name.startswith("backbone.")]
    assert set(outside) < set(report.initialised)
    assert {name for name in report.initialised if name not in outside} == {
        f"out_norms.{i}.{part}" for i in range(3) for part in ("weight", "bias")
    }
    assert torch.equal(model.backbone.model.stem.conv1.weight, source.stem.conv1.weight)


def test_what_does_not_fit(tmp_path):
    source, model = _detector(1), _detector(2)
    state = source.state_dict()
    torch.save({name: t for name, t in state.items() if "rpn" not in name}, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"missing, 6: rpn.head.conv.0.0.weight"):
        load_checkpoint(model, tmp_path / "short.pth")
    torch.save(state | {"roi_head.extra.weight": torch.ones(1)}, tmp_path / "long.pth")
    with pytest.raises(CheckpointError, match=r"unexpected, 1: roi_head.extra.weight"):
        load_checkpoint(model, tmp_path / "long.pth")
    torch.save(state | {"neck.fpn_convs.0.conv.bias": torch.ones(8)}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match=r"fpn.layer_blocks.0.0.bias beside neck.fpn_convs.0.conv.bias"):
        load_checkpoint(model, tmp_path / "twice.pth")
    _file(tmp_path / "seg.pth", "vmamba_tiny_s1l8", segmentation_keys(DIMS["vmamba_tiny_s1l8"], 8, 6, K))
    with pytest.raises(CheckpointError, match=r"another network around its backbone.*load_checkpoint\(model.backbone"):
        load_checkpoint(mask_rcnn("vmamba_tiny_s1l8", **OURS), tmp_path / "seg.pth")

"""Detectors as ONNX files: the objects of the network, in a runtime that knows neither torch nor this package."""

from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch

from vssm.data.keep_ratio import KeepRatio
from vssm.export import export, read_metadata
from vssm.export.detector import Detector
from vssm.tasks.detection import cascade_mask_rcnn, mask_rcnn

CLASSES = ("cat", "dog", "bird")


def network(kind="mask"):
    torch.manual_seed(0)
    build = cascade_mask_rcnn if kind == "cascade" else partial(mask_rcnn, masks=kind == "mask")
    small = dict(fpn_channels=16, box_channels=32, mask_channels=16, kept=20)
    model = build("vmamba_nano", 3, backbone_args=dict(dims=(8, 8), depths=(1, 1)), score=0.2, **small).eval()
    with torch.no_grad():  # scores that differ, boxes that move, masks that are not grey
        for name, p in model.named_parameters():
            if "head" in name:
                p += 0.05 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("kind", ["mask", "cascade"])
def test_without_branches_it_finds_the_same(kind, monkeypatch):
    """The form that is exported, run by torch."""
    model = network(kind)
    detector = Detector(model, (64, 96)).eval()
    for scale in (0.5, 3.0):
        x = scale * torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            want = detector(x)
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_exporting", lambda: True)
                found = detector(x)
        assert len(want[0]) > 0
        for one, other in zip(found, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["mask", "cascade", "boxes alone"])
def test_detection(kind, tmp_path):
    """The same objects as the network's, of one image, in onnxruntime alone; none, where it finds none."""
    model = network(kind)
    preprocess, path = KeepRatio(64, 96), tmp_path / "a.onnx"
    done = export(model, preprocess, path, dynamic=(), classes=CLASSES, task="detection", image_size=(64, 96))
    assert [(one.batch, one.size, one.images) for one in done.checked] == [
        (1, (64, 96), "random"),
        (1, (64, 96), "photographs"),
    ]
    masks = () if kind == "boxes alone" else ("masks",)
    about = read_metadata(path)
    assert about.outputs == ("boxes", "labels", "scores", *masks) and about.task == "detection"
    assert about.preprocess == preprocess and about.dynamic == ()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    counts = []
    for scale in (0.5, 1.0, 3.0):
        x = scale * torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            (want,) = model(x)
        found = dict(zip(about.outputs, session.run(None, {"image": x.numpy()}), strict=True))
        counts.append(len(want))
        np.testing.assert_allclose(found["boxes"], want.boxes, atol=1e-3)
        np.testing.assert_array_equal(found["labels"], want.labels)
        np.testing.assert_allclose(found["scores"], want.scores, atol=1e-4)
        if masks:
            assert want.masks is not None and found["masks"].std() > 1e-3
            np.testing.assert_allclose(found["masks"], want.masks.unsqueeze(1), atol=1e-4)
    assert min(counts) > 0
    assert "_propose" not in vars(model.rpn) and "_select" not in vars(model.roi_heads), "left as it was"
    model.roi_heads.score = 1.0
    export(model, preprocess, path, dynamic=(), task="detection", image_size=(64, 96))
    (boxes, *_) = onnxruntime.InferenceSession(path).run(None, {"image": x.numpy()})
    assert boxes.shape == (0, 4)
    with pytest.raises(ValueError, match=r"images of 64 x 90 would be padded; .* multiples of 32"):
        export(model, preprocess, path, dynamic=(), task="detection", image_size=(64, 90))

"""What a network found: order, choice, pasted masks, run lengths."""

import pytest
import torch
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from vssm.data.rle import decode
from vssm.tasks.detection import Detections


def found(masks=True):
    return Detections(
        boxes=torch.tensor([[2.0, 1, 6, 5], [0, 0, 4, 2]]),
        scores=torch.tensor([0.9, 0.4]),
        labels=torch.tensor([3, 1]),
        size=(8, 10),
        masks=torch.ones(2, 28, 28) if masks else None,
    )


def test_masks_fill_their_boxes():
    pasted = found().paste()
    assert pasted.shape == (2, 8, 10) and pasted.dtype == torch.bool
    assert pasted[0].sum() == 16 and pasted[0, 1:5, 2:6].all()
    assert pasted[1].sum() == 8 and pasted[1, :2, :4].all()
    assert torch.equal(found().paste(1), pasted[1:]) and torch.equal(found().paste([1, 0]), pasted.flip(0))
    assert found().paste(slice(0, 0)).shape == (0, 8, 10)


def test_choosing():
    chosen = found()[torch.tensor([False, True])]
    assert len(chosen) == 1 and chosen.labels.tolist() == [1] and chosen.masks.shape == (1, 28, 28)
    assert found(masks=False)[:1].masks is None
    assert found().to("meta").boxes.is_meta


def test_a_threshold():
    half = Detections(
        torch.tensor([[0.0, 0, 8, 8]]), torch.ones(1), torch.zeros(1).long(), (8, 8), torch.ones(1, 28, 28)
    )
    half.masks[0, :, :14] = 0.3
    assert half.paste()[0].sum() == 32 and half.paste(threshold=0.2)[0].sum() == 64


def test_run_lengths():
    codes = found().rle()
    assert [code["size"] for code in codes] == [[8, 10]] * 2 and all(isinstance(code["counts"], str) for code in codes)
    assert [torch.from_numpy(decode(code)).equal(mask) for code, mask in zip(codes, found().pasted())] == [True, True]


def test_what_is_refused():
    with pytest.raises(ValueError, match="no masks: the network was built with masks=False"):
        found(masks=False).paste()
    with pytest.raises(ValueError, match=r"boxes \(N, 4\), scores \(N,\) and labels \(N,\) do not fit"):
        Detections(torch.zeros(2, 4), torch.zeros(1), torch.zeros(2), (4, 4))
    with pytest.raises(ValueError, match=r"masks must be \(1, m, m\)"):
        Detections(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), (4, 4), torch.zeros(2, 28, 28))


def test_torchvision_draws_them():
    image, one = torch.zeros(3, 8, 10, dtype=torch.uint8), found()
    boxes = draw_bounding_boxes(image, one.boxes[:1], colors="red")
    # Both corners are drawn: x 2 to 6 and y 1 to 5, an edge of 16 pixels, on the red channel.
    assert boxes[0].count_nonzero() == 16 and boxes[0, 1, 2:7].eq(255).all() and not boxes[1:].any()
    for index in (0, 1):
        drawn = draw_segmentation_masks(image, one.paste(index), alpha=1.0, colors="blue")
        assert torch.equal(drawn[2].bool(), one.paste(index)[0]) and not drawn[:2].any()
    labelled = draw_bounding_boxes(image, one.boxes, [f"{score:.0%}" for score in one.scores.tolist()])
    assert labelled.shape == image.shape and labelled.any()

"""Whole images, windows, scales and mirrors, against plain code that keeps everything in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vssm.data.padded import PaddedImages
from vssm.tasks.segmentation import inference as module
from vssm.tasks.segmentation import upernet
from vssm.tasks.segmentation.inference import Inference, resized_rows, strips


class Local(nn.Module):
    """Scores of a stride of 4 from fixed random weights; it sees beyond the borders of a window."""

    def __init__(self, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 3, 7, 7, generator=generator))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[-2:]))
        return F.conv2d(x, self.weight, stride=4, padding=3)


def image(height, width, seed=0):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def resized(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def batch(*images, originals=None):
    return PaddedImages.of(list(images), originals, multiple=1)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    """Strips of a few rows on small images."""
    monkeypatch.setattr(module, "STRIP", 700)


@pytest.mark.parametrize(
    ("size", "new"), [((5, 7), (20, 28)), ((20, 28), (5, 7)), ((9, 4), (9, 11)), ((6, 6), (17, 6)), ((3, 3), (3, 3))]
)
def test_rows_of_a_resized_map(size, new):
    x = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    expected = resized(x[None], new)[0]
    for start in range(new[0]):
        for stop in (start + 1, new[0]):
            torch.testing.assert_close(resized_rows(x, new, start, stop), expected[:, start:stop])


def test_strips_cover_the_rows():
    assert list(strips((10, 50), 4)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(strips((2, 5000), 4)) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("original", [(24, 33), (48, 66), (17, 50)])
@torch.no_grad()
def test_whole_images(original):
    """Scores to the input's size and then to that of the file; padding of the batch is not seen."""
    model = Local()
    first, second = image(24, 33), image(40, 20, 1)
    found = Inference(model)(batch(first, second, originals=[original, (40, 20)]))
    assert model.sizes == [(24, 33), (40, 20)]
    for one, x, size in zip(found, (first, second), (original, (40, 20)), strict=True):
        scores = resized(resized(model(x[None]), x.shape[-2:]), size)
        assert torch.equal(one.labels, scores[0].argmax(0).byte()) and one.finite
        assert one.labels.dtype == torch.uint8 and one.labels.shape == size


@torch.no_grad()
def test_a_network_that_needs_a_multiple_is_padded():
    model = Local()
    model.multiple = 16
    x = image(24, 33)
    (found,) = Inference(model)(batch(x, originals=[(30, 40)]))
    assert model.sizes == [(32, 48)]
    scores = resized(model(F.pad(x[None], (0, 15, 0, 8))), (32, 48))[:, :, :24, :33]
    assert torch.equal(found.labels, resized(scores, (30, 40))[0].argmax(0).byte())


@torch.no_grad()
def test_scales_and_mirrors():
    """The mean of the probabilities at the size of the file."""
    model, x, original = Local(), image(24, 33), (30, 44)
    scales = (0.5, 1.0, 1.75)
    (found,) = Inference(model, scales, flip=True)(batch(x, originals=[original]))
    assert model.sizes == [(12, 17)] * 2 + [(24, 33)] * 2 + [(42, 58)] * 2
    total = 0
    for scale in scales:
        size = [int(side * scale + 0.5) for side in (24, 33)]
        scaled = resized(x[None], size) if scale != 1 else x[None]
        for mirror in (False, True):
            scores = resized(model(scaled.flip(-1) if mirror else scaled), size)
            scores = scores.flip(-1) if mirror else scores
            total = total + resized(scores, original).softmax(1)
    assert torch.equal(found.labels, total[0].argmax(0).byte())


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 16), (20, 7), (24, 24), (64, 32), (30, None)])
@torch.no_grad()
def test_windows(window, stride):
    """mmseg's grid, in its own terms; the mean of the scores where windows overlap."""
    model, x, original = Local(), image(24, 43), (37, 70)  # of a file of another size, where sums and means differ
    (found,) = Inference(model, window=window, stride=stride)(batch(x, originals=[original]))
    step = stride or 2 * window // 3
    total, count = torch.zeros(1, 4, 24, 43), torch.zeros(1, 1, 24, 43)
    rows, columns = (max(side - window + step - 1, 0) // step + 1 for side in (24, 43))
    for row in range(rows):
        for column in range(columns):
            y2, x2 = min(row * step + window, 24), min(column * step + window, 43)
            y1, x1 = max(y2 - window, 0), max(x2 - window, 0)
            cut = x[None, :, y1:y2, x1:x2]
            total[:, :, y1:y2, x1:x2] += resized(model(cut), cut.shape[-2:])
            count[:, :, y1:y2, x1:x2] += 1
    assert (count > 0).all()
    assert torch.equal(found.labels, resized(total / count, original)[0].argmax(0).byte())


@torch.no_grad()
def test_one_window_is_the_whole_image():
    model, x = Local(), image(24, 33)
    whole, windowed = (Inference(model, window=window)(batch(x))[0] for window in (None, 40))
    assert torch.equal(whole.labels, windowed.labels) and model.sizes == [(24, 33)] * 2


@torch.no_grad()
def test_what_is_not_finite_is_named():
    for window in (None, 16):
        model = Local()
        model.weight[2] = float("nan")
        assert [one.finite for one in Inference(model, window=window)(batch(image(24, 33)))] == [False]


@torch.no_grad()
def test_full_size_scores_are_never_whole(monkeypatch):
    """60 classes at 200 x 300 are 3.6 M values; strips are a fiftieth of that."""
    monkeypatch.setattr(module, "STRIP", 72_000)
    largest, interpolate = [], F.interpolate

    def watched(x, **options):
        found = interpolate(x, **options)
        largest.append(found.numel())
        return found

    monkeypatch.setattr(module.F, "interpolate", watched)
    found = Inference(Local(60), (0.5, 1.0), flip=True)(batch(image(50, 75), originals=[(200, 300)]))
    assert found[0].labels.shape == (200, 300) and max(largest) <= 72_000


def test_upernet_labels_images():
    torch.manual_seed(0)
    model = upernet("vmamba_nano", 3, channels=8, aux_channels=4).eval()
    with torch.no_grad():
        found = Inference(model, (0.75, 1.0), flip=True)(batch(image(33, 50), originals=[(60, 91)]))
    assert found[0].labels.shape == (60, 91) and found[0].labels.max() < 3 and found[0].finite


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "expected factors above 0"),
        ({"scales": (0.5, 0)}, "expected factors above 0"),
        ({"stride": 8}, "a stride of 8 has a meaning with a window only"),
        ({"window": 8, "stride": 9}, "stride is 9 with a window of 8"),
        ({"window": 0}, "window is 0; it must be at least 1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Inference(Local(), **arguments)

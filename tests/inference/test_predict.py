from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from vssm.data.image import UnreadableImage
from vssm.data.preprocess import Preprocess
from vssm.inference.predict import predict

PREPROCESS = Preprocess((1, 4, 4), (0.0,), (1.0,), "nearest", 1.0)


class Brightness(nn.Module):
    """Two classes with logits (0, 4 x the mean brightness)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        bright = images.mean((1, 2, 3)) * self.scale
        return torch.stack([torch.zeros_like(bright), bright], 1)


@pytest.fixture
def paths(tmp_path):
    made = []
    for number, value in enumerate((0, 255, 0, 255, 255)):
        made.append(tmp_path / f"{number}.png")
        Image.new("L", (4, 4), value).save(made[-1])
    made[2].write_bytes(b"damaged")
    return [*made, tmp_path / "missing.png"]


def test_order_batches_and_errors(paths):
    model = Brightness()
    found = list(predict(model, PREPROCESS, ("dark", "bright"), paths, top_k=1, batch_size=2))
    assert [p.path for p in found] == paths
    assert [p.classes[0][0] if p.classes else None for p in found] == [
        "dark", "bright", None, "bright", "bright", None,
    ]  # fmt: skip
    assert found[1].classes[0][1] == pytest.approx(torch.tensor(4.0).sigmoid().item())
    assert "not an image" in found[2].error
    assert found[5].error == "No such file or directory"
    assert model.batches == [2, 1, 1]


def test_top_k_sums_to_one_and_stops_at_the_classes(paths):
    (found,) = predict(Brightness(), PREPROCESS, ("dark", "bright"), paths[:1], top_k=5)
    assert [name for name, _ in found.classes] == ["dark", "bright"]
    assert sum(p for _, p in found.classes) == pytest.approx(1)


def test_no_more_is_read_than_two_batches():
    taken = []

    def stream():
        for number in range(1000):
            taken.append(number)
            yield Path(f"missing-{number}")

    found = predict(Brightness(), PREPROCESS, ("dark", "bright"), stream(), batch_size=4)
    next(found)
    assert len(taken) <= 12, "one batch shown, the next two read ahead"
    found.close()


def test_what_was_not_found_keeps_its_place(paths):
    lost = UnreadableImage("folder", "Permission denied")
    found = list(predict(Brightness(), PREPROCESS, ("dark", "bright"), [paths[0], lost, paths[1]]))
    assert [p.path for p in found] == [paths[0], Path("folder"), paths[1]]
    assert [p.error for p in found] == [None, "Permission denied", None]


def test_nan_is_an_error_of_that_image(paths):
    class Broken(Brightness):
        def forward(self, images):
            return super().forward(images) / images.amax((1, 2, 3))[:, None]  # 0 / 0 for the dark ones

    found = list(predict(Broken(), PREPROCESS, ("dark", "bright"), paths[:2]))
    assert [p.error for p in found] == ["the model gives NaN or infinity", None]


def test_the_same_as_the_transform_one_by_one(paths):
    """Normalised as a batch, read by threads: the probabilities of one image at a time."""
    model = Brightness()
    found = list(predict(model, PREPROCESS, ("dark", "bright"), paths[3:5] * 3, batch_size=4, threads=3))
    alone = [model(PREPROCESS(path)[None]).softmax(-1).max().item() for path in paths[3:5] * 3]
    assert [p.classes[0][1] for p in found] == alone

"""Networks to look into: by name, by file, by run."""

from pathlib import Path

import numpy as np
import pytest
import torch

import vssm
from vssm.data.image import UnreadableImage
from vssm.data.photographs import photographs
from vssm.inference.subject import Source, parse_source, read_subject, untrained

RUN = Path(__file__).parents[1] / "data" / "run_of_0.1" / "run"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("vmamba_tiny", Source("vmamba_tiny", None)),
        ("vmamba_tiny=a.pth", Source("vmamba_tiny", "a.pth")),
        ("runs/one", Source(None, "runs/one")),
        ("a.safetensors", Source(None, "a.safetensors")),
        (str(RUN), Source(None, str(RUN))),
        ("hf-hub:timm/resnet18.a1_in1k", Source("hf-hub:timm/resnet18.a1_in1k", None)),
    ],
)
def test_sources(text, source):
    assert parse_source(text) == source


def test_a_name_has_random_weights():
    first, same = (read_subject(Source("vmamba_nano", None), seed=3) for _ in range(2))
    other = read_subject(Source("vmamba_nano", None), seed=4)
    assert first.weights == "random weights (seed 3)" and not first.trained and not first.model.training
    weight = "stages.0.blocks.0.mixer.in_proj.weight"
    assert torch.equal(first.model.state_dict()[weight], same.model.state_dict()[weight])
    assert not torch.equal(first.model.state_dict()[weight], other.model.state_dict()[weight])
    assert first.preprocess.input_size == (3, 32, 32) and first.preprocess.crop_pct == 1.0


@pytest.mark.parametrize("name", ["vmamba_nano", "vim_nano", "vit_tiny_patch16_224", "test_convnext"])
def test_at_another_size(name):
    subject = read_subject(Source(name, None), 96)
    assert subject.preprocess.input_size == (3, 96, 96) and subject.preprocess.crop_pct == 1.0
    with torch.no_grad():
        assert subject.model(torch.zeros(1, 3, 96, 96)).shape[0] == 1


def test_a_run_before_and_after():
    source = Source(None, str(RUN))
    after, before = read_subject(source), untrained(source)
    assert (after.trained, before.trained) == (True, False)
    assert after.architecture == before.architecture == vssm.load(RUN).name
    assert after.label == after.weights == "run"
    state, fresh = after.model.state_dict(), before.model.state_dict()
    assert state.keys() == fresh.keys()
    assert any(not torch.equal(state[name], fresh[name]) for name in state)
    torch.testing.assert_close(state, dict(vssm.load(RUN).model.state_dict()))


def test_a_file_of_weights(tmp_path):
    model = vssm.create_model("vmamba_nano")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    subject = read_subject(Source("vmamba_nano", str(tmp_path / "w.pth")))
    assert (subject.label, subject.weights, subject.trained) == ("vmamba_nano", "w.pth", True)
    torch.testing.assert_close(dict(subject.model.state_dict()), dict(model.state_dict()))
    with pytest.raises(ValueError, match=r"w\.pth was not written by `vssm fit`"):
        read_subject(Source(None, str(tmp_path / "w.pth")))
    with pytest.raises(ValueError, match=r"unknown model 'vmamba_nan'.*vmamba_nano"):
        read_subject(Source("vmamba_nan", None))


def test_images(tmp_path):
    subject = read_subject(Source("vmamba_nano", None), 48)
    (pixels, image), (_, second) = subject.images(photographs(2))
    assert pixels.shape == (48, 48, 3) and pixels.dtype == torch.uint8
    assert image.shape == (3, 48, 48) and not torch.equal(image, second)
    mean, std = (torch.tensor(x)[:, None, None] for x in (subject.preprocess.mean, subject.preprocess.std))
    torch.testing.assert_close(image * std + mean, pixels.permute(2, 0, 1) / 255)
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(UnreadableImage, match=r"bad\.png: not an image"):
        list(subject.images([tmp_path / "bad.png"]))


def test_photographs_are_there():
    """Eight of scikit-image's and two of scikit-learn's, all colourful."""
    files = photographs()
    assert len(files) == 10 and photographs(3) == files[:3]
    from PIL import Image

    for file in files:
        with Image.open(file) as image:
            assert image.mode == "RGB" and np.asarray(image).std() > 10


def test_without_photographs(monkeypatch):
    monkeypatch.setattr("vssm.data.photographs.find_spec", lambda package: None)
    with pytest.raises(ValueError, match="scikit-image, whose photographs are shown then, is not installed"):
        photographs()

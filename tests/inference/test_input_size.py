"""A classifier at another image size: windows and position embeddings; its labels for a folder of images."""

import shutil
from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed

import vssm
from vssm.data.preprocess import published_preprocess
from vssm.inference.input_size import at_input_size, labelled
from vssm.inference.predictor import Predictor
from vssm.settings import DataSettings
from vssm.tasks.classification import class_names, create_classifier

DATA = Path(__file__).parents[1] / "data" / "run_of_0.1"


def predictor_of(name, **options):
    model = create_classifier(name, **options).eval()
    return Predictor(name, model, published_preprocess(model), class_names(model))


def test_windows_of_swin_grow_with_the_image():
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_classes": 3}
    first = predictor_of("swin_tiny_patch4_window7_224", **small)
    larger = at_input_size(first, 384)
    windows = [layer.blocks[0].window_size for layer in larger.model.layers]
    assert windows == [(12, 12)] * 4  # size/32, as the paper has it
    tables = [layer.blocks[0].attn.relative_position_bias_table for layer in larger.model.layers]
    assert all(table.shape == (23 * 23, 1) for table in tables)
    assert first.model.layers[0].blocks[0].window_size == (7, 7)  # the first network stays
    weights, changed = first.model.state_dict(), larger.model.state_dict()
    same = [name for name in weights if "relative" not in name and "attn_mask" not in name]
    assert len(same) > 40 and all(torch.equal(weights[name], changed[name]) for name in same)
    again = predictor_of("swin_tiny_patch4_window7_224", img_size=384, window_size=12, **small).model
    again.load_state_dict(changed)
    image = torch.randn(1, 3, 384, 384)
    with torch.inference_mode():
        torch.testing.assert_close(larger.model(image), again(image))


def test_position_embeddings_of_vit_are_resized():
    first = predictor_of("deit_tiny_patch16_224", depth=1, num_classes=3)
    larger = at_input_size(first, 288)
    expected = resample_abs_pos_embed(first.model.pos_embed, [18, 18], num_prefix_tokens=1)
    torch.testing.assert_close(larger.model.pos_embed, expected)
    assert larger.preprocess.input_size == (3, 288, 288)


def test_networks_of_any_size_stay_as_they_are():
    for name in ("vmamba_nano", "spatial_mamba_nano", "vim_nano"):
        first = predictor_of(name)
        larger = at_input_size(first, 48)
        assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), larger.model.parameters(), strict=True))


def test_a_network_of_one_size_is_refused():
    fixed = predictor_of("mixer_s32_224", num_classes=3)
    with pytest.raises(ValueError, match="mixer_s32_224 cannot take images of 3x64x64"):
        at_input_size(fixed, 64)
    with pytest.raises(ValueError, match="the image size must be at least 1, got 0"):
        at_input_size(fixed, 0)


def test_labels_are_those_of_the_network(tmp_path):
    predictor = vssm.load(DATA / "run")
    shutil.copytree(DATA / "images", tmp_path / "images")
    for split in ("train", "val", "test"):
        shutil.rmtree(tmp_path / "images" / split / "blue", ignore_errors=True)
    data = DataSettings("imagefolder", str(tmp_path / "images"))
    splits = labelled(predictor, data)
    assert predictor.classes == splits.classes == ("blue", "green", "red")
    names = {label: path.parent.name for path, label in splits.val.samples}
    assert names == {1: "green", 2: "red"}
    (tmp_path / "images" / "train" / "red").rename(tmp_path / "images" / "train" / "rad")
    (tmp_path / "images" / "val" / "red").rename(tmp_path / "images" / "val" / "rad")
    with pytest.raises(ValueError, match="classes that vmamba_nano does not know: rad; it knows blue, green, red"):
        labelled(predictor, data)


def test_folders_of_imagenet_are_named_by_wordnet(tmp_path):
    predictor = predictor_of("vmamba_nano")
    image = next((DATA / "images").rglob("*.png"))
    for split in ("train", "val"):
        for name in ("n01443537", "n15075141"):  # goldfish, toilet tissue
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(image, tmp_path / split / name)
    splits = labelled(predictor, DataSettings("imagefolder", str(tmp_path)))
    assert [label for _, label in splits.val.samples] == [1, 999] and len(splits.classes) == 1000


def test_grey_digits_are_not_for_a_network_of_colours():
    with pytest.raises(ValueError, match="vmamba_nano takes images of 3 channels, these have 1"):
        labelled(predictor_of("vmamba_nano", num_classes=10), DataSettings("digits"))

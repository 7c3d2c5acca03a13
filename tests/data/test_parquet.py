"""Parquet files with images: columns by type and by name, classes, and rows without an image."""

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from vssm.data.image import StoredImage, UnreadableImage, open_image
from vssm.data.parquet import ParquetImages
from vssm.data.sources import find_files
from vssm.settings import DataSettings, Settings
from vssm_cli.command import main

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(count):
    return np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def written(path, labels, features, image="image", label="label"):
    rows = {image: [{"bytes": png(values), "path": None} for values in pixels(len(labels))], label: labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def typed(*names):
    return datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})


def test_columns_by_type_keep_the_recorded_classes(tmp_path):
    path = written(tmp_path / "a.parquet", [1, 0, 2, 1], typed("eel", "dog", "cat"), "picture", "kind")
    found = ParquetImages(str(path), pil_to_tensor)
    assert found.classes == ("eel", "dog", "cat") and found.labels.tolist() == [1, 0, 2, 1]
    for position, values in enumerate(pixels(4)):
        image, label = found[position]
        assert (image.permute(1, 2, 0).numpy() == values).all() and label == [1, 0, 2, 1][position]
    other = ParquetImages(str(path), pil_to_tensor, classes=("cat", "dog", "eel", "ant"))
    assert other.labels.tolist() == [1, 2, 0, 1]
    with pytest.raises(ValueError, match="which the training classes do not include"):
        ParquetImages(str(path), pil_to_tensor, classes=("cat", "dog"))
    part = found.with_samples([2, 0], pil_to_tensor)
    assert part.labels.tolist() == [1, 2] and (part[1][0] == found[2][0]).all()
    assert part.fingerprint() != found.fingerprint()


def test_columns_by_name(tmp_path):
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": plain, "label": datasets.Value("string")})
    path = written(tmp_path / "a.parquet", ["dog", "ant", "dog"], features)
    found = ParquetImages(str(path), pil_to_tensor)
    assert found.classes == ("ant", "dog") and found.labels.tolist() == [1, 0, 1]
    assert (found[2][0].permute(1, 2, 0).numpy() == pixels(3)[2]).all()


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a \.parquet file or a folder of them"):
        ParquetImages(str(tmp_path / "none.parquet"), pil_to_tensor)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: cannot be read as parquet"):
        ParquetImages(str(tmp_path / "text.parquet"), pil_to_tensor)
    rows = datasets.Dataset.from_dict({"image": [None, {"bytes": b"x", "path": None}], "label": [0, 1]})
    rows.to_parquet(str(tmp_path / "b.parquet"))
    found = ParquetImages(str(tmp_path / "b.parquet"), pil_to_tensor)
    with pytest.raises(UnreadableImage, match=r"b\.parquet#0: the row holds no bytes"):
        found[0]
    with pytest.raises(UnreadableImage, match=r"b\.parquet#1: not an image"):
        found[1]
    datasets.Dataset.from_dict({"image": [1], "text": ["a"]}).to_parquet(str(tmp_path / "c.parquet"))
    with pytest.raises(ValueError, match=r"has the columns image, text, none of classes; expected one called label or"):
        ParquetImages(str(tmp_path / "c.parquet"), pil_to_tensor)


def test_training(tmp_path, capsys):
    for number in range(2):
        written(tmp_path / "train" / f"{number}.parquet", [0, 1] * 10, typed("cat", "dog"), "picture", "kind")
    settings = Settings(data=DataSettings(train=str(tmp_path / "train")))
    settings.name_data()
    assert settings.data.name == "parquet"
    argv = ["--model=vmamba_nano", "--model.args={dims: [8, 16], depths: [1, 1]}", "--image-size=32", "--epochs=1"]
    argv += [f"--data.train={tmp_path / 'train'}", f"--out={tmp_path / 'run'}", "--batch-size=8", "--workers=1"]
    assert main(["fit", *argv, "--accelerator=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "20% of each class validate" in shown and "16 training images each" in shown


def test_whoever_takes_files_takes_the_rows(tmp_path):
    """Also of a file without classes, and of a folder of files; where there are image files, those."""
    rows = {"image": [{"bytes": png(values), "path": None} for values in pixels(3)]}
    path = tmp_path / "rows" / "a.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    for source in (path, path.parent, tmp_path / "rows" / "*.parquet"):
        found = list(find_files([str(source)]))
        assert len(found) == 3
        for number, (image, values) in enumerate(zip(found, pixels(3), strict=True)):
            assert isinstance(image, StoredImage)
            assert image.path.name.endswith(f"#{number}")
            assert (np.asarray(open_image(image)) == values).all()
    Image.fromarray(pixels(1)[0]).save(path.parent / "b.png")
    assert list(find_files([str(path.parent)])) == [path.parent / "b.png"]


def test_a_root_of_parquet_files_is_known(tmp_path):
    """As the shards of `data.root` are: alone, in a folder, in one of a split."""
    path = written(tmp_path / "data" / "train" / "a.parquet", [0, 1], typed("eel", "dog"), "picture", "kind")
    for root in (path, path.parent, tmp_path / "data"):
        assert DataSettings(root=str(root)).kind_of_images() == "parquet"
    (tmp_path / "data" / "cat").mkdir()
    path.rename(tmp_path / "data" / "results.parquet")
    assert DataSettings(root=str(tmp_path / "data")).kind_of_images() == "imagefolder"

"""Shards: what is packed comes back to the byte, damage is found, and a stranger's index leads nowhere else."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import vssm
from vssm.data.image import StoredImage, UnreadableImage, open_image
from vssm.data.imagefolder import ImageFolder
from vssm.data.packed import load_packed
from vssm.data.preprocess import Preprocess
from vssm.data.shards import pack as packing
from vssm.data.shards.dataset import ShardImages
from vssm.data.shards.index import parse_index
from vssm.data.shards.pack import pack
from vssm.data.shards.verify import packed_folders, verify
from vssm.data.sources import find_files
from vssm.inference.predictor import Predictor
from vssm.settings import DataSettings, Settings

PREPROCESS = Preprocess((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes with 12 training and 4 validation images each, JPEG and PNG."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in ("cat", "dög"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                suffix = "JPEG" if number % 3 else "png"
                Image.fromarray(pixels).save(root / split / name / f"a b.{number}.{suffix}")
    return root


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(images, out, shard_bytes=16_000, threads=2)
    return out


def copied(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy" / "train"


def test_what_is_packed_is_what_the_folder_holds(images, packed):
    folder = ImageFolder(images / "train", pil_to_tensor)
    found = ShardImages(str(packed / "train"), pil_to_tensor)
    assert found.classes == ("cat", "dög") and len(found) == 24 and len(found.index.shards) > 2
    assert np.bincount(found.labels).tolist() == [12, 12]
    expected = sorted((label, image.numpy().tobytes()) for image, label in (folder[i] for i in range(24)))
    assert sorted((label, image.numpy().tobytes()) for image, label in (found[i] for i in range(24))) == expected
    assert len(set(found.labels[: found.group_sizes[0]])) == 2, "a shard has images of both classes"
    assert found.group_sizes.sum() == 24 and (found.group_sizes > 0).all()


def test_the_tar_files_are_of_the_webdataset_layout(images, packed):
    """Read with tarfile alone: pairs of the same key up to the first dot, original bytes, the class as text."""
    originals = {path.read_bytes(): path for path in (images / "train").rglob("*.*") if path.is_file()}
    classes = json.loads((packed / "train" / "shards.json").read_bytes())["classes"]
    seen = 0
    for path in sorted((packed / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, _, suffix = image.name.partition(".")
                source = originals[tar.extractfile(image).read()]
                assert label.name == f"{key}.cls"
                assert classes[int(tar.extractfile(label).read())] == source.parent.name
                assert suffix == ("png" if source.suffix == ".png" else "jpg")
                assert key == f"{seen:08d}-{source.stem.replace(' ', '_').replace('.', '_')}"
                seen += 1
    assert seen == 24


def test_the_same_folder_gives_the_same_bytes(images, packed, tmp_path):
    pack(images, tmp_path / "again", shard_bytes=16_000, threads=1)
    names = sorted(path.relative_to(packed) for path in packed.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert all((packed / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_verify_finds_each_kind_of_damage(packed, tmp_path):
    assert [path.name for path in packed_folders(packed)] == ["train", "val"]
    assert verify(packed / "train").problems == ()
    folder = copied(packed, tmp_path)
    paths = sorted(folder.glob("*.tar"))
    content = bytearray(paths[0].read_bytes())
    content[700] ^= 1
    paths[0].write_bytes(content)
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].unlink()
    problems = verify(folder).problems
    assert [problem.partition(": ")[2] for problem in problems] == [
        "its checksum is not that of the index",
        f"{paths[1].stat().st_size} bytes, {paths[1].stat().st_size + 1} in the index",
        "No such file or directory",
    ]
    assert all(str(path) in problem for path, problem in zip(paths, problems, strict=False))


def test_verify_finds_an_index_that_points_at_other_members(packed, tmp_path):
    folder = copied(packed, tmp_path)
    plain = json.loads((folder / "shards.json").read_bytes())
    plain["shards"][0]["keys"][:2] = plain["shards"][0]["keys"][1::-1]
    (folder / "shards.json").write_text(json.dumps(plain))
    (problem,) = verify(folder).problems
    assert "the member at 512 is not 00000001-" in problem


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_half_is_left(images, tmp_path, monkeypatch):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "train" / "cat" / "a b.1.JPEG").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cat/a b\.1\.JPEG: not an image.*; repair or remove it \(`vssm check"):
        pack(root, tmp_path / "out")
    (root / "train" / "cat" / "a b.1.JPEG").unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(packing._Hashing, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*out'"):
            pack(root, tmp_path / "out")
    assert left(tmp_path) == ["images"]
    (tmp_path / ".out.packing" / "train").mkdir(parents=True)  # of a process that was killed
    (tmp_path / ".out.packing" / "train" / "000000.tar").write_bytes(b"half")
    pack(root, tmp_path / "out")
    assert left(tmp_path) == ["images", "out"]
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        pack(root, tmp_path / "out")
    with pytest.raises(ValueError, match=r"lies in .*images, whose images are packed"):
        pack(root, root / "out")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        pack(tmp_path / "nowhere", tmp_path / "other")


def test_a_killed_process_leaves_no_folder_of_that_name(images, tmp_path):
    code = f"""
import os, signal
from vssm.data.shards.pack import pack
done = []
def stop():
    done.append(1)
    if len(done) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
pack({str(images)!r}, {str(tmp_path / "out")!r}, 16_000, 1, stop)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == -9 and not (tmp_path / "out").exists()
    pack(images, tmp_path / "out", 16_000)
    assert left(tmp_path) == ["out"] and verify(tmp_path / "out" / "train").problems == ()


def plain_index():
    shard = {
        "name": "0.tar",
        "bytes": 4096,
        "sha256": "0" * 64,
        "keys": ["a", "b"],
        "offsets": [512, 2048],
        "lengths": [700, 2048],
        "labels": [0, 1],
    }
    return {"format": "vssm-shards-1", "classes": ["cat", "dog"], "shards": [shard]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "format is 'x'"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["cat", "cat"]}, "a class is listed twice"),
        ({"classes": ["cat", "d\x1b[2J"]}, "not printable text"),
        ({"shards": []}, "no shards"),
        ({"name": "../0.tar"}, "is no name of a .tar file beside the index"),
        ({"name": "/etc/passwd"}, "is no name"),
        ({"bytes": True}, "bytes is True"),
        ({"sha256": "0"}, "sha256 is not 64"),
        ({"keys": ["a", "a"]}, "a key is listed twice"),
        ({"keys": ["a", "b\n"]}, "keys that are not letters"),
        ({"keys": ["a"]}, "offsets must be 1 whole numbers"),
        ({"offsets": [512, 2049]}, "do not lie in its 4096 bytes"),
        ({"offsets": [0, 2048]}, "do not lie in its 4096 bytes"),
        ({"offsets": [512, 2.0]}, "offsets must be 2 whole numbers"),
        ({"offsets": [512, 10**30]}, "offsets must be 2 whole numbers"),
        ({"lengths": [700, 2049]}, "do not lie in its 4096 bytes"),
        ({"lengths": [-1, 2048]}, "lengths must be 2 whole numbers"),
        ({"labels": [0, 2]}, "labels must be 2 whole numbers from 0 to 1"),
    ],
)
def test_an_index_of_strangers_is_checked(change, message):
    plain = plain_index()
    assert len(parse_index(json.dumps(plain).encode(), "x")) == 2
    for name, value in change.items():
        (plain if name in plain else plain["shards"][0])[name] = value
    with pytest.raises(ValueError, match=message):
        parse_index(json.dumps(plain).encode(), "x")


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_index_is_refused(content):
    with pytest.raises(ValueError, match="expected the index that `vssm pack` writes"):
        parse_index(content, "x")


def test_a_sample_that_cannot_be_read_is_named(packed, tmp_path):
    folder = copied(packed, tmp_path)
    found = ShardImages(str(folder), pil_to_tensor)
    path = folder / found.index.shards[0].name
    content = bytearray(path.read_bytes())
    offset, length = int(found.index.offsets[0]), int(found.index.lengths[0])
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"000000\.tar/{found.keys[0]}: not an image"):
        found[0]
    path.write_bytes(content[: int(found.index.offsets[1]) + 3])
    with pytest.raises(UnreadableImage, match=rf"{found.keys[1]}: 3 bytes came instead of"):
        found[1]
    path.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        found[1]


def load(split="val", classes=None, **data):
    settings = Settings(data=DataSettings(**data))
    settings.name_data()
    return load_packed(settings.data, PREPROCESS, None, classes, split)


def test_splits_and_classes(packed, images, tmp_path):
    for given in ({"root": str(packed)}, {"train": str(packed / "train"), "val": str(packed / "val")}):
        splits = load(**given)
        assert (len(splits.train), len(splits.val), splits.classes) == (24, 8, ("cat", "dög"))
        assert splits.class_counts() == {"train": [12, 12], "val": [4, 4]}
    other = load(val=str(packed / "val"), classes=("zebra", "do\u0308g", "cat"))
    assert other.train is None and np.bincount(other.val.labels).tolist() == [0, 4, 4]
    with pytest.raises(ValueError, match="has dög, which the training classes do not include"):
        load(val=str(packed / "val"), classes=("cat", "eel"))
    with pytest.raises(ValueError, match="no test images given"):
        load("test", root=str(packed))
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; expected one with shards\.json"):
        load(train=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"has no shards\.json; expected a folder of shards"):
        load(train=str(images))


def test_a_share_validates_where_there_is_no_val(packed):
    splits = load(train=str(packed / "train"), val_share=0.25)
    train, val = set(splits.train.keys), set(splits.val.keys)
    assert len(val) == 6 and not train & val and len(train | val) == 24
    assert splits.class_counts() == {"train": [9, 9], "val": [3, 3]}
    assert splits.train.group_sizes.sum() == 18
    assert "25% of each class validate" in splits.notes[0]
    again = load(train=str(packed / "train"), val_share=0.25, classes=splits.classes)
    assert again.train is None and set(again.val.keys) == val
    assert again.val.fingerprint() == splits.val.fingerprint() != splits.train.fingerprint()


def test_a_folder_and_its_shards_are_told_apart(packed, images):
    url = "http://localhost/packed"
    for root, kind in ((packed, "shards"), (packed / "train", "shards"), (url, "shards"), (images, "imagefolder")):
        settings = Settings(data=DataSettings(root=str(root)))
        settings.name_data()
        assert settings.data.name == kind
    with pytest.raises(ValueError, match=r"data\.train is .* with data.name imagefolder; it is for shards"):
        Settings(data=DataSettings("imagefolder", train=str(Path("x")))).check()


def test_whoever_takes_files_takes_those_in_shards(images, packed):
    """With the pixels of the files that were packed, named by shard and key, of all splits."""
    found = list(find_files([str(packed)]))
    assert len(found) == 24 + 8
    assert all(isinstance(image, StoredImage) for image in found)
    assert [image.path.parent.parent.name for image in found] == ["train"] * 24 + ["val"] * 8  # type: ignore[union-attr]
    files = sorted(path.read_bytes() for path in images.rglob("a b.*"))
    assert sorted(image.content() for image in found) == files  # type: ignore[union-attr]
    (first, *_) = find_files([str(packed / "val")])
    assert isinstance(first, StoredImage)
    assert open_image(first, channels=1).size == (24, 20)


def test_predictions_for_shards_are_those_for_their_files(images, packed, tmp_path):
    model = vssm.create_model("vmamba_nano", num_classes=2, dims=(8, 16), depths=(1, 1)).eval()
    predictor = Predictor("vmamba_nano", model, PREPROCESS, ("cat", "dög"))
    expected = {path.read_bytes(): found for path, found in _predicted(predictor, images / "val")}
    stored = list(predictor.predict(packed / "val"))
    assert len(stored) == 8
    for found in stored:
        assert found.stored is not None
        assert found.classes == expected[found.stored.content()].classes
        assert found.path == found.stored.path


def _predicted(predictor, folder):
    return [(found.path, found) for found in predictor.predict(folder)]


def test_a_damaged_index_is_one_unreadable_image(packed, tmp_path):
    shards = copied(packed, tmp_path)
    (shards / "shards.json").write_text("{")
    (found,) = find_files([str(shards)])
    assert isinstance(found, UnreadableImage)
    assert "shards.json" in found.reason

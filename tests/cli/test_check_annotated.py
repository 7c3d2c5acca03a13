"""vssm check of COCO json and semantic masks: what is wrong is named, and the exit code says so."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vssm.data.shapes import write_shapes
from vssm_cli.command import main


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "shapes"
    write_shapes(root, train=8, val=4, size=(64, 64))
    return root


@pytest.fixture
def root(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "data")
    return tmp_path / "data"


def check(root, capsys, *more):
    code = main(["check", str(root), "--threads", "1", *more])
    return code, capsys.readouterr().out


def problems(shown, number=0):
    return {(one["kind"], one["split"]): one for one in json.loads(shown)["layouts"][number]["problems"]}


def change(root, split, function):
    path = root / "annotations" / f"instances_{split}.json"
    data = json.loads(path.read_text())
    function(data)
    path.write_text(json.dumps(data))
    return data


def test_nothing_to_repair(root, capsys):
    code, shown = check(root, capsys)
    assert code == 0
    assert "detection (coco), objects:" in shown and "segmentation (masks), share of pixels:" in shown
    assert shown.count("nothing to repair: every image and its annotations can be read") == 2
    code, shown = check(root, capsys, "--json")
    assert code == 0
    coco, masks = json.loads(shown)["layouts"]
    data = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert coco["images"] == masks["images"] == {"train": 8, "val": 4}
    assert sum(coco["objects"]["train"].values()) == len(data["annotations"])
    assert sum(masks["pixels"]["train"].values()) == 8 * 64 * 64
    assert masks["pixels"]["val"]["disc"] == sum(
        int((np.asarray(Image.open(path)) == 1).sum()) for path in (root / "masks" / "val").iterdir()
    )
    assert coco["kinds"] == {"PNG RGB": 12}


def test_boxes_and_ids(root, capsys):
    def broken(data):
        entries = data["annotations"]
        entries[0]["bbox"] = [70, 3, 5, 5]
        entries[1]["bbox"] = [50, 3, 50, 5]
        entries[2]["id"] = entries[3]["id"]
        entries[4]["image_id"] = 999
        for entry in entries:
            if entry["category_id"] == 2:
                entry["category_id"] = 1

    change(root, "train", broken)
    shutil.rmtree(root / "masks")
    code, shown = check(root, capsys)
    assert code == 1
    assert "train: boxes outside of their image: 1 (first: annotation 0 (id 1), bbox [70.0, 3.0, 5.0, 5.0], " in shown
    assert "train: classes without objects: 1 of 5 (square)" in shown
    assert "nothing to repair" not in shown
    code, shown = check(root, capsys, "--json")
    found = problems(shown)
    assert code == 1
    assert {kind: one["repair"] for (kind, split), one in found.items() if split == "train"} == {
        "box_outside": True,
        "box_over": True,
        "doubled_ids": True,
        "unlisted_image": True,
        "no_objects": False,
    }
    assert found["doubled_ids", "train"]["entries"] == ["annotation 3 (id 4)"]


def test_files(root, capsys):
    train, val = root / "images" / "train", root / "images" / "val"
    (train / "000000.png").write_bytes(b"damaged")
    Image.new("RGB", (60, 64)).save(train / "000001.png")
    shutil.copy(train / "000002.png", val / "000000.png")
    shutil.copy(train / "000003.png", train / "000004.png")
    code, shown = check(root, capsys, "--json")
    assert code == 1
    for number in (0, 1):
        found = problems(shown, number)
        assert found["unreadable", "train"]["entries"] == [
            f"{train / '000000.png'}: not an image, or of a kind that Pillow cannot read"
        ]
        (size,) = found["size", "train"]["entries"]
        assert size.startswith(f"{train / '000001.png'}: 60 x 64, but 64 x 64 in ")
        assert found["in_several_splits", None]["entries"] == [f"{train / '000002.png'} = {val / '000000.png'}"]
        assert found["copies", None]["repair"] is False
    (train / "000005.png").unlink()
    assert main(["check", str(root)]) == 1
    assert "1 of 8 images of " in capsys.readouterr().err


def test_segmentations_and_classes(root, capsys):
    def broken(data):
        data["annotations"][0]["segmentation"] = {"size": [64, 64], "counts": "04"}
        data["categories"][0]["name"] = "circle"

    data = change(root, "val", broken)
    code, shown = check(root, capsys, "--json")
    assert code == 1
    found = problems(shown)
    (entry,) = found["segmentation", "val"]["entries"]
    assert "annotation 0 (id 1) has an RLE of 4 pixels for a size of 64 x 64 = 4096" in entry
    has_circles = any(one["category_id"] == 1 for one in data["annotations"])
    assert found["unknown_class", "val"]["entries"] == ["circle"] and has_circles
    assert not any(one["repair"] for one in problems(shown, 1).values())


def test_values_of_masks(root, capsys):
    mask = root / "masks" / "train" / "000000.png"
    values = np.asarray(Image.open(mask)).copy()
    values[0, :3] = 77
    Image.fromarray(values).save(mask)
    Image.new("L", (64, 60)).save(root / "masks" / "train" / "000001.png")
    shutil.rmtree(root / "annotations")
    code, shown = check(root, capsys, "--json")
    assert code == 1
    found = problems(shown)
    (entry,) = found["unreadable", "train"]["entries"]
    assert entry.startswith(str(mask)) and entry.endswith("77 (3 pixels)")
    assert found["size", "train"]["entries"] == [
        f"{root / 'images' / 'train' / '000001.png'}: 64 x 64, but 64 x 60 in its mask (width x height)"
    ]


def test_a_photo_that_is_annotated_as_stored(root, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images" / "train" / "000000.png"
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    change(root, "train", lambda data: data["images"][0].update(height=48))
    shutil.rmtree(root / "masks")
    code, shown = check(root, capsys, "--json")
    found = problems(shown)
    assert found["stored", "train"]["entries"] == [str(path)] and not found["stored", "train"]["repair"]
    change(root, "train", lambda data: data["images"][0].update(height=64, width=48))
    code, shown = check(root, capsys, "--json")
    assert ("stored", "train") not in problems(shown) and ("size", "train") not in problems(shown)


def test_a_json_that_cannot_be_read(root, capsys):
    (root / "annotations" / "instances_val.json").write_text('{"images": [')
    assert main(["check", str(root)]) == 1
    assert (
        "instances_val.json, line 1, column 13, in element 0 of 'images': the file ends here" in capsys.readouterr().err
    )

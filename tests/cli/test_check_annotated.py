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
    # The others are looked at all the same; masks without their image make the split unusable.
    code, shown = check(root, capsys, "--json")
    assert code == 1
    found, masks = problems(shown), problems(shown, 1)
    assert found["missing_files", "train"]["entries"] == [str(train / "000005.png")]
    assert found["unreadable", "train"]["count"] == found["size", "train"]["count"] == 1
    assert "1 of 8 masks have no image of the same name" in masks["unusable", "train"]["text"]
    assert [layout["images"] for layout in json.loads(shown)["layouts"]] == [{"train": 7, "val": 4}, {"val": 4}]


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
    code, shown = check(root, capsys)
    assert code == 1
    assert "instances_val.json, line 1, column 13, in element 0 of 'images': the file ends here" in shown
    assert "objects: " not in shown and "│ train │" not in shown and "┃ train ┃" in shown  # the other split is shown
    (root / "annotations" / "instances_train.json").write_text("[]")
    shutil.rmtree(root / "masks")
    code, shown = check(root, capsys, "--json")
    assert code == 1 and set(problems(shown)) == {("json", "train"), ("json", "val")}
    assert "This is a list, as that of detection results" in problems(shown)["json", "train"]["text"]


def test_all_faults_of_a_json(root, capsys, monkeypatch):
    """Each with the position that the entry has in the file; what has no fault is looked at too."""
    monkeypatch.setattr("vssm.data.problems.KEPT", 3)

    def broken(data):
        images, entries, categories = data["images"], data["annotations"], data["categories"]
        entries[:] = [dict(entries[0], id=100 + number, image_id=images[2]["id"]) for number in range(20)]
        entries[1].pop("bbox")
        entries[2]["bbox"] = [1, 2, "3", 4]
        entries[3]["image_id"] = "1"
        entries[4] = "text"
        entries[5]["bbox"] = [1, 2, -3, 4]
        entries[6]["area"] = float("nan")
        for number in (7, 8, 9, 10):
            entries[number]["category_id"] = 77
        entries[11]["bbox"] = [100, 100, 5, 5]
        entries[12]["id"] = entries[13]["id"]
        images[0].pop("width")
        images[1]["id"] = images[2]["id"]
        images[3]["id"] = 2**64
        images[4]["file_name"] = "none.png"
        categories[1]["name"] = ""
        categories[2]["id"] = categories[0]["id"]

    change(root, "val", lambda data: data["images"].extend([dict(data["images"][0], id=9) for _ in range(2)]))
    change(root, "val", broken)
    shutil.rmtree(root / "masks")
    code, shown = check(root, capsys, "--json")
    assert code == 1
    found = {kind: one for (kind, split), one in problems(shown).items() if split == "val" and one["repair"]}
    counts = {
        "bad_image": 2, "doubled_image_ids": 2, "missing_files": 1, "bad_category": 2, "bad_annotation": 4,
        "bad_box": 2, "unknown_category": 4, "box_outside": 1, "doubled_ids": 1,
    }  # fmt: skip
    assert {kind: one["count"] for kind, one in found.items()} == counts
    assert found["bad_image"]["entries"] == [
        "image 0 (id 1) has no width", f"image 3 (id {2**64}): id is {2**64}, more than 64 bits hold",
    ]  # fmt: skip
    assert found["bad_annotation"]["entries"] == [
        "annotation 1 (id 101) has no bbox",
        "annotation 2 (id 102): must be real number, not str",
        "annotation 3 (id 103): 'str' object cannot be interpreted as an integer",
    ]
    assert [one.partition(" has")[0] for one in found["bad_box"]["entries"]] == [
        "annotation 5 (id 105)",
        "annotation 6 (id 106)",
    ]
    assert [one.partition(" have")[0] for one in found["unknown_category"]["entries"]] == [
        f"annotation {number} (id {100 + number})" for number in (7, 8, 9)
    ]
    assert found["doubled_ids"]["entries"] == ["annotation 13 (id 113)"]
    assert found["doubled_image_ids"]["entries"][0].startswith("images 1 and 2 (")
    assert "train" not in {split for (_, split), one in problems(shown).items() if one["repair"]}
    code, shown = check(root, capsys)
    assert "val: annotations of categories that are not listed: 4 (first: annotation 7 (id 107) have" in shown
    assert "  and 1 more" not in shown  # of three that are kept and one that is counted, all kept ones are shown

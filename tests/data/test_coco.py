"""Objects of COCO json files: values, what is left out and reported, and one error for each thing that is wrong."""

import copy
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from vssm.data import coco, rle
from vssm.data.coco import CocoInstances
from vssm.data.coco_index import survey_index
from vssm.data.image import UnreadableImage
from vssm.data.jsonstream import BadJson

SQUARE = [[2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]]
MASK = np.zeros((20, 30), bool)
MASK[4:10, 20:26] = True
CROWD = {"size": [20, 30], "counts": [100, 50, 450]}


def annotation(identity, image=5, category=3, bbox=(2, 3, 6, 6), **more):
    return {"id": identity, "image_id": image, "category_id": category, "bbox": list(bbox), "iscrowd": 0} | more


@pytest.fixture
def data():
    """Two images with objects and one without; category ids with gaps, not in order."""
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 9, "file_name": "nine.png", "width": 16, "height": 12},
            {"id": 5, "file_name": "deep/five.png", "width": 30, "height": 20},
            {"id": 7, "file_name": "empty.png", "width": 8, "height": 8},
        ],
        "annotations": [
            annotation(11, category=90, area=36.0, segmentation=SQUARE),
            annotation(12, image=9, bbox=(1.5, 2, 3, 4), area=12.0, segmentation=[[1.5, 2, 4.5, 2, 4.5, 6, 1.5, 6]]),
            annotation(13, bbox=(20, 4, 6, 6), area=36, segmentation=rle.encode(MASK)),
            annotation(14, category=90, bbox=(5, 0, 3, 20), area=50, segmentation=CROWD, iscrowd=1),
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 44, "name": "bottle"}],
    }


@pytest.fixture
def write(tmp_path):
    def written(data):
        for number, entry in enumerate(data.get("images", [])):
            path = tmp_path / "images" / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (entry["width"], entry["height"]), (number, 0, 0)).save(path)
        (tmp_path / "instances.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return tmp_path / "instances.json", tmp_path / "images"

    return written


def pair(image, objects):
    return image, objects


def test_objects(data, write):
    dataset = CocoInstances(*write(data), pair)
    assert len(dataset) == 3 and dataset.classes == ("car", "bottle", "toothbrush")
    assert dataset.names == ("nine.png", "deep/five.png", "empty.png")
    image, objects = dataset[1]
    assert image.size == (30, 20) and image.getpixel((0, 0)) == (1, 0, 0)
    assert objects.size == (20, 30) and len(objects) == 3
    assert objects.boxes.tolist() == [[2, 3, 8, 9], [20, 4, 26, 10], [5, 0, 8, 20]]
    assert objects.labels.tolist() == [2, 0, 2]
    assert objects.crowd.tolist() == [False, False, True]
    assert objects.areas.tolist() == [36, 36, 50]
    assert objects.ids.tolist() == [11, 13, 14]
    square = np.zeros((20, 30), bool)
    square[3:9, 2:8] = True
    crowd = np.zeros(600, bool)
    crowd[100:150] = True
    masks = objects.masks()
    assert masks.shape == (3, 20, 30) and masks.dtype == bool
    assert np.array_equal(masks[0], square) and np.array_equal(masks[1], MASK)
    assert np.array_equal(masks[2], crowd.reshape(30, 20).T)
    learnt = objects.take(~objects.crowd)
    assert learnt.ids.tolist() == [11, 13] and np.array_equal(learnt.mask(1), MASK)
    assert objects.take([2]).crowd.all() and len(objects.take([])) == 0
    _, none = dataset[2]
    assert len(none) == 0 and none.boxes.shape == (0, 4) and none.masks().shape == (0, 8, 8)
    assert dataset.has_masks and dataset.class_counts() == [2, 0, 1]
    assert list(dataset.notes) == ["instances.json: classes without objects: 1 of 3 (bottle)"]


def test_a_loader_process_gets_little(data, write):
    dataset = CocoInstances(*write(data), pair)
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert again[1][1].boxes.tolist() == dataset[1][1].boxes.tolist()
    assert b"counts" not in pickle.dumps(dataset), "masks stay in the file"


def test_what_evaluators_take(data, write):
    dataset = CocoInstances(*write(data), pair)
    truth = dataset.ground_truth()
    assert truth["images"] == data["images"]
    assert truth["categories"] == sorted(data["categories"], key=lambda category: category["id"])
    expected = {one["id"]: one for one in data["annotations"]}
    assert {one["id"]: one for one in truth["annotations"]} == expected
    assert [dataset.category_id(label) for label in range(3)] == [3, 44, 90]
    assert dataset.image_id(1) == 5


def test_only_images_with_objects_to_learn(data, write):
    data["annotations"][1]["iscrowd"] = 1
    dataset = CocoInstances(*write(data), pair, annotated=True)
    assert dataset.names == ("deep/five.png",)
    assert "images without an object to learn: 2 of 3; left out" in dataset.notes[-1]
    assert dataset.class_counts() == [1, 0, 1]


def test_parts(data, write):
    data["images"] += [{"id": 100 + n, "file_name": f"{n}.png", "width": 4, "height": 4} for n in range(40)]
    dataset = CocoInstances(*write(data), pair)
    train, val = dataset.hold_out(0.25, seed=0)
    assert len(val) == 11 and sorted(train + val) == list(range(43))
    assert dataset.hold_out(0.25, seed=0) == (train, val) != dataset.hold_out(0.25, seed=1)
    part = dataset.with_images([1, 0], lambda image, objects: len(objects))
    assert [part[0], part[1]] == [3, 1] and len(dataset) == 43
    assert part.class_counts() == [2, 0, 1] and dataset.with_images([0], pair).class_counts() == [1, 0, 0]
    assert part.fingerprint() != dataset.fingerprint() == CocoInstances(*write(data), pair).fingerprint()


def test_classes_of_a_training(data, write):
    files = write(data)
    dataset = CocoInstances(*files, pair, classes=("toothbrush", "boat", "car"))
    assert dataset[1][1].labels.tolist() == [0, 2, 0] and dataset.class_counts() == [1, 0, 2]
    assert [dataset.category_id(label) for label in range(3)] == [90, 92, 3]
    with pytest.raises(ValueError, match=r"has objects of toothbrush, which the training classes do not include"):
        CocoInstances(*files, pair, classes=("car", "bottle"))


def test_objects_without_masks(data, write):
    del data["annotations"][0]["segmentation"]
    data["annotations"][1]["segmentation"] = [[1, 2, 3, 4], [1, 2, 3]]
    files = write(data)
    dataset = CocoInstances(*files, pair)
    assert len(dataset[1][1]) == 3 and not dataset.has_masks
    with pytest.raises(ValueError, match="annotation 11 has no segmentation"):
        dataset[1][1].masks()
    notes = " ".join(dataset.notes)
    assert "annotations with a box but no segmentation: 2 (first: annotation 0 (id 11)" in notes
    assert "annotations with polygons of less than 3 points: 1 (first: annotation 1 (id 12), " in notes
    masks = CocoInstances(*files, pair, masks=True)
    assert masks[1][1].ids.tolist() == [13, 14] and len(masks[0][1]) == 0 and masks.class_counts() == [1, 0, 0]
    assert any("objects without a segmentation: 2; left out" in note for note in masks.notes)
    for one in data["annotations"]:
        one.pop("segmentation", None)
    with pytest.raises(ValueError, match="no annotation has a segmentation, so that only boxes can be learnt"):
        CocoInstances(*write(data), pair, masks=True)


def test_a_missing_area_is_that_of_the_box(data, write):
    del data["annotations"][1]["area"]
    dataset = CocoInstances(*write(data), pair)
    assert dataset[0][1].areas.tolist() == [12]
    assert any("annotations without an area: 1 (first: annotation 1 (id 12)" in n for n in dataset.notes)


def test_boxes_outside_and_empty(data, write):
    data["annotations"] += [
        annotation(20, bbox=(30, 5, 4, 4), area=16),
        annotation(21, bbox=(-4, 0, 4, 4), area=16),
        annotation(22, bbox=(3, 3, 0, 5), area=0),
        annotation(23, bbox=(-2, -3, 50, 5), area=100),
        annotation(24, bbox=(29, 19, 1.5, 1.5), area=2),
    ]
    dataset = CocoInstances(*write(data), pair)
    objects = dataset[1][1]
    assert objects.ids.tolist() == [11, 13, 14, 23, 24]
    assert objects.boxes[3:].tolist() == [[0, 0, 30, 2], [29, 19, 30, 20]]
    found = {problem.kind: problem for problem in dataset.problems}
    assert len(found["box_outside"].entries) == 2 and len(found["box_empty"].entries) == 1
    assert found["box_over"].entries == ("annotation 7 (id 23), bbox [-2.0, -3.0, 50.0, 5.0], deep/five.png",)
    text = (
        "boxes outside of their image: 2 (first: annotation 4 (id 20), bbox [30.0, 5.0, 4.0, 4.0], deep/five.png); left"
    )
    assert any(text in note for note in dataset.notes)
    assert [one["id"] for one in dataset.annotations(1)] == [11, 13, 14, 20, 21, 22, 23, 24]


@pytest.mark.parametrize(
    ("ids", "kind"), [((0, 12, 13, 14), "annotations with the id 0"), ((11, 12, 11, 14), "with the id of an earlier")]
)
def test_ids_that_evaluators_miscount(data, write, ids, kind):
    for one, identity in zip(data["annotations"], ids, strict=True):
        one["id"] = identity
    dataset = CocoInstances(*write(data), pair)
    assert any(kind in note and "all are renumbered for evaluation" in note for note in dataset.notes)
    truth = dataset.ground_truth()["annotations"]
    assert sorted(one["id"] for one in truth) == [1, 2, 3, 4]
    assert dataset[1][1].ids.tolist() == [one["id"] for one in truth if one["image_id"] == 5]


def test_an_annotation_of_an_image_that_is_not_listed(data, write):
    data["annotations"].append(annotation(30, image=1234))
    dataset = CocoInstances(*write(data), pair)
    assert sum(map(len, (objects for _, objects in (dataset[i] for i in range(3))))) == 4
    assert any(
        "annotations of images that are not listed: 1 (first: annotation 4 (id 30), image_id 1234)" in note
        for note in dataset.notes
    )


def test_names_of_categories(data, write):
    data["categories"][2]["name"] = "car"
    dataset = CocoInstances(*write(data), pair)
    assert dataset.classes == ("car (3)", "car (44)", "toothbrush")
    data["categories"][2]["name"] = "bütté"
    assert CocoInstances(*write(data), pair).classes[1] == "bütté"


def change(path, value):
    def changed(data):
        *keys, last = path
        for key in keys:
            data = data[key]
        if value is None:
            del data[last]
        else:
            data[last] = value

    return changed


BOX = ("annotations", 1, "bbox")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (change(("annotations",), None), "the list annotations is empty or missing: there are no objects to learn"),
        (change(("annotations",), []), "the list annotations is empty or missing: there are no objects to learn"),
        (change(("images",), {}), "images must be a list"),
        (change(("categories",), None), "the list categories is empty or missing"),
        (
            change(("annotations", 1, "category_id"), 4),
            r"annotation 1 \(id 12\) and 0 more have a category_id that",
        ),
        (change(("annotations", 1, "category_id"), 999), "not listed, 999; categories have 3, 44, 90"),
        (change(("annotations", 1, "bbox"), None), r"annotation 1 \(id 12\) has no bbox"),
        (change(BOX, [1, 2, 3]), r"annotation 1 \(id 12\): not enough values to unpack"),
        (change(BOX, [1, 2, 3, "4"]), r"annotation 1 \(id 12\): must be real number"),
        (change(BOX, [1, 2, 3, -4]), r"annotation 1 \(id 12\) has the bbox \[1.0, 2.0, 3.0, -4.0\]"),
        (change(BOX, [1, 2, float("nan"), 4]), "sides and an area of 0 or more"),
        (change(("annotations", 1), "text"), "annotation 1"),
        (change(("annotations", 1, "segmentation"), [1, 2, 3, 4, 5, 6]), "must be a list of polygons, each a list"),
        (change(("annotations", 1, "image_id"), "9"), r"annotation 1 \(id 12\)"),
        (change(("images", 1, "width"), "30"), r"image 1 \(id 5\): width is '30', not an integer"),
        (change(("images", 1, "height"), 0), "height is 0; it must be at least 1"),
        (change(("images", 1, "file_name"), None), r"image 1 \(id 5\) has no file_name"),
        (change(("images", 1, "id"), 9), r"images 0 and 1 \(nine.png, deep/five.png\) have the same id 9"),
        (change(("categories", 1, "id"), 90), r"category 1 \(id 90\): the id is also that of 'toothbrush'"),
        (change(("categories", 1, "name"), ""), r"category 1 \(id 3\): name is ''"),
    ],
)
def test_what_is_wrong_is_named(data, write, broken, message):
    _, images = write(data)
    data = copy.deepcopy(data)
    broken(data)
    path = images.parent / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as error:
        CocoInstances(path, images, pair)
    assert str(error.value).startswith(str(path))


def test_nothing_but_crowds(data, write):
    for one in data["annotations"]:
        one["iscrowd"] = 1
    data["annotations"].append(annotation(40, bbox=(40, 40, 2, 2)))
    with pytest.raises(ValueError, match="no object to learn or to evaluate with: of 5 annotations of listed images 4"):
        CocoInstances(*write(data), pair)


def test_a_cut_off_file(data, write):
    path, images = write(data)
    text = json.dumps(data, indent=1)
    path.write_text(text[: text.index('"id": 13') + 3])
    line = text[: text.index('"id": 13')].count("\n") + 1
    with pytest.raises(BadJson, match=f"line {line}, column .*, in element 2 of 'annotations': .* truncated"):
        CocoInstances(path, images, pair)
    path.write_text("[]")
    with pytest.raises(BadJson, match="This is a list, as that of detection results"):
        CocoInstances(path, images, pair)


def test_files(data, write):
    path, images = write(data)
    (images / "empty.png").unlink()
    (images / "deep" / "five.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images of .* are not in .*: deep/five.png, empty.png; add"):
        CocoInstances(path, images, pair)
    with pytest.raises(FileNotFoundError, match="none does not exist; expected a folder with the images of"):
        CocoInstances(path, images / "none", pair)


def test_a_survey_leaves_out_what_cannot_be_used(data, write):
    """The objects of what is left are those that the file without the faulty entries has."""
    path, images = write(data)
    whole = CocoInstances(path, images, pair)
    before = [whole.objects(position) for position in range(3)]
    data["annotations"][1:1] = [annotation(20, bbox=(1, 2, 3, -4), area=1), {"id": 21}, annotation(22, category=4)]
    data["images"].insert(0, {"id": 1, "file_name": "x.png", "width": 0, "height": 1})
    path.write_text(json.dumps(data))
    index, problems = survey_index(path)
    assert [problem.kind for problem in problems[:4]] == ["bad_image", "bad_annotation", "bad_box", "unknown_category"]
    dataset = CocoInstances(path, images, pair, surveyed=index)
    assert dataset.names == whole.names and dataset.index.numbers.tolist() == [4, 0, 5, 6]
    for position in range(3):
        found, expected = dataset.objects(position), before[position]
        assert np.array_equal(found.boxes, expected.boxes) and np.array_equal(found.ids, expected.ids)
        assert found.segmentations == expected.segmentations  # read from their bytes in the file
    (images / "deep" / "five.png").unlink()
    dataset = CocoInstances(path, images, pair, surveyed=index)
    assert dataset.names == ("nine.png", "empty.png") and dataset.problems[0].kind == "missing_files"
    (absent,) = CocoInstances(path, images / "none", pair, surveyed=index).problems[:1]
    assert absent.kind == "images_folder" and absent.entries == (f"{images / 'none'}, with 3 images",)
    data["images"] = []
    path.write_text(json.dumps(data))
    index, problems = survey_index(path)
    assert index is None and problems[0].entries == ("the list images is empty or missing",)


def test_a_file_of_another_size(data, write):
    path, images = write(data)
    dataset = CocoInstances(path, images, pair)
    Image.new("RGB", (31, 20)).save(images / "deep" / "five.png")
    with pytest.raises(UnreadableImage, match=r"31 x 20 pixels, but 30 x 20 in instances.json \(width x height\)"):
        dataset[1]
    (images / "deep" / "five.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="empty file"):
        dataset[1]


@pytest.mark.parametrize("upright", [True, False])
def test_annotations_of_a_turned_photo(data, write, upright):
    """The annotations are of the upright image, or of the stored one where only that has their size."""
    data["images"][1]["file_name"] = "photo.jpg"
    path, images = write(data)
    stored = Image.new("RGB", (20, 30) if upright else (30, 20))
    stored.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be upright
    stored.save(images / "photo.jpg", exif=exif, quality=95)
    image, objects = CocoInstances(path, images, pair)[1]
    assert image.size == (30, 20) == objects.size[::-1]
    corner = image.getpixel((25, 2)) if upright else image.getpixel((2, 2))
    assert min(corner) > 240


def test_masks_that_cannot_be(data, write):
    data["annotations"][2]["segmentation"] = {"size": [20, 30], "counts": "04"}
    dataset = CocoInstances(*write(data), pair)
    with pytest.raises(UnreadableImage, match=r"five.png: instances.json: annotation 2 \(id 13\) has an RLE of 4"):
        dataset[1]


def test_the_file_must_stay_as_it_is(data, write):
    path, images = write(data)
    dataset = CocoInstances(path, images, pair)
    path.write_text(json.dumps(data, indent=2))
    with pytest.raises(ValueError, match="is not the file that it was at the start; start again"):
        dataset[1]


def test_the_transform_is_told_nothing_else(data, write):
    seen = []
    CocoInstances(*write(data), lambda *given: seen.append(given))[0]
    assert isinstance(seen[0][0], Image.Image) and isinstance(seen[0][1], coco.Objects)

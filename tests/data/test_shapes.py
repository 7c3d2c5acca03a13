"""Generated shapes: boxes, masks and semantic labels agree to the pixel, and a seed gives the same files."""

import hashlib

import numpy as np
import pytest

from vssm.data.coco import CocoInstances
from vssm.data.imagefolder import ImageFolder
from vssm.data.layouts import find_layout
from vssm.data.masks import SemanticMasks
from vssm.data.shapes import CLASSES, draw_scene, write_crops, write_shapes


def pair(image, objects):
    return image, objects


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    assert write_shapes(root, train=24, val=6, size=(70, 90))["train"] > 48
    return root


@pytest.fixture(scope="module")
def instances(root):
    source = find_layout(root, "detection").splits["train"]
    return CocoInstances(source.annotations, source.images, pair, masks=True)


def test_both_readers_take_the_same_folder(root, instances):
    semantic = SemanticMasks.of(find_layout(root, "segmentation"), "train", pair)
    assert len(instances) == len(semantic) == 24
    assert instances.classes == CLASSES and semantic.classes == ("background", *CLASSES)
    assert instances.notes == () and min(instances.class_counts()) > 5
    sizes = set()
    for (image, objects), (same, labels) in zip(instances, semantic, strict=True):
        assert np.array_equal(image, same)
        sizes.add(image.size)
        expected = np.zeros(objects.size, np.uint8)
        for mask, label, box, area in zip(objects.masks(), objects.labels, objects.boxes, objects.areas, strict=True):
            assert not expected[mask].any(), "visible masks do not overlap"
            expected[mask] = 1 + label
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert area == mask.sum() >= 24
        assert np.array_equal(labels, expected)
    assert len(sizes) > 10 and all(70 <= side <= 90 for size in sizes for side in size)


def test_there_are_polygons_and_hidden_parts(instances):
    kinds = [type(one) for position in range(24) for one in instances.objects(position).segmentations]
    assert kinds.count(list) > 20 and kinds.count(dict) > 20
    rings = [o.mask(i) for o in map(instances.objects, range(24)) for i in np.flatnonzero(o.labels == 4)]
    assert any(not ring[ring.any(1)][:, ring.any(0)].all() for ring in rings)


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(path.relative_to(root), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def test_a_seed_gives_the_same_files(root, tmp_path):
    write_shapes(tmp_path / "same", train=24, val=6, size=(70, 90))
    assert digest(tmp_path / "same") == digest(root)
    write_shapes(tmp_path / "fewer", train=3, val=1, size=(70, 90))
    write_shapes(tmp_path / "other", train=3, val=1, size=(70, 90), seed=1)
    first = "images/train/000000.png"
    assert (tmp_path / "fewer" / first).read_bytes() == (root / first).read_bytes(), "more images change none"
    assert (tmp_path / "other" / first).read_bytes() != (root / first).read_bytes()


def test_crops_are_a_folder_for_classification(tmp_path):
    write_crops(tmp_path, train=3, val=1, size=48)
    train = ImageFolder(tmp_path / "train", lambda image: image)
    assert train.classes == tuple(sorted(CLASSES)) and len(train) == 15
    assert all(image.size == (48, 48) for image, _ in train)
    assert len(ImageFolder(tmp_path / "val", lambda image: image)) == 5


def test_most_of_a_shape_is_visible():
    for seed in range(30):
        scene = draw_scene(np.random.default_rng(seed), 64, 96, count=(3, 8))
        assert scene.pixels.shape == (64, 96, 3) and len(scene.shapes) >= 2
        assert sum(shape.mask for shape in scene.shapes).max() == 1
        assert np.array_equal(scene.semantic() > 0, sum(shape.mask for shape in scene.shapes))

"""Semantic masks: what their values mean in each layout, and one error for each thing that is wrong."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vssm.data.image import UnreadableImage
from vssm.data.layouts import find_layout
from vssm.data.mask_classes import CITYSCAPES, MaskClasses, read_classes
from vssm.data.masks import SemanticMasks, classes_of, read_mask

VALUES = np.array([[0, 1, 2], [2, 2, 255]], np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def photo(path, size=(3, 2)):
    save(path, Image.new("RGB", size, (9, 9, 9)))


def pair(image, labels):
    return image, labels


@pytest.fixture
def plain(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for number in range(count):
            photo(tmp_path / "images" / split / "deep" / f"{number}.jpg")
            save(tmp_path / "masks" / split / "deep" / f"{number}.png", VALUES)
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    return tmp_path


def load(root, split="train"):
    return SemanticMasks.of(find_layout(root, "segmentation"), split, pair)


def test_plain_folders(plain):
    dataset = load(plain)
    assert len(dataset) == 3 and dataset.classes == ("sky", "road", "tree") and dataset.notes == ()
    image, labels = dataset[1]
    assert image.size == (3, 2) and image.mode == "RGB"
    assert labels.dtype == np.uint8 and labels.tolist() == VALUES.tolist()
    assert dataset.class_counts() is None
    assert dataset.path(2) == plain / "images" / "train" / "deep" / "2.jpg"
    part = dataset.with_images([2], lambda image, labels: labels.shape)
    assert len(part) == 1 and part[0] == (2, 3) and part.fingerprint() != dataset.fingerprint()
    train, val = dataset.hold_out(0.3, 0)
    assert len(val) == 1 and sorted(train + val) == [0, 1, 2]
    assert len(load(plain, "val")) == 1
    with pytest.raises(FileNotFoundError, match=r"has no test split \(masks\); it has train, val"):
        load(plain, "test")


def test_ade20k(tmp_path):
    photo(tmp_path / "images" / "training" / "a.jpg")
    save(tmp_path / "annotations" / "training" / "a.png", np.array([[0, 1, 150], [3, 3, 0]], np.uint8))
    dataset = load(tmp_path)
    assert dataset[0][1].tolist() == [[255, 0, 149], [2, 2, 255]]
    assert len(dataset.classes) == 150 and "classes have numbers only" in dataset.notes[0]
    names = "".join(f"{n}\t0.1\t10\t10\tname {n}, other\n" for n in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + names)
    assert load(tmp_path).classes[149] == "name 150" and not load(tmp_path).notes
    (tmp_path / "classes.txt").write_text("wall\nbuilding\nsky\n")
    with pytest.raises(UnreadableImage, match=r"none of the 3 classes \(wall, building, sky\): 150 \(1 pixels\)"):
        load(tmp_path)[0]
    layout = find_layout(tmp_path)
    assert classes_of(layout, reduce_zero_label=False).values[0] == 0 and classes_of(layout).values[1] == 0
    (tmp_path / "objectInfo150.txt").write_text("Idx\n1\n")
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"objectInfo150.txt: expected a line of titles and 150 lines"):
        load(tmp_path)


def test_zero_is_ignored_on_demand(plain):
    layout = find_layout(plain)
    classes = classes_of(layout, reduce_zero_label=True)
    dataset = SemanticMasks.of(layout, "train", pair, classes)
    assert dataset[0][1].tolist() == [[255, 0, 1], [1, 1, 255]]
    (plain / "classes.txt").write_text("7,sky\n9,road\n")
    with pytest.raises(ValueError, match="has values of its own; leave out reduce_zero_label"):
        classes_of(layout, reduce_zero_label=True)


def test_cityscapes(tmp_path):
    photo(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_0_leftImg8bit.png")
    for kind in ("labelIds", "instanceIds", "color"):
        mask = tmp_path / "gtFine" / "train" / "ulm" / f"ulm_0_gtFine_{kind}.png"
        save(mask, np.array([[0, 7, 8], [33, 9, 31]], np.uint8))
    dataset = load(tmp_path)
    assert len(dataset) == 1 and len(dataset.classes) == 19
    assert dataset[0][1].tolist() == [[255, 0, 1], [18, 255, 16]]
    assert [dataset.classes[label] for label in (0, 1, 18, 16)] == ["road", "sidewalk", "bicycle", "train"]
    evaluated = [value for value, label in sorted(CITYSCAPES.values.items()) if label != 255]
    assert evaluated == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [CITYSCAPES.values[value] for value in evaluated] == list(range(19))
    assert set(CITYSCAPES.values) == {*range(34), 255}
    # The order of train ids in cityscapesScripts, helpers/labels.py.
    names = (
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
        "rider, car, truck, bus, train, motorcycle, bicycle"
    )
    assert ", ".join(CITYSCAPES.names) == names


def test_pascal_voc(tmp_path):
    palette = Image.fromarray(np.array([[0, 15, 255], [20, 20, 0]], np.uint8))
    palette.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    for name in ("b", "a", "c"):
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
        save(tmp_path / "SegmentationClass" / f"{name}.png", palette)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    dataset = load(tmp_path)
    assert [dataset.path(i).name for i in range(2)] == ["b.jpg", "a.jpg"]
    assert Image.open(tmp_path / "SegmentationClass" / "a.png").mode == "P"
    assert dataset[0][1].tolist() == [[0, 15, 255], [20, 20, 0]]
    assert len(dataset.classes) == 21 and dataset.classes[15] == "person"
    (lists / "val.txt").write_text("c\nd\n")
    with pytest.raises(FileNotFoundError, match=r"val.txt: 1 of 2 names have no image in .*JPEGImages: d"):
        load(tmp_path, "val")


def test_kinds_of_masks(tmp_path):
    path = tmp_path / "mask.png"
    save(path, np.array([[0, 300], [65535, 2]], np.uint16))
    assert read_mask(path).tolist() == [[0, 300], [65535, 2]]
    save(path, np.array([[0, 300], [65535, 2]], np.int32))
    assert read_mask(path).tolist() == [[0, 300], [65535, 2]]
    save(path, np.array([[True, False]]))
    assert read_mask(path).tolist() == [[1, 0]]
    save(path, Image.new("RGB", (2, 2)))
    with pytest.raises(
        UnreadableImage, match=r"a mask must have one integer per pixel .* this one is RGB; for masks in"
    ):
        read_mask(path)
    assert read_mask(path, coloured=True).shape == (2, 2, 3)
    save(tmp_path / "mask.jpg", VALUES)
    with pytest.raises(UnreadableImage, match="a mask in JPEG, which invents values"):
        read_mask(tmp_path / "mask.jpg")
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="empty file"):
        read_mask(path)
    path.write_bytes(b"text")
    with pytest.raises(UnreadableImage, match="not an image"):
        read_mask(path)
    with pytest.raises(UnreadableImage, match="No such file"):
        read_mask(tmp_path / "none.png")


def grey_png(values, bits):
    """A PNG of grey levels of less than 8 bits, which Pillow does not write."""
    rows = b""
    for row in values:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += bytes([0, *(int(digits[start : start + 8], 2) for start in range(0, len(digits), 8))])
    head = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def test_values_are_those_of_the_file(tmp_path):
    """Few bits, which programs that make PNGs smaller choose, and other maxima of PGM: Pillow shows them scaled."""
    path = tmp_path / "mask.png"
    for bits in (1, 2, 4):
        values = [[0, 1, (1 << bits) - 1], [1, 0, (1 << bits) // 2]]
        path.write_bytes(grey_png(values, bits))
        assert read_mask(path).tolist() == values, bits
    for highest in (2, 20, 255, 300, 65535):
        values = [[0, 1, 2], [highest, highest // 2, 1]]
        size = 1 if highest < 256 else 2
        content = b"".join(value.to_bytes(size, "big") for row in values for value in row)
        (tmp_path / "mask.pgm").write_bytes(f"P5 3 2 {highest}\n".encode() + content)
        assert read_mask(tmp_path / "mask.pgm").tolist() == values, highest
        text = " ".join(str(value) for row in values for value in row)
        (tmp_path / "mask.pgm").write_text(f"P2 3 2 {highest}\n{text}\n")
        assert read_mask(tmp_path / "mask.pgm").tolist() == values, highest


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indices_of_a_palette(tmp_path, bits):
    """Whatever the colours are, also grey ones in another order."""
    values = (np.arange(6).reshape(2, 3) % (1 << bits)).astype(np.uint8)
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([200, 200, 200, 10, 10, 10] + [value for n in range(2, 256) for value in (n, 9, 255 - n)])
    for name in ("mask.png", "mask.gif", "mask.tif"):
        image.save(tmp_path / name, **({"bits": bits} if name.endswith("png") else {}))
        found = read_mask(tmp_path / name)
        with Image.open(tmp_path / name) as stored:
            assert stored.mode == "P" and found.tolist() == np.asarray(stored).tolist(), name
        if not name.endswith("gif"):  # Pillow orders a GIF's palette anew
            assert found.tolist() == values.tolist(), name


def test_16_bits(plain):
    (plain / "classes.txt").write_text("1000,sky\n2000,road\n0,ignore\n")
    mask = plain / "masks" / "train" / "deep" / "0.png"
    save(mask, np.array([[0, 1000, 2000], [2000, 0, 255]], np.uint16))
    assert load(plain)[0][1].tolist() == [[255, 0, 1], [1, 255, 255]]


def test_colours(plain):
    (plain / "classes.txt").write_text("# RGB\n128 64 128,road\n0 0 0,ignore\n70 130 180,sky\n128 64 129,road\n")
    mask = plain / "masks" / "train" / "deep" / "0.png"
    colours = np.array([[[0, 0, 0], [128, 64, 128], [70, 130, 180]], [[128, 64, 129]] * 3], np.uint8)
    save(mask, colours)
    dataset = load(plain)
    assert dataset.classes == ("road", "sky") and dataset[0][1].tolist() == [[255, 0, 1], [0, 0, 0]]
    colours[0, 0] = (1, 2, 3)
    save(mask, colours)
    with pytest.raises(UnreadableImage, match=r"0.png: the mask has colours that are no class: 1 2 3 \(1 pixels\)"):
        dataset[0]


def test_values_and_sizes_that_do_not_fit(plain):
    mask = plain / "masks" / "train" / "deep" / "0.png"
    save(mask, np.array([[0, 3, 3], [2, 9, 255]], np.uint8))
    dataset = load(plain)
    with pytest.raises(UnreadableImage, match=r"0.png: .* none of the 3 classes .*: 3 \(2 pixels\), 9 \(1 pixels\)"):
        dataset[0]
    photo(plain / "images" / "train" / "deep" / "1.jpg", (4, 2))
    with pytest.raises(UnreadableImage, match=r"1.jpg: 4 x 2 pixels, but 3 x 2 in its mask .*1.png"):
        dataset[1]


def test_images_and_masks_that_are_alone(plain):
    (plain / "masks" / "train" / "deep" / "1.png").rename(plain / "masks" / "train" / "deep" / "9.png")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 images have no mask of the same name in .*: deep/1; masks must"
    ):
        load(plain)
    (plain / "images" / "train" / "deep" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 masks have no image of the same name in .*: deep/9"):
        load(plain)
    photo(plain / "images" / "train" / "deep" / "0.png")
    with pytest.raises(ValueError, match=r"has 0.jpg and 0.png; only one file of a name"):
        load(plain)


def test_names_must_be_given(plain):
    (plain / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes.txt does not exist; it names the classes of the masks"):
        load(plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class"),
        ("sky\n3,road\n", "line 2: '3,road' has another form"),
        ("1,sky\n\n1,road\n", "line 3: 1 for the second time"),
        ("65536,sky", "line 1: 65536 is too large"),
        ("0 0 256,sky", "line 1: 0 0 256 is too large"),
        ("sky\nsky\n", "line 2: 'sky' for the second time"),
        ("\n".join(f"c{n}" for n in range(256)), "256 classes; masks can have 1 to 255"),
        ("sk\udce4".encode("utf-8", "surrogateescape"), "not a text in UTF-8"),
    ],
)
def test_bad_names(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_classes(path)


def test_names(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("sky, blue\nignore\n3 roads\n")
    assert read_classes(path) == MaskClasses(("sky, blue", "3 roads"), {0: 0, 1: 255, 2: 1, 255: 255})

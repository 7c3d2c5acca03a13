"""Pascal VOC xml: boxes by hand, what is lost, and files that must not be read."""

import pytest
from PIL import Image

from vssm.data.labels import read_labels
from vssm.data.labels.xml import read_xml

OBJECT = (
    "<object><name>{name}</name>{more}"
    "<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def thing(*corners, name="tree", more=""):
    return OBJECT.format(*corners, name=name, more=more)


def annotation(*objects, size="<size><width>30</width><height>20</height><depth>3</depth></size>", filename="a.jpg"):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    for name in "ab":
        Image.new("RGB", (30, 20)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        write(tmp_path, name, annotation(thing(1, 1, 30, 20), thing(4, 5, 6, 7, name="car"), filename=f"{name}.jpg"))
    return tmp_path


def write(root, name, text):
    (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")


def boxes(annotated):
    return [one.box for one in annotated.images[0].objects]


def test_boxes_include_their_last_pixel(root):
    annotated = read_labels(root)
    assert annotated.classes == ["car", "tree"]
    assert boxes(annotated) == [(0, 0, 30, 20), (3, 4, 3, 3)]
    assert annotated.notes == [
        "coordinates are taken to begin at 1: boxes include their last pixel, as in Pascal VOC (--origin)"
    ]
    assert [(image.name, image.size, image.split) for image in annotated.images] == [
        ("a.jpg", (30, 20), None),
        ("b.jpg", (30, 20), None),
    ]
    assert annotated.lost.lines() == []


def test_coordinates_that_begin_at_0(root):
    write(root, "b", annotation(thing(0, 3, 5, 8), filename="b.jpg"))
    annotated = read_labels(root)
    assert boxes(annotated) == [(1, 1, 29, 19), (4, 5, 2, 2)]
    assert annotated.notes == ["coordinates are taken to begin at 0: a box has the value 0 (--origin)"]
    assert boxes(read_labels(root, origin=1))[1] == (3, 4, 3, 3)


def test_what_is_lost_is_counted(root):
    marks = "<difficult>1</difficult><truncated>1</truncated><occluded>0</occluded><pose>Left</pose>"
    part = "<part><name>leaf</name><bndbox><xmin>1</xmin></bndbox></part>"
    polygon = "<polygon><x1>3</x1></polygon>"
    text = annotation(
        thing(1, 1, 5, 5, more=marks),
        thing(1, 1, 5, 5, more=part + polygon + "<pose>Unspecified</pose>"),
        thing(8, 8, 4, 9),
        thing(31, 1, 40, 9),
        thing(20, 10, 45, 18),
        "<object><name>tree</name></object>",
        "<segmented>1</segmented>",
    )
    write(root, "a", text)
    write(root, "c", annotation(thing(1, 1, 2, 2), filename="none.jpg"))
    write(root, "d", "<other/>")
    Image.new("RGB", (9, 9)).save(root / "JPEGImages" / "e.jpg")
    annotated = read_labels(root)
    assert boxes(annotated) == [(0, 0, 5, 5), (0, 0, 5, 5), (19, 9, 11, 9)]
    assert [line.partition(" (first: ")[0] for line in annotated.lost.lines()] == [
        "annotation files of no image, left out: 1",
        "boxes that end before they begin, left out: 1",
        "boxes that reach over the border of their image, cut off: 1",
        "images with masks in SegmentationObject: 1",
        "images without an annotation file, left out: 1",
        "marks of difficult objects: 1",
        "marks of truncated objects: 1",
        "objects without a bndbox, left out: 1",
        "objects without an area within their image, left out: 1",
        "parts of objects: 1",
        "polygons of objects: 1",
        "poses of objects: 1",
        "xml files that are no annotations: 1",
    ]


def test_sizes(root):
    write(root, "a", annotation(thing(1, 1, 5, 5), size="<size><width>0</width><height>0</height></size>"))
    write(
        root, "b", annotation(thing(1, 1, 5, 5), size="<size><width>31</width><height>20</height></size>", filename="b")
    )
    annotated = read_labels(root)
    assert [(image.name, image.size) for image in annotated.images] == [("a.jpg", (30, 20))]
    (line,) = annotated.lost.lines()
    assert line.startswith("images of another size than their annotations state, left out: 1 (first: ")
    assert line.endswith("b.xml: 31 x 20, the image is 30 x 20)")


def test_splits(root):
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    (lists / "trainval.txt").write_text("a\nb\n")
    annotated = read_labels(root)
    assert [(image.name, image.split) for image in annotated.images] == [("b.jpg", "train")]
    assert annotated.lost.lines()[0].startswith("annotation files in no list of ImageSets/Main, left out: 1")
    (lists / "val.txt").write_text("a\nb -1\n")
    with pytest.raises(ValueError, match=r"val.txt: b is also in the list train"):
        read_labels(root)


def test_xml_beside_images(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (30, 20)).save(tmp_path / folder / "a.png")
        (tmp_path / folder / "a.xml").write_text(annotation(thing(2, 2, 5, 5), filename="C:\\data\\a.jpg"))
    annotated = read_labels(tmp_path)
    assert [(image.name, image.path) for image in annotated.images] == [
        ("x/a.png", tmp_path / "x" / "a.png"),
        ("y/a.png", tmp_path / "y" / "a.png"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"a.xml, line 1, column 20: no element found"),
        ("<annotation>\n</object></annotation>", r"a.xml, line 2, column 2: mismatched tag"),
        ("", "line 1, column 0: no element found"),
        (annotation(thing(1, 2, 3, "x")), r"object 0 \(tree\) has the ymax 'x', not a number"),
        (annotation(thing(1, 2, 3, "nan")), "expected pixels"),
        (annotation(thing(1, 2, 3, 4, name="")), "object 0 has no name"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "has a document type .* which is refused"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a document type"),
        ("<a>" * 40 + "</a>" * 40, "is nested more than 32 levels deep"),
    ],
)
def test_bad_files(root, text, message):
    write(root, "a", text)
    with pytest.raises(ValueError, match=message) as error:
        read_labels(root)
    assert str(root / "Annotations" / "a.xml") in str(error.value)


def test_entities_do_not_fill_the_memory(tmp_path):
    lines = ['<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e0 "xxxxxxxxxx">']
    lines += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12)]
    path = tmp_path / "a.xml"
    path.write_text("".join(lines) + "]><annotation><filename>&e11;</filename></annotation>")
    with pytest.raises(ValueError, match="has a document type"):
        read_xml(path)
    path.write_bytes(b" " * (1 << 24) + b"<a/>")
    with pytest.raises(ValueError, match="more than 16777216 bytes"):
        read_xml(path)

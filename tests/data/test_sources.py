import glob
import io
import os
from pathlib import Path

import pytest

from vssm.data.image import UnreadableImage
from vssm.data.sources import find_files, listed_names


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.png", "notes.txt", "x/a.jpg", "x/y/c.jpg", "x/y/d.tif", "z/e.jpg", ".h/f.jpg", "w[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*names):
    return [f"! {f.path}: {f.reason}" if isinstance(f, UnreadableImage) else f.as_posix() for f in find_files(names)]


def test_files_folders_and_what_is_missing_in_the_order_given(tree):
    assert found("b.png", "x", "missing.jpg", "notes.txt", "a.jpg") == [
        "b.png", "x/a.jpg", "x/y/c.jpg", "x/y/d.tif", "missing.jpg", "notes.txt", "a.jpg",
    ]  # fmt: skip


def test_a_name_with_brackets_is_itself_when_it_exists(tree):
    assert found("w[1].jpg") == ["w[1].jpg"]
    assert found("w[2].jpg") == ["! w[2].jpg: no file matches this pattern"]


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jpg",
        "?.*",
        "x/*/*.jpg",
        "**/*.jpg",
        "x/**/*.jpg",
        "*/y/*",
        "**/y/*.tif",
        "[xz]/?.jpg",
        ".h/*.jpg",
        ".*/f.jpg",
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns_match_what_glob_matches(tree, pattern, absolute):
    if absolute:
        pattern = str(tree / pattern)
    expected = sorted(p for p in glob.glob(pattern, recursive=True) if not Path(p).is_dir())  # noqa: PTH207
    assert sorted(map(str, find_files([pattern]))) == expected
    assert expected


def test_order_of_a_pattern(tree):
    assert found("**/*.jpg") == ["a.jpg", "w[1].jpg", "x/a.jpg", "x/y/c.jpg", "z/e.jpg"]


def test_a_matched_folder_is_searched(tree):
    assert found("?") == ["x/a.jpg", "x/y/c.jpg", "x/y/d.tif", "z/e.jpg"]
    assert found("x/**") == ["x/a.jpg", "x/y/c.jpg", "x/y/d.tif"]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_in_a_circle_end(tree):
    for number in range(4):
        (tree / "x" / f"up{number}").symlink_to(tree)
    assert found("**/c.jpg") == ["x/y/c.jpg"]


def test_a_folder_that_cannot_be_listed_is_reported_and_the_rest_done(tree, monkeypatch):
    scan = os.scandir

    def refuse(folder):
        if os.path.basename(folder) == "y":  # noqa: PTH119
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found("x", "z") == ["x/a.jpg", "! x/y: Permission denied", "z/e.jpg"]


def test_files_are_found_as_they_are_asked_for(tree):
    def names():
        yield "a.jpg"
        raise AssertionError("asked for too early")

    assert next(find_files(names())) == Path("a.jpg")


def test_lists():
    lines = io.BytesIO("a.jpg\nü 猫.png\r\n\n spaced .jpg\n".encode() + b"caf\xe9.jpg\nlast.jpg")
    assert list(listed_names(lines)) == ["a.jpg", "ü 猫.png", " spaced .jpg", "caf\udce9.jpg", "last.jpg"]


NAMES = ["a.jpg", "ü 猫.png", " spaced name.jpg ", "x/y.jpg", "Фото/ё.jpg"]
ENCODINGS = {
    "utf-8": ("utf-8", b""),
    "utf-8 with its mark": ("utf-8", b"\xef\xbb\xbf"),
    "utf-16-le": ("utf-16-le", b""),
    "utf-16-be": ("utf-16-be", b""),
    "utf-16-le with its mark": ("utf-16-le", b"\xff\xfe"),
    "utf-16-be with its mark": ("utf-16-be", b"\xfe\xff"),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
def test_lists_of_every_system(encoding, end, last):
    codec, mark = ENCODINGS[encoding]
    text = end.join([NAMES[0], "", *NAMES[1:]]) + (end if last else "")
    found = list(listed_names(io.BytesIO(mark + text.encode(codec))))
    assert found == NAMES
    assert [name.line for name in found] == [1, 3, 4, 5, 6]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_an_empty_list(mark):
    assert list(listed_names(io.BytesIO(mark))) == []


def test_lists_that_are_damaged():
    with pytest.raises(ValueError, match="line 2 of the list has a zero byte; write one name per line"):
        list(listed_names(io.BytesIO(b"one-name.jpg\nanother-name\0third-name.jpg\n")))
    with pytest.raises(ValueError, match="the list is damaged UTF-16"):
        list(listed_names(io.BytesIO(b"\xff\xfea\0\n\0\x00\xd8")))
    with pytest.raises(ValueError, match="line 1 of the list has a zero byte"):
        list(listed_names(io.BytesIO(b"one-name.jpg\0another-name.jpg\0")))


def test_a_name_with_a_carriage_return_that_is_there(tree):
    (tree / "odd\rname.jpg").touch()
    assert list(listed_names(io.BytesIO(b"odd\rname.jpg\na.jpg\rb.png\n"))) == ["odd\rname.jpg", "a.jpg", "b.png"]


def test_lists_are_read_as_they_arrive(tree):
    reader, writer = os.pipe()
    os.write(writer, b"a.jpg\nb.png\nnot-")
    with open(reader, "rb", buffering=0) as lines:  # noqa: PTH123
        names = listed_names(lines)
        assert [next(names), next(names)] == ["a.jpg", "b.png"]
        os.write(writer, b"yet.jpg\n")
        os.close(writer)
        assert list(names) == ["not-yet.jpg"]


def test_what_a_list_names_and_is_not_there_has_its_line(tree):
    names = listed_names(io.BytesIO(b"a.jpg\n\nmissing.jpg\n*.webp\nx\n"))
    found = [str(file) for file in find_files(names)]
    assert found[:3] == [
        "a.jpg",
        "missing.jpg: No such file or directory (line 3 of the list)",
        "*.webp: no file matches this pattern (line 4 of the list)",
    ]
    assert found[3].startswith("x/")

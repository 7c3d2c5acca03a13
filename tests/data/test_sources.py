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

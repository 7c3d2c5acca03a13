import os
import tracemalloc

import pytest

from vssm.data import files
from vssm.data.files import image_files, plain_name, printable_name


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder):
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


def test_order_is_that_of_sorted_paths(tmp_path):
    touch(tmp_path, "b.jpg", "a/2.png", "a/1.png", "a.b/3.png", "a-b/4.PNG", "c/d/e/5.tiff", "c/a.webp", "Z.gif")
    expected = sorted((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.parts)
    assert list(image_files(tmp_path)) == expected
    assert len(expected) == 8


def test_other_files_and_dot_names_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "a.txt", "jpg", ".jpg", ".b.jpg", ".cache/c.jpg", "d.jpg/e.png", "f.tar.gz")
    assert found(tmp_path) == ["a.jpg", "d.jpg/e.png"]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_in_a_circle_end_and_add_no_duplicates(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "a/1.png", "b/2.png")
    touch(outside, "3.png", "deep/4.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "c").symlink_to(root / "b")
    (root / "d").symlink_to(outside)
    (root / "e").symlink_to(outside / "deep")
    (outside / "back").symlink_to(root)
    (root / "f.png").symlink_to("f.png")
    (root / "g").symlink_to("g")
    (root / "h.png").symlink_to("missing")
    names = [path.resolve().name if path.exists() else path.name for path in image_files(root)]
    assert sorted(names) == ["1.png", "2.png", "3.png", "4.png", "f.png", "h.png"]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    scan = os.scandir

    def refuse(folder):
        if os.path.basename(folder) == "b":  # noqa: PTH119
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list(image_files(tmp_path))
    errors = []
    assert [path.name for path in image_files(tmp_path, errors.append)] == ["1.png", "3.png"]
    assert [error.filename for error in errors] == [str(tmp_path / "b")]


def test_memory_does_not_grow_with_the_files(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}").mkdir()
        for image in range(100):
            os.close(os.open(tmp_path / f"{number:02d}" / f"{image:03d}.jpg", os.O_CREAT))
    search = image_files(tmp_path)

    def held_after(count):
        for _ in range(count):
            next(search)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    ours = [tracemalloc.Filter(True, files.__file__)]
    tracemalloc.start()
    early, late = held_after(450), held_after(3500)
    tracemalloc.stop()
    assert 5_000 < early < 50_000
    assert late < early + 40 * 200  # a set entry for each folder


def test_names_to_show():
    odd = "ü 猫\n\x1b[31m\udce9.jpg"
    assert plain_name(odd) == "ü 猫\n\x1b[31m\\xe9.jpg"
    assert printable_name(odd) == "ü 猫\\n\\x1b[31m\\xe9.jpg"

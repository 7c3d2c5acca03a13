from pathlib import Path

import pytest

from vssm.data.split import hold_out, training_and_validation

FOLDER = Path("images")


def samples(counts):
    return [
        (FOLDER / name / f"{n}.png", label)
        for label, (name, count) in enumerate(counts.items())
        for n in range(count)
    ]  # fmt: skip


def test_a_share_of_each_class_is_held_out():
    found = samples({"a": 1000, "b": 3000})
    train, val, alone = hold_out(found, FOLDER, 0.2, seed=0)
    assert sorted(train + val) == sorted(found)
    assert not alone
    for label, expected in enumerate((200, 600)):
        assert sum(held == label for _, held in val) == expected


def test_images_stay_on_their_side():
    """Adding as many images again moves few of those that were there, and where the folder lies changes nothing."""
    before = samples({"a": 60, "b": 60})
    more = [(FOLDER / "a" / f"new{n}.png", 0) for n in range(60)]
    held = set(hold_out(before, FOLDER, 0.2, seed=0)[1])
    assert len(held ^ (set(hold_out(before + more, FOLDER, 0.2, seed=0)[1]) & set(before))) <= 4
    elsewhere = [(Path("/other/place") / path.relative_to(FOLDER), label) for path, label in before]
    moved = hold_out(elsewhere, Path("/other/place"), 0.2, seed=0)[1]
    assert {path.relative_to("/other/place") for path, _ in moved} == {path.relative_to(FOLDER) for path, _ in held}


def test_the_split_is_this_one():
    """Pinned, so that a later version evaluates old checkpoints on the same images. The accent has two forms."""
    val = hold_out(samples({"a": 12, "caf\u00e9": 12}), FOLDER, 0.25, seed=7)[1]
    decomposed = hold_out(samples({"a": 12, "cafe\u0301": 12}), FOLDER, 0.25, seed=7)[1]
    names = [(label, path.stem) for path, label in val]
    assert names == [(label, path.stem) for path, label in decomposed]
    assert names == [(0, "0"), (0, "2"), (0, "9"), (1, "0"), (1, "3"), (1, "11")]


def test_another_seed_draws_others():
    found = samples({"a": 100})
    assert hold_out(found, FOLDER, 0.2, seed=0)[1] != hold_out(found, FOLDER, 0.2, seed=1)[1]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_small_classes_have_images_on_both_sides(share):
    found = samples({f"class{n}": 2 + n % 3 for n in range(60)} | {"single": 1})
    train, val, alone = hold_out(found, FOLDER, share, seed=0)
    assert alone == [60]
    assert {label for _, label in train} == set(range(61))
    assert {label for _, label in val} == set(range(60))


def make(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True)


@pytest.mark.parametrize(
    ("folders", "train", "val"),
    [
        (("train/a", "val/a"), "train", "val"),
        (("train/a",), "train", None),
        (("train/a", "test/a"), "train", None),
        (("a", "b"), "", None),
    ],
)
def test_layouts(tmp_path, folders, train, val):
    make(tmp_path, *folders)
    assert training_and_validation(tmp_path) == (tmp_path / train, None if val is None else tmp_path / val)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("val/a",), "has val but no folder train; expected train/CLASS/IMAGE and val"),
        (("train/a", "valid/a"), "has train and valid, but no val; rename valid to val"),
        (("a", "test/a"), "has test/CLASS but no train; move"),
    ],
)
def test_unclear_layouts(tmp_path, folders, words):
    make(tmp_path, *folders)
    with pytest.raises((OSError, ValueError), match=words):
        training_and_validation(tmp_path)


def test_a_file_in_place_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist; expected a folder with train/CLASS/IMAGE"):
        training_and_validation(tmp_path / "none")
    make(tmp_path, "train/a")
    (tmp_path / "val").write_text("")
    with pytest.raises(NotADirectoryError, match="val is a file"):
        training_and_validation(tmp_path)

import numpy as np
import pytest
from PIL import Image

from vssm.data.files import image_files
from vssm.data.imagefolder import ImageFolder
from vssm.data.preprocess import Preprocess


def make_image(path, value=100, size=(8, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    for name, value in (("cat", 10), ("dog", 20)):
        for number in (2, 1):
            make_image(tmp_path / name / f"{number}.png", value + number)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image either")
    return tmp_path


def test_samples_are_sorted_and_labelled(folder):
    dataset = ImageFolder(folder, lambda image: np.asarray(image)[0, 0, 0])
    assert dataset.classes == ("cat", "dog")
    assert [dataset[index] for index in range(4)] == [(11, 0), (12, 0), (21, 1), (22, 1)]


def test_known_classes_fix_the_labels(folder):
    dataset = ImageFolder(folder, lambda image: None, classes=("ant", "cat", "dog"))
    assert [label for _, label in dataset.samples] == [1, 1, 2, 2]


def test_nested_and_upper_case_names_are_found(folder):
    make_image(folder / "cat" / "deep" / "LAST.PNG")
    assert [path.name for path in image_files(folder / "cat")] == ["1.png", "2.png", "LAST.PNG"]


@pytest.mark.parametrize(
    ("prepare", "error", "words"),
    [
        (lambda f: f / "missing", FileNotFoundError, ["missing", "does not exist"]),
        (lambda f: f / "cat" / "1.png", NotADirectoryError, ["1.png", "is a file"]),
        (lambda f: f / "cat", ValueError, ["no class folders", "CLASS/IMAGE"]),
        (lambda f: (f / "empty").mkdir() or f, ValueError, ["empty", "holds no images"]),
        (lambda f: (f / "caf\udce9").mkdir() or f, ValueError, ["caf\\xe9: the name of a class", "rename"]),
        (lambda f: (f / "two\nlines").mkdir() or f, ValueError, ["two\\nlines: the name of a class", "rename"]),
    ],
    ids=["missing", "file", "no classes", "empty class", "class not in Unicode", "class of two lines"],
)
def test_bad_folders(folder, prepare, error, words):
    with pytest.raises(error) as raised:
        ImageFolder(prepare(folder), lambda image: None)
    assert all(word in str(raised.value) for word in words)


def test_unknown_validation_class_is_named(folder):
    with pytest.raises(ValueError, match="has dog, which the training classes do not include"):
        ImageFolder(folder, lambda image: None, classes=("cat", "horse"))


def test_preprocess_keeps_its_values_as_plain_types():
    preprocess = Preprocess((3, 48, 40), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9)
    plain = preprocess.as_dict()
    assert plain["mean"] == [0.1, 0.2, 0.3]
    assert Preprocess.from_dict(plain) == preprocess
    image = preprocess.transform()(Image.new("RGB", (100, 80), (255, 255, 255)))
    assert image.shape == (3, 48, 40)
    assert image[:, 0, 0].tolist() == pytest.approx([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6])


NFC, NFD = "caf\u00e9", "cafe\u0301"


def _folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "a.png")
    return root


@pytest.mark.parametrize("trained, validated", [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_accents_of_class_names_are_compared_however_they_are_written(tmp_path, trained, validated):
    train = ImageFolder(_folders(tmp_path / "train", "zoo", trained, "cafz"), lambda image: image)
    assert train.classes == ("cafz", trained, "zoo")  # the order of NFC, the names as they are
    val = ImageFolder(_folders(tmp_path / "val", "zoo", validated), lambda image: image, classes=train.classes)
    assert val.classes == train.classes
    assert [label for _, label in val.samples] == [1, 2]
    assert val.samples[0][0].parent.name == validated


def test_the_fingerprint_is_that_of_the_names(tmp_path):
    one = ImageFolder(_folders(tmp_path / "one", NFC, "a"), lambda image: image)
    other = ImageFolder(_folders(tmp_path / "other", NFD, "a"), lambda image: image)
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != ImageFolder(_folders(tmp_path / "b", "cafe", "a"), lambda image: image).fingerprint()


def test_one_class_in_two_spellings_is_refused(tmp_path):
    _folders(tmp_path, NFC, NFD)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system has one name for both")
    with pytest.raises(ValueError, match=r"in two ways \('caf.*' and 'caf.*'\); put"):
        ImageFolder(tmp_path, lambda image: image)

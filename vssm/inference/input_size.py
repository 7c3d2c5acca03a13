"""A trained classifier on images of another size, its weights as they are, and images with labels for it."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from timm.data.imagenet_info import ImageNetInfo
from torch.utils.data import Dataset

from vssm._words import spelled
from vssm.data.digits import Digits
from vssm.data.imagefolder import ImageFolder, some
from vssm.data.preprocess import Preprocess
from vssm.data.splits import Splits
from vssm.inference.checkpoint import at_size
from vssm.inference.predictor import Predictor
from vssm.settings import DataSettings

__all__ = ["at_input_size", "labelled"]


def at_input_size(predictor: Predictor, size: int) -> Predictor:
    """A copy of the classifier for images of size x size pixels, without any training.

    timm's networks of a fixed size are changed by their own `set_input_size`: position embeddings are resized
    (DeiT, ViT), and windows grow with the image, for Swin at 224 to a side of size/32, as in VMamba's table 9. The
    other networks take any size as they are.

    Raises ValueError that names the network when it cannot take images of this size.
    """
    if size < 1:
        raise ValueError(f"the image size must be at least 1, got {size}")
    preprocess = at_size(predictor.preprocess, size)
    model = copy.deepcopy(predictor.model)
    resize = getattr(model, "set_input_size", None)
    if resize is not None and preprocess.input_size != predictor.preprocess.input_size:
        try:
            with warnings.catch_warnings():  # torch's, about how timm interpolates tables of Swin's windows
                warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")
                resize(img_size=(size, size))
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{predictor.name} cannot be changed to images of {size}x{size}: {reason}") from error
    predictor.task.check_model(model.eval(), predictor.name, preprocess.input_size)
    return replace(predictor, model=model, preprocess=preprocess)


def labelled(predictor: Predictor, data: DataSettings) -> Splits:
    """Training and validation images as the classifier takes them, without augmentation, with its own labels.

    A folder may have some of the classes only, by their names; for a network with ImageNet's 1000 classes its folders
    are named by WordNet, n01440764 and so on, or by timm's descriptions.

    Raises OSError or ValueError when images are not there, or of classes that the network does not know.
    """
    if predictor.task.name != "classification":
        raise ValueError(f"{predictor.name} was trained for {predictor.task.name}; a classifier is needed")
    preprocess = predictor.preprocess
    assert isinstance(preprocess, Preprocess)
    data = replace(data, augment=False, image_size=preprocess.input_size[1])
    splits = predictor.task.load_splits(data, preprocess)
    if splits.preprocess.channels != preprocess.channels:
        raise ValueError(
            f"{predictor.name} takes images of {preprocess.channels} channels, these have {splits.preprocess.channels}"
        )
    places = _places(predictor, splits.classes)
    train, val = (None if part is None else _relabelled(part, places) for part in (splits.train, splits.val))
    assert val is not None
    return replace(splits, train=train, val=val, classes=predictor.classes, preprocess=_own(splits, preprocess))


def _own(splits: Splits, preprocess: Preprocess) -> Preprocess:
    """The digits come normalised by their own mean; everything else as the network wants it."""
    return cast(Preprocess, splits.preprocess) if isinstance(splits.val, Digits) else preprocess


def _places(predictor: Predictor, names: Sequence[str]) -> list[int]:
    """The output of the network for each of the names."""
    known = {spelled(name): place for place, name in enumerate(predictor.classes)}
    if len(predictor.classes) == 1000 and spelled(names[0]) not in known:
        info: Any = ImageNetInfo()
        known = {info.index_to_label_name(place): place for place in range(1000)}
    unknown = [name for name in names if spelled(name) not in known]
    if unknown:
        raise ValueError(
            f"the images are of classes that {predictor.name} does not know: {some(unknown)}; it knows "
            f"{some(predictor.classes)}"
        )
    return [known[spelled(name)] for name in names]


def _relabelled(images: Dataset[Any], places: Sequence[int]) -> Dataset[Any]:
    if list(places) == list(range(len(places))):
        return images
    if not isinstance(images, ImageFolder):
        raise ValueError("the classes of the images stand in another order than the network's; take a folder of images")
    return images.with_samples([(path, places[label]) for path, label in images.samples], images.transform)

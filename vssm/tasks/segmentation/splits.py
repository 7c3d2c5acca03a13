"""From data settings to the images and masks of a segmentation."""

from pathlib import Path

from vssm._words import same_names
from vssm.data.imagefolder import some
from vssm.data.keep_ratio import KeepRatio
from vssm.data.layouts import find_layout
from vssm.data.mask_classes import MaskClasses
from vssm.data.masks import MaskTransform, SemanticMasks, classes_of
from vssm.data.splits import Splits, held_out_note
from vssm.settings import DataSettings


def load_masks(
    settings: DataSettings,
    preprocess: KeepRatio,
    train_transform: MaskTransform,
    evaluated: MaskTransform,
    classes: tuple[str, ...] | None,
    split: str,
) -> Splits:
    """As `vssm.data.splits.load_splits`, of images with masks in the layouts that `vssm.data.layouts` knows.

    Raises OSError or ValueError with the remedy when images or masks are not there or not right.
    """
    if settings.root is None:
        raise ValueError("no images given: --data.root FOLDER with images/train and masks/train, and classes.txt")
    layout = find_layout(settings.root, "segmentation")
    file = None if settings.label_file is None else Path(settings.label_file)
    meaning = classes_of(layout, file, settings.reduce_zero_label or None)
    if classes is not None:
        _check_classes(meaning, classes, layout.root)
    if classes is not None and (split == "test" or "val" in layout.splits):
        val = SemanticMasks.of(layout, split, evaluated, meaning)
        return Splits(None, val, meaning.names, preprocess, val.notes)
    if split == "test":
        raise FileNotFoundError(f"{layout.root} has no test split; `vssm validate` takes the validation images")
    train = SemanticMasks.of(layout, "train", train_transform, meaning)
    if "val" in layout.splits:
        val = SemanticMasks.of(layout, "val", evaluated, meaning)
        return Splits(train, val, meaning.names, preprocess, train.notes)
    kept, held = train.hold_out(settings.val_share, settings.split_seed)
    if not held:
        raise ValueError(f"{layout.root} has one image: none can be held out to validate; add images")
    return Splits(
        train.with_images(kept, train_transform) if classes is None else None,
        train.with_images(held, evaluated),
        meaning.names,
        preprocess,
        (*train.notes, held_out_note(settings, layout.root)),
    )


def _check_classes(meaning: MaskClasses, classes: tuple[str, ...], root: Path) -> None:
    if same_names(meaning.names, classes):
        return
    differing = [name for name in (*classes, *meaning.names) if (name in classes) != (name in meaning.names)]
    how = f"{some(differing)} on one side only" if differing else "in another order"
    raise ValueError(
        f"the checkpoint was trained on {len(classes)} classes, the masks in {root} are of {len(meaning.names)} "
        f"({how}); name them as they were with --data.label_file"
    )

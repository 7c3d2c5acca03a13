"""From data settings to the data sets of a detector."""

from pathlib import Path

import numpy as np

from vssm.data.coco import CocoInstances, ObjectTransform
from vssm.data.keep_ratio import KeepRatio
from vssm.data.layouts import Layout, find_layout
from vssm.data.splits import Splits, held_out_note
from vssm.settings import DataSettings


def load_objects(
    settings: DataSettings,
    preprocess: KeepRatio,
    train_transform: ObjectTransform,
    evaluated: ObjectTransform,
    classes: tuple[str, ...] | None,
    split: str,
) -> Splits:
    """As `vssm.data.splits.load_splits`, of COCO jsons.

    Raises OSError or ValueError with the remedy when images or annotations are not there or not right.
    """
    if settings.root is None:
        raise ValueError("no images given: --data.root FOLDER with images and annotations/instances_train.json")
    layout = find_layout(settings.root, "detection")
    if split == "test" and "test" not in layout.splits:
        raise FileNotFoundError(f"{layout.root} has no test split; `vssm validate` takes the validation images")
    if classes is not None and (split == "test" or "val" in layout.splits):
        val = _dataset(layout, split, settings.val_annotations if split == "val" else None, evaluated, classes)
        return Splits(None, val, classes, preprocess, val.notes)
    train = _dataset(layout, "train", settings.train_annotations, train_transform, classes, annotated=True)
    if "val" in layout.splits:
        val = _dataset(layout, "val", settings.val_annotations, evaluated, train.classes)
        return Splits(train, val, train.classes, preprocess, (*train.notes, *val.notes))
    whole = _dataset(layout, "train", settings.train_annotations, evaluated, classes)
    kept, held = whole.hold_out(settings.val_share, settings.split_seed)
    if not held:
        raise ValueError(f"{layout.root} has one image: none can be held out to validate; add images")
    filled = np.isin(whole.images[np.asarray(kept)], train.images)
    return Splits(
        whole.with_images(np.asarray(kept)[filled], train_transform) if classes is None else None,
        whole.with_images(held, evaluated),
        whole.classes,
        preprocess,
        (*whole.notes, held_out_note(settings, layout.root)),
    )


def _dataset(
    layout: Layout,
    split: str,
    json: str | None,
    transform: ObjectTransform,
    classes: tuple[str, ...] | None,
    annotated: bool = False,
) -> CocoInstances:
    source = layout.splits.get(split)
    if source is None or (json is None and source.annotations is None):
        raise FileNotFoundError(
            f"{layout.root} has no {split} images with annotations; found {', '.join(layout.splits) or 'none'}"
        )
    annotations = Path(json) if json is not None else source.annotations
    assert annotations is not None
    return CocoInstances(annotations, source.images, transform, classes=classes, annotated=annotated)

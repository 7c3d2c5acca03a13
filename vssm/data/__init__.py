"""Images and their labels, torchvision-shaped: data sets, preprocessing, augmentation, the order of samples."""

# Modules, imported when asked for.
# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "augment",
    "batches",
    "coco",
    "coco_index",
    "digits",
    "files",
    "image",
    "imagefolder",
    "inspect_annotated",
    "inspection",
    "jsonstream",
    "keep_ratio",
    "layouts",
    "loaders",
    "mask_classes",
    "masks",
    "padded",
    "parallel",
    "preprocess",
    "rle",
    "sampling",
    "shapes",
    "sources",
    "split",
    "splits",
    "transforms",
    "unreadable",
    "video",
]

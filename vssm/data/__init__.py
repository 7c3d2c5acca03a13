"""Images and their labels, torchvision-shaped: data sets, preprocessing, augmentation, the order of samples."""

# Modules, imported when asked for.
# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "augment",
    "batches",
    "digits",
    "files",
    "image",
    "imagefolder",
    "inspection",
    "keep_ratio",
    "loaders",
    "padded",
    "parallel",
    "preprocess",
    "sampling",
    "sources",
    "split",
    "splits",
    "transforms",
    "unreadable",
]

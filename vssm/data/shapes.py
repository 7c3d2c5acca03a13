"""Generated images of overlapping textured shapes, for trying detection and segmentation on real files in seconds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vssm.data import rle

__all__ = ["CLASSES", "Scene", "Shape", "draw_scene", "write_crops", "write_shapes"]

CLASSES = ("disc", "square", "triangle", "star", "ring")
_HOLE = 0.5  # of the ring, as a share of its radius
_SHOWN = 0.4  # least share of a shape that stays visible
# The colour of each class in the easier set.
_OWN = {"disc": (225, 60, 60), "square": (60, 90, 225), "triangle": (235, 205, 50), "star": (60, 190, 80),
        "ring": (195, 70, 215)}  # fmt: skip
_CONTRAST = 70.0  # least distance of the mean colours of shape and background, levels of 255 summed over RGB

Colours = NDArray[np.float64]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    label: position in CLASSES
    mask (H, W): the pixels where it is seen
    polygon: its outline [x1, y1, ...] where that is the mask to the pixel: nothing hides a part, and there is no hole
    """

    label: int
    mask: rle.Mask
    polygon: list[float] | None


@dataclass(frozen=True)
class Scene:
    """pixels (H, W, 3) uint8, shapes from front to back"""

    pixels: NDArray[np.uint8]
    shapes: tuple[Shape, ...]

    def semantic(self) -> NDArray[np.uint8]:
        """(H, W): 0 for the background, 1 + label for shapes."""
        labels = np.zeros(self.pixels.shape[:2], np.uint8)
        for shape in self.shapes:
            labels[shape.mask] = 1 + shape.label
        return labels


def draw_scene(
    generator: np.random.Generator,
    height: int,
    width: int,
    count: tuple[int, int] = (2, 7),
    radius: tuple[float, float] = (0.1, 0.26),
    label: int | None = None,
    own_colors: bool = False,
) -> Scene:
    """Shapes that hide each other in part, on a textured background.

    `count`: the fewest and the most shapes; `radius`: as a share of the shorter side; `label`: of all shapes, drawn for
    each when not given. At least 40 % of a shape is visible. `own_colors`: each class has a colour of its own, on grey;
    without, shape alone tells the classes apart.
    """
    grey = np.full(3, generator.uniform(70, 190)) if own_colors else None
    background = _texture(generator, height, width, grey)
    pixels = background.copy()
    behind = np.ones((height, width), np.bool_)  # where no shape is yet; they are placed from front to back
    shapes: list[Shape] = []
    wanted = int(generator.integers(count[0], count[1] + 1))
    for _ in range(20 * wanted):
        if len(shapes) == wanted:
            break
        drawn = int(generator.integers(len(CLASSES))) if label is None else label
        full, polygon, area = _place(generator, drawn, height, width, radius)
        mask = full & behind
        if mask.sum() < max(_SHOWN * area, 24):
            continue
        hidden = bool(mask.sum() < full.sum())
        shapes.append(Shape(drawn, mask, None if hidden else polygon))
        own = np.asarray(_OWN[CLASSES[drawn]], np.float64) if own_colors else None
        _paint(generator, pixels, mask, background.mean((0, 1)), own)
        behind &= ~full
    noise = generator.normal(0.0, 4.0, pixels.shape)
    return Scene(np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8), tuple(shapes))


def write_shapes(
    root: Path,
    train: int = 400,
    val: int = 100,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
    own_colors: bool = False,
) -> dict[str, int]:
    """Writes `train` and `val` images with sides drawn from `size`; the same for the same arguments.

    `root` gets images/SPLIT/*.png, annotations/instances_SPLIT.json (COCO: polygons where they are exact, RLE else),
    masks/SPLIT/*.png (semantic, 0 is background) and classes.txt (the names for the masks). `progress` is called after
    each image. `own_colors` as in `draw_scene`. Returns the number of objects of each split.
    """
    objects = {"train": 0, "val": 0}
    for split_number, (split, images) in enumerate((("train", train), ("val", val))):
        coco: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(CLASSES)],
        }
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(images):
            generator = np.random.default_rng((seed, split_number, number))
            height, width = (int(side) for side in generator.integers(size[0], size[1] + 1, 2))
            scene = draw_scene(generator, height, width, own_colors=own_colors)
            name = f"{number:06d}.png"
            Image.fromarray(scene.pixels).save(root / "images" / split / name, compress_level=1)
            _palette_image(scene.semantic()).save(root / "masks" / split / name)
            coco["images"].append({"id": 1 + number, "file_name": name, "height": height, "width": width})
            for shape in scene.shapes:
                coco["annotations"].append(_annotation(shape, 1 + len(coco["annotations"]), 1 + number))
            progress()
        objects[split] = len(coco["annotations"])
        (root / "annotations").mkdir(exist_ok=True)
        with (root / "annotations" / f"instances_{split}.json").open("w", encoding="utf-8") as file:
            json.dump(coco, file)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("background", *CLASSES)), encoding="utf-8")
    return objects


def write_crops(
    root: Path,
    train: int = 400,
    val: int = 100,
    size: int = 64,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """A folder for classification: root/SPLIT/CLASS/*.png of `size` pixels, one shape each; `train` and `val` are the
    numbers of images of a class."""
    for split_number, (split, images) in enumerate((("train", train), ("val", val))):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                generator = np.random.default_rng((seed, 2 + split_number, label, number))
                scene = draw_scene(generator, size, size, (1, 1), (0.25, 0.45), label)
                Image.fromarray(scene.pixels).save(folder / f"{number:06d}.png", compress_level=1)
                progress()


def _annotation(shape: Shape, identity: int, image: int) -> dict[str, Any]:
    encoded = rle.encode(shape.mask)
    return {
        "id": identity,
        "image_id": image,
        "category_id": 1 + shape.label,
        "bbox": list(rle.box(encoded)),
        "area": rle.area(encoded),
        "iscrowd": 0,
        "segmentation": encoded if shape.polygon is None else [shape.polygon],
    }


def _place(
    generator: np.random.Generator, label: int, height: int, width: int, radius: tuple[float, float]
) -> tuple[rle.Mask, list[float] | None, float]:
    """A shape anywhere: its mask within the image, its outline where that is the mask, and its whole area in pixels."""
    size = min(height, width) * generator.uniform(*radius)
    centre = np.array([generator.uniform(0.4 * size, side - 0.4 * size) for side in (width, height)])
    turn, squeeze = generator.uniform(0, 2 * np.pi), generator.uniform(0.75, 1.0)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def placed(outline: Points) -> Points:
        return np.round(outline * (size, size * squeeze) @ turned.T + centre, 2)

    outline = placed(_OUTLINES[CLASSES[label]])
    mask, area = _filled(outline, height, width), _area(outline)
    if CLASSES[label] == "ring":
        hole = placed(_OUTLINES["ring"] * _HOLE)
        return mask & ~_filled(hole, height, width), None, area - _area(hole)
    inside = (outline >= 0).all() and (outline <= (width, height)).all()
    return mask, outline.ravel().tolist() if inside else None, area


def _filled(outline: Points, height: int, width: int) -> rle.Mask:
    return rle.decode(rle.of_segmentation([outline.ravel().tolist()], height, width))


def _area(outline: Points) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _corners(count: int, inner: float = 1.0) -> Points:
    """Points on the unit circle; every other one at `inner` times the radius."""
    angles = np.arange(count) * (2 * np.pi / count)
    radii = np.where(np.arange(count) % 2, inner, 1.0)
    return radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)


_OUTLINES: dict[str, Points] = {
    "disc": _corners(48),
    "square": _corners(4),
    "triangle": _corners(3),
    "star": _corners(10, 0.45),
    "ring": _corners(48),
}


def _paint(
    generator: np.random.Generator, pixels: Colours, mask: rle.Mask, background: Colours, own: Colours | None
) -> None:
    """Fills `mask` with a texture whose mean colour differs from that of the background."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = int(rows[-1] + 1 - rows[0]), int(columns[-1] + 1 - columns[0])
    texture = _texture(generator, height, width, own)
    for _ in range(20):
        if np.abs(texture.mean((0, 1)) - background).sum() >= _CONTRAST:
            break
        texture = _texture(generator, height, width, own)
    pixels[window][mask[window]] = texture[mask[window]]


def _texture(generator: np.random.Generator, height: int, width: int, around: Colours | None = None) -> Colours:
    """(height, width, 3), levels of 0 to 255: two colours mixed by a pattern, the first of them any or one near
    `around`."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    turn, period = generator.uniform(0, np.pi), generator.uniform(6, 20)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    kind = int(generator.integers(4))
    if kind == 0:  # a slope
        mixed = along - along.min()
        mixed = mixed / max(mixed.max(), 1.0)
    elif kind == 1:  # stripes
        mixed = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif kind == 2:  # a chessboard
        mixed = (np.floor(along / period) + np.floor(across / period)) % 2
    else:  # clouds
        coarse = generator.random((2 + height // 12, 2 + width // 12)).astype(np.float32)
        clouds = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        mixed = np.clip(np.asarray(clouds, np.float64), 0, 1)
    first = generator.uniform(20, 235, 3) if around is None else around + generator.uniform(-20, 20, 3)
    reach = 70 if around is None else 30
    second = np.clip(first + generator.uniform(-reach, reach, 3), 0, 255)
    return first + mixed[..., None] * (second - first)


def _palette_image(labels: NDArray[np.uint8]) -> Image.Image:
    """An image of indices whose palette makes the classes visible."""
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 230, 60, 60, 60, 160, 230, 240, 200, 40, 90, 190, 90, 180, 90, 220])
    return image

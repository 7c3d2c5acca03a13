"""Boxes, masks and labels drawn on an image."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vssm.tasks.colors import Color, class_color

Shape = tuple[Sequence[float], str, int, np.ndarray | None]

STRENGTH = 0.45  # of a mask's colour over the image


def draw_objects(image: Image.Image, shapes: Iterator[Shape] | Sequence[Shape]) -> Image.Image:
    """A copy of an image with objects on it, the first one on top.

    shapes: box (x1, y1, x2, y2) in pixels, text, label (for the colour), and mask (H, W) bool or None, of each.
    """
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    drawn: list[tuple[Sequence[float], str, Color]] = []
    for box, text, label, mask in shapes:
        color = class_color(label)
        if mask is not None:
            pixels[mask] += STRENGTH * (np.asarray(color, np.float32) - pixels[mask])
            edge = mask & ~_inner(mask)
            pixels[edge] = color
        drawn.append((box, text, color))
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    side = min(picture.size)
    width = max(1, round(side / 300))
    font = ImageFont.load_default(max(10, round(side / 45)))
    for box, _, color in reversed(drawn):
        x1, y1, x2, y2 = box
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)
    for box, text, color in reversed(drawn):
        _write(pen, picture.size, box, text, color, font)
    return picture


def _inner(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are in the mask too."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _write(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], box: Sequence[float], text: str, color: Color, font: object
) -> None:
    """Above the box, or inside where there is no room; never beyond the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)  # type: ignore[arg-type]
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0, box[0]), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else min(max(0, box[1]), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    pen.text((x + 2 - left, y + 2 - top), text, fill="white" if dark else "black", font=font)  # type: ignore[arg-type]

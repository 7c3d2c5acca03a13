"""A label map laid over its image, with a legend of the classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vssm.data.mask_classes import IGNORED
from vssm.tasks.colors import Color, class_color

STRENGTH = 0.5  # of a class's colour over the image
SMALL = 480  # a picture whose longer side is smaller is enlarged, for the legend to be readable
SHOWN = 24  # classes in the legend
UNLABELLED: Color = (96, 96, 96)


def shares(labels: NDArray[np.uint8]) -> list[tuple[int, float]]:
    """Labels and their share of the pixels, the largest first; IGNORED is among them."""
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    present = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label]]
    return [(label, float(counts[label] / labels.size)) for label in present]


def draw_labels(image: Image.Image, labels: NDArray[np.uint8], classes: Sequence[str]) -> Image.Image:
    """A picture of an image with its labels (H, W), and below it the classes with their shares.

    A small image is enlarged by a whole factor. Pixels of 255 are grey and called unlabelled.
    """
    if labels.shape != (image.height, image.width):
        raise ValueError(f"labels are {list(labels.shape)} for an image of {image.height} x {image.width}")
    colors = np.array([class_color(label) for label in range(IGNORED)] + [UNLABELLED], np.float32)
    factor = max(1, -(-SMALL // max(image.size)))
    labels = labels.repeat(factor, 0).repeat(factor, 1)
    enlarged = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    pixels = np.asarray(enlarged, np.float32)
    pixels = pixels + STRENGTH * (colors[labels] - pixels)
    edges = _edges(labels)
    pixels[edges] = colors[labels][edges]
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return _with_legend(picture, [_entry(label, share, classes) for label, share in shares(labels)])


def _entry(label: int, share: float, classes: Sequence[str]) -> tuple[Color, str]:
    if label == IGNORED:
        return UNLABELLED, f"unlabelled {share:.1%}"
    return class_color(label), f"{classes[label]} {share:.1%}"


def _edges(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels that have another label than the one to the right or below."""
    edges = np.zeros(labels.shape, np.bool_)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    return edges


def _with_legend(picture: Image.Image, entries: list[tuple[Color, str]]) -> Image.Image:
    if len(entries) > SHOWN:
        entries = [*entries[:SHOWN], ((255, 255, 255), f"and {len(entries) - SHOWN} more")]
    size = max(13, round(max(picture.size) / 50))
    font, line, gap = ImageFont.load_default(size), round(1.6 * size), round(0.5 * size)
    measured = ImageDraw.Draw(picture)
    placed: list[tuple[int, int, Color, str]] = []
    x, y = gap, picture.height + gap
    for color, text in entries:
        text = _shortened(measured, text, font, picture.width - 3 * gap - size)
        width = size + gap + round(measured.textlength(text, font=font)) + 2 * gap
        if x > gap and x + width > picture.width:
            x, y = gap, y + line
        placed.append((x, y, color, text))
        x += width
    whole = Image.new("RGB", (picture.width, y + line), "white")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for x, y, color, text in placed:
        pen.rectangle((x, y, x + size - 1, y + size - 1), fill=color)
        pen.text((x + size + gap, y + size / 2), text, fill="black", font=font, anchor="lm")
    return whole


def _shortened(pen: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """The text, without its middle where it would not fit."""
    if pen.textlength(text, font=font) <= width:
        return text
    kept = len(text)
    while kept > 2 and pen.textlength(_without_middle(text, kept), font=font) > width:
        kept -= 1
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"

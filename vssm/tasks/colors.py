"""The colour of a class in every picture."""

import colorsys

Color = tuple[int, int, int]

# Saturation and value of eight hues each, in turn.
_SHADES = ((0.85, 0.95), (0.55, 0.85), (0.9, 0.6))


def class_color(label: int) -> Color:
    """The same for a label in every picture; neighbouring labels differ in hue by the golden angle."""
    saturation, value = _SHADES[label // 8 % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((0.57 + label * 0.381966) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)

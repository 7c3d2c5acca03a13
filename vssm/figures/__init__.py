"""Every picture, in one style: data in, a file or inline SVG out. Nothing here trains, reads runs or measures.

PNG: `demo`, `comparison`, `tables`, `inside` (also PDF and SVG), drawn by matplotlib as `style` says. For the report's
page, coloured by its style sheet: `charts`, `matrix`. Importing this package is light.
"""

__all__ = ["charts", "comparison", "curves", "demo", "inside", "matrix", "resolution", "style", "tables"]

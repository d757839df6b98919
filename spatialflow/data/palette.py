"""Fixed colours for classes whose JSON gives none."""

import colorsys

# The conjugate of the golden ratio: successive multiples spread evenly over the hue circle, however
# many are taken.
_HUE_STEP = 0.618033988749895
_SATURATION_AND_VALUE = ((0.65, 0.95), (0.85, 0.70), (0.45, 0.85), (0.90, 0.50))

THINGS_COLOR = (82, 18, 128)
"""Colour of label 0 ("things") in a semantic map, the one Detectron2 uses."""


def palette_color(index: int) -> tuple[int, int, int]:
    """Returns the fixed colour of a class.

    Args:
        index: position of the class in the list of categories, 0 or more.

    Returns:
        (red, green, blue), each 0 to 255. Neighbouring indices differ clearly.
    """
    hue = (0.03 + index * _HUE_STEP) % 1.0
    saturation, value = _SATURATION_AND_VALUE[index % len(_SATURATION_AND_VALUE)]
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue

"""A palette of 74 colours that are easy to tell apart."""

import colorsys
import random

import numpy as np

# Hue by golden-ratio steps. 74 as upstream: the size decides how much of NumPy's random stream a draw takes.
_HSV = [(i * 0.618034 % 1, (1.0, 0.75, 0.5)[i % 3], (1.0, 0.8)[i // 3 % 2]) for i in range(74)]
_PALETTE = np.array([colorsys.hsv_to_rgb(*hsv) for hsv in _HSV], dtype=np.float32)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Float32 (74, 3) in [0, maximum], BGR unless `rgb`."""
    return (_PALETTE if rgb else _PALETTE[:, ::-1]) * np.float32(maximum)


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One colour (3,), by one np.random.randint."""
    return colormap(rgb, maximum)[np.random.randint(0, len(_PALETTE))]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """N <= 74 different colours, by Python's `random`."""
    return random.sample(list(colormap(rgb, maximum)), N)

"""Colours of the figures: even in lightness, cyclic for phases, diverging about zero for strain.

What is not signed goes from dark to light in even steps (viridis, cividis), and so does a grey print of it;
phases go round a circle of one lightness, for no phase is more than another; of strain, the sign is blue or
red and the size is dark, so that a grey print still tells how much, though not which way.
"""

import numpy as np
from matplotlib.colors import ListedColormap

INK, PALE, ACCENT, SECOND = "#22262b", "#6d747c", "#b3432b", "#2f6690"
AMPLITUDE, STRAIN, COUNTS = "viridis", "RdBu_r", "cividis"


def cyclic_colours(count: int = 256) -> ListedColormap:
    """Return a cyclic colour map of even lightness; blue, its middle, is phase zero.

    A circle in the OKLab space (Ottosson 2020), where equal angles look equally different.
    """
    hue = np.radians(255 + 360 * (np.arange(count) + 0.5) / count - 180)
    lab = np.stack([np.full(count, 0.72), 0.125 * np.cos(hue), 0.125 * np.sin(hue)])
    cones = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_rgb @ (cones @ lab) ** 3).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return ListedColormap(encoded.T, name="cdinn-phase")

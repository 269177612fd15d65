"""Which grid is worked on: peak at the centre, coarse levels first; and the way back to the volume's own."""

from collections.abc import Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

# A crystal phased on a coarse level must still be this many voxels across: fewer can't hold its phase.
ACROSS = 11
# The smallest level. Below it an iteration costs next to nothing already.
FLOOR = 32


def window_on_grid(shape: Sequence[int], inner: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a box of shape ``inner`` whose n // 2 lies on that of ``shape``."""
    return tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(shape, inner, strict=True))


def coarse_levels(shape: Sequence[int], extent: Sequence[float]) -> list[tuple[int, int, int]]:
    """Return the shapes of the reciprocal-space windows to phase in turn, coarse to fine.

    The central part of a diffraction pattern is the pattern of the same crystal seen blurred, on as many
    fewer voxels: cheaper by its volume, and with fewer ways to stagnate. Each level doubles the one
    before it at most.

    Parameters
    ----------
    shape
        The whole grid, the last level.
    extent
        The crystal's extent along each axis, in voxels of the whole grid.

    Returns
    -------
    list of tuple
        Even sizes with small prime factors, except for the last, which is ``shape``.
    """
    smallest = []
    for n, size in zip(shape, extent, strict=True):
        wanted = max(FLOOR, ACROSS * n / max(size, 1.0))
        smallest.append(min(n, _even_fast(int(np.ceil(wanted)))))
    levels = [tuple(shape)]
    while any(n > m for n, m in zip(levels[0], smallest, strict=True)):
        levels.insert(0, tuple(max(m, _even_fast(n // 2)) for n, m in zip(levels[0], smallest, strict=True)))
        if levels[0] == levels[1]:
            return levels[1:]
        # A last step that saves less than half of the voxels isn't worth its iterations.
        if np.prod(levels[0]) > 0.5 * np.prod(levels[1]):
            levels.pop(0)
            break
    return [(int(a), int(b), int(c)) for a, b, c in levels]


def _even_fast(n: int) -> int:
    n += n % 2
    while scipy.fft.next_fast_len(n) != n or n % 2:
        n += 2
    return n


def held_out_voxels(
    valid: NDArray[np.bool_], share: float, core: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a random choice of the valid voxels to keep from the fit, for judging it.

    Parameters
    ----------
    valid
        bool (n0, n1, n2), zero frequency at n // 2.
    share
        Of the valid voxels.
    core
        Radius around the centre, as a share of each axis' half-width, from which none is taken: the
        central fringe holds the crystal's volume and mean phase, and can't be predicted by its neighbours.
    rng
        Where chance comes from.
    """
    chosen = rng.random(valid.shape, dtype=np.float32) < share
    axes = [(np.arange(n) - n // 2) / (n / 2) for n in valid.shape]
    far = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 > core**2
    return chosen & valid & far


def signal_window(
    intensity: NDArray[np.float32], centre: Sequence[float], most: int = 128
) -> tuple[int, int, int]:
    """Return the shape of the box around the peak that holds all that can be told from noise.

    Parameters
    ----------
    intensity
        Counts, background subtracted, float32 (n0, n1, n2).
    centre
        The peak's voxel.
    most
        Largest side.

    Returns
    -------
    tuple
        Even sizes with small prime factors, at least `FLOOR`.
    """
    # A mean of 3x3x3 voxels over one count is five sigma above an empty detector.
    smooth = uniform_filter(intensity, 3)
    sides = []
    for axis, place in enumerate(centre):
        profile = smooth.max(axis=tuple(a for a in range(3) if a != axis))
        reach = np.abs(np.flatnonzero(profile > 1.0) - place)
        wanted = 2 * int(np.ceil(reach.max())) if len(reach) else 0
        sides.append(_even_fast(min(max(wanted, FLOOR), most)))
    return sides[0], sides[1], sides[2]

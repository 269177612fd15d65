"""Where a phase winds: the lines of dislocations, round which no displacement is single-valued.

Round a closed loop of voxels the wrapped steps of a smooth phase add up to zero, round a dislocation to a
multiple of 2 pi, Q . b. The smallest loops are those of four voxels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

# A core diffracts little and leaves a tunnel in the support; closing by so many voxels fills it.
CORE = 2
# Over which the density about a core is carried into it, voxels.
BLUR = 1.0


def dislocation_lines(density: NDArray[np.complex64], support: Mask) -> Mask:
    """Return the voxels that a dislocation's line passes: the corners of each loop that winds.

    Parameters
    ----------
    density
        complex64 (rocking, row, column).
    support
        Where the crystal is, bool, the same shape.

    Returns
    -------
    numpy.ndarray
        bool; voxels of a core that the support leaves out are among them.
    """
    touched = np.zeros(support.shape, dtype=np.bool_)
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    # Closing erodes what it dilated, which needs room.
    inside = np.pad(support[box], CORE + 1)
    whole = np.asarray(ndimage.binary_closing(inside, iterations=CORE), dtype=np.bool_)
    turns = _filled(np.pad(density[box], CORE + 1), inside, whole)
    winding = np.zeros(inside.shape, dtype=np.bool_)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        corners = [turns, _next(turns, first), _next(_next(turns, first), second), _next(turns, second)]
        total = sum(
            np.angle(after * before.conj())
            for before, after in zip(corners, [*corners[1:], corners[0]], strict=True)
        )
        # What is not known is zero, and any step to it too.
        known = np.logical_and.reduce([corner != 0 for corner in corners])
        wound = known & (np.abs(total) > np.pi)
        across = np.roll(wound, 1, first)
        winding |= wound | across | np.roll(wound, 1, second) | np.roll(across, 1, second)
    margin = (slice(CORE + 1, -CORE - 1),) * 3
    touched[box] = winding[margin]
    return touched


def _filled(density: NDArray[np.complex64], inside: Mask, whole: Mask) -> NDArray[np.complex64]:
    """Return a density of modulus 1 inside, carried on into holes of the support, zero elsewhere."""
    known = density * inside
    around = ndimage.gaussian_filter(known, BLUR)
    values = np.where(inside, known, np.where(whole, around, 0))
    size = np.abs(values)
    return np.divide(values, size, out=np.zeros_like(values), where=size > 0)


def _next(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return each voxel's follower along an axis; the margin keeps what rolls round apart."""
    return np.roll(values, -1, axis)

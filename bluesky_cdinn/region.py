"""The part of large frames that a peak and its surroundings take up: nobody computes on the rest."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.peak import supported_intensity
from bluesky_cdinn.records import RockingCurve

# Pixels a side that are kept: twice the largest window that is phased (`grid.signal_window`), so that
# background, bad pixels and other crystals' peaks are still told by their surroundings.
SIDE = 256

Box = tuple[slice, slice]


def box_around_peak(curve: RockingCurve, max_shape: tuple[int, int, int] | None = None) -> Box:
    """Return the box of the frames that the peak and its surroundings lie in, rows and columns.

    The peak is where the most changes from angle to angle: what is hot or dead stays as it is, and what
    stands out alone, a cosmic ray, has no neighbours to support it.

    Parameters
    ----------
    curve
        Frames as an array (points, rows, columns), or (points, 1, rows, columns); small ones stay whole.
    max_shape
        Of the volume that is asked for; the box is at least twice as large.
    """
    frames = np.asarray(curve.frames)
    shape = frames.shape[-2:]
    sides = (SIDE, SIDE) if max_shape is None else tuple(max(SIDE, 2 * n) for n in max_shape[1:])
    if all(n <= side for n, side in zip(shape, sides, strict=True)):
        return slice(0, shape[0]), slice(0, shape[1])
    place = np.unravel_index(int(supported_intensity(_range(frames)).argmax()), shape)
    rows, columns = (_side(int(middle), n, side) for middle, n, side in zip(place, shape, sides, strict=True))
    return rows, columns


def cut(curve: RockingCurve, box: Box) -> RockingCurve:
    """Return the curve with its frames cut to a box."""
    frames = np.asarray(curve.frames)
    return replace(curve, frames=np.ascontiguousarray(frames[..., box[0], box[1]]))


def _side(middle: int, n: int, side: int) -> slice:
    first = min(max(middle - side // 2, 0), max(n - side, 0))
    return slice(first, min(first + side, n))


def _range(frames: NDArray) -> NDArray[np.float32]:
    """Return the largest minus the smallest value of each pixel, float32 (rows, columns); 0 for no number."""
    frames = frames.reshape(-1, *frames.shape[-2:])
    largest, smallest = frames[0].copy(), frames[0].copy()
    for frame in frames[1:]:
        # Of a number and NaN they take the number.
        np.fmax(largest, frame, out=largest)
        np.fmin(smallest, frame, out=smallest)
    changed = largest.astype(np.float32) - smallest.astype(np.float32)
    return np.where(np.isfinite(changed), changed, 0)

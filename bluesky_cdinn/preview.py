"""Small pictures: slices of an object, of one shape throughout a scan, and of its diffraction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Pixels a side, and how much larger than the object the frame is: it may still grow.
SIDE, MARGIN = 64, 1.3


@dataclass(frozen=True)
class Frame:
    """What the pictures show of the object's box.

    Parameters
    ----------
    step
        Voxels a pixel, along each axis.
    """

    step: int = 1

    @classmethod
    def around(cls, support: NDArray[np.bool_]) -> "Frame":
        """Return the frame that an object of this support, bool (n0, n1, n2), fits into."""
        extents = [np.ptp(np.flatnonzero(support.any(axis=axes))) + 1 for axes in _OTHERS if support.any()]
        return cls(max(1, int(np.ceil(MARGIN * max(extents, default=1) / SIDE))))


_OTHERS = ((1, 2), (0, 2), (0, 1))


def preview(
    density: NDArray[np.complex64], support: NDArray[np.bool_], frame: Frame
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return amplitude and phase of the slices through n // 2 across each axis, float32 (3, SIDE, SIDE).

    Parameters
    ----------
    density, support
        (n0, n1, n2), the object about n // 2. The phase is in rad, zero outside the support.
    frame
        Which voxels are shown.
    """
    amplitude = np.abs(density).astype(np.float32)
    phase = np.where(support, np.angle(density), 0).astype(np.float32)
    return _slices(amplitude, frame), _slices(phase, frame)


def _slices(values: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    pictures = np.zeros((3, SIDE, SIDE), np.float32)
    for axis, picture in enumerate(pictures):
        whole = values.take(values.shape[axis] // 2, axis=axis)
        shown = [_shown(n, frame.step) for n in whole.shape]
        kept, places = zip(*shown, strict=True)
        picture[np.ix_(*places)] = whole[np.ix_(*kept)]
    return pictures


def _shown(n: int, step: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which of n voxels are shown, and the pixels that show them: n // 2 in the middle one."""
    distance = np.arange(n) - n // 2
    kept = np.flatnonzero((distance % step == 0) & (np.abs(distance) < SIDE // 2 * step))
    return kept, distance[kept] // step + SIDE // 2


def intensity_slices(
    measured: NDArray[np.float32], valid: NDArray[np.bool_], model: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the slices of two intensities through n // 2 across each axis.

    Parameters
    ----------
    measured, valid, model
        (n0, n1, n2), the peak at n // 2.

    Returns
    -------
    numpy.ndarray
        float32 (2, 3, side, side), measured and model, n // 2 at side // 2; NaN where not valid, and beyond
        the sides of a volume that is no cube.
    """
    side = max(measured.shape)
    pictures = np.full((2, 3, side, side), np.nan, np.float32)
    for picture, values in zip(pictures, (np.where(valid, measured, np.nan), model), strict=True):
        for axis, n in enumerate(values.shape):
            whole = values.take(n // 2, axis=axis)
            rows, columns = (slice(side // 2 - m // 2, side // 2 - m // 2 + m) for m in whole.shape)
            picture[axis, rows, columns] = whole
    return pictures

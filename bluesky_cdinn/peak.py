"""Where the Bragg peak of a diffraction volume is."""

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import DiffractionVolume

# Half the width of the box around the brightest voxel that the centre of mass is taken over.
REACH = 3


def find_peak(volume: DiffractionVolume) -> tuple[float, float, float]:
    """Return the centre of the brightest peak, in voxels (slice, row, column), fractions included.

    A voxel counts only as bright as all but one of its four neighbours in the frame let it: a peak is
    sampled finely enough to be supported by them, a hot pixel or a cosmic ray, even two side by side, is not.
    The centre of mass of what exceeds the box's edge level around the brightest then refines it.

    Raises
    ------
    InvalidInput
        If no valid voxel has any counts.
    """
    brightest, centre = 0.0, None
    highest = volume.intensity.max(axis=(1, 2))
    # The brightest frames first: most of the others can't have a brighter voxel. Of equals the first counts.
    for index in np.argsort(-highest, kind="stable"):
        if highest[index] < brightest:
            continue
        frame = np.where(volume.valid[index], volume.intensity[index], 0)
        supported = supported_intensity(frame)
        place = int(supported.argmax())
        value = float(supported.flat[place])
        if value > brightest or (centre is not None and value == brightest and index < centre[0]):
            brightest, centre = value, (int(index), *np.unravel_index(place, frame.shape))
    if centre is None:
        raise InvalidInput(
            "a diffraction volume must hold a peak, got no counts beyond single voxels: is the crystal in "
            "the beam and the shutter open?"
        )
    return _centre_of_mass(volume, [int(c) for c in centre])


def supported_intensity(frame: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return each pixel's value, or the second smallest of its four neighbours' if that is lower."""
    return np.minimum(frame, second_smallest_neighbour(frame))


def second_smallest_neighbour(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the second smallest of each pixel's four neighbours, which are zero beyond the edge.

    ``frames`` is one, (rows, columns), or a stack of them, (..., rows, columns).
    """
    *stack, rows, columns = frames.shape
    padded = np.zeros((*stack, rows + 2, columns + 2), frames.dtype)
    padded[..., 1:-1, 1:-1] = frames
    up, down = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    lower = np.maximum(np.minimum(up, down), np.minimum(left, right))
    return np.minimum(lower, np.minimum(np.maximum(up, down), np.maximum(left, right)))


def _centre_of_mass(volume: DiffractionVolume, centre: list[int]) -> tuple[float, float, float]:
    box = tuple(slice(max(0, c - REACH), c + REACH + 1) for c in centre)
    counts = np.where(volume.valid[box], volume.intensity[box], 0).astype(np.float64)
    # No voxel weighs more than the brightest that neighbours support, so that a hot one can't pull.
    limit = max(float(supported_intensity(frame).max()) for frame in counts)
    counts = np.clip(counts - limit / 4, 0, limit)
    grids = np.indices(counts.shape).reshape(3, -1)
    offset = grids @ counts.ravel() / counts.sum()
    a, b, c = (float(part.start + shift) for part, shift in zip(box, offset, strict=True))
    return a, b, c

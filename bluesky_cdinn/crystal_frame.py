"""Frames that go with a crystal: along its Bragg vector, or along its crystallographic axes."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.float64]

# A facet's normal is known to a few degrees.
_SKEW_DEG = 10.0


def axes_along_q(q_vector: ArrayLike) -> FloatArray:
    """Return the axes of a frame that has Q along z, and x level: across the lab's y.

    Parameters
    ----------
    q_vector
        Bragg vector in the lab, any length, (3,).

    Returns
    -------
    numpy.ndarray
        Rows are the directions of x, y, z in the lab, float64 (3, 3), right-handed. Where Q stands upright x
        is the lab's.
    """
    z = _direction(q_vector, "q_vector")
    level = np.cross([0.0, 1.0, 0.0], z)
    length = np.linalg.norm(level)
    x = level / length if length > 1e-6 else np.array([1.0, 0.0, 0.0])
    return np.stack([x, np.cross(z, x), z])


def crystal_axes(
    q_vector: ArrayLike, reflection: ArrayLike, direction: ArrayLike, indices: ArrayLike
) -> FloatArray:
    """Return where a cubic crystal's axes point, from its Bragg vector and one direction more.

    Parameters
    ----------
    q_vector
        Bragg vector in the lab, any length, (3,).
    reflection
        Its Miller indices (h, k, l).
    direction
        Another direction in the lab, such as a facet's normal, any length, (3,).
    indices
        Its Miller indices. Q is held to; of the direction only the part across Q counts.

    Returns
    -------
    numpy.ndarray
        Rows are the directions of [100], [010], [001] in the lab, float64 (3, 3): the ``axes``
        of `bluesky_cdinn.lab_frame.to_lab_frame`.
        Where an orientation matrix U is known, Cartesian crystal axes to lab, it is ``U.T``.

    Raises
    ------
    InvalidInput
        If two of the directions are the same, or the angle between them isn't the one between the indices
        to 10 degrees.
    """
    measured = _direction(q_vector, "q_vector"), _direction(direction, "direction")
    named = _direction(reflection, "reflection"), _direction(indices, "indices")
    angles = [float(np.degrees(np.arccos(np.clip(a @ b, -1, 1)))) for a, b in (measured, named)]
    if min(*angles, *(180 - angle for angle in angles)) < 1 or abs(angles[0] - angles[1]) > _SKEW_DEG:
        raise InvalidInput(
            f"a direction must lie across Q, as far from it as its indices from the reflection: "
            f"it is {angles[0]:.1f} deg from Q, and {indices} is {angles[1]:.1f} deg from {reflection}"
        )
    return np.asarray(_triad(*named) @ _triad(*measured).T, dtype=np.float64)


def _triad(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return a right-handed frame as columns: along the first, across both, and across these two."""
    across = np.cross(first, second)
    across /= np.linalg.norm(across)
    return np.column_stack([first, across, np.cross(first, across)])


def _direction(vector: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(vector, dtype=float)
    if array.shape != (3,) or not np.isfinite(array).all() or not array.any():
        raise InvalidInput(f"{name} must be three numbers, not all zero, got {vector!r}")
    return array / np.linalg.norm(array)

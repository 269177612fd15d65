"""The derivative of a phase along a direction: planes fitted to its steps between neighbours.

Steps are taken as the phase of the one times the conjugate of the other, so that wraps and branch cuts
don't touch them. Each voxel's plane is fitted by least squares, weighted with the neighbours' amplitude and
their nearness: a Savitzky-Golay filter of the first order whose window is what of the neighbourhood lies
inside the crystal. At its surface it uses what central differences throw away.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

# The window's voxels. Two to each side would take a fifth off the error, and half off the resolution.
WINDOW = np.array(list(product((-1, 0, 1), repeat=3)))
# The neighbours' spread along their thinnest direction, in voxels squared, from which there is a plane.
LEAST_SPREAD = 0.02


@dataclass(frozen=True, eq=False)
class Gradient:
    """The derivative along a direction at each voxel of a support, in the order of ``numpy.argwhere``.

    Parameters
    ----------
    values
        Rad/nm, float64 (voxels,); NaN where the neighbours lie in a plane, or have no amplitude.
    weights
        What the phase of each voxel of the `WINDOW` counts in it, 1/nm, float32 (voxels, 27); their sum is 0.
    """

    values: FloatArray
    weights: NDArray[np.float32]


def directional_gradient(
    density: NDArray[np.complex64],
    support: Mask,
    direct_basis: FloatArray,
    direction: FloatArray,
) -> Gradient:
    """Return the derivative of a density's phase along a direction.

    Parameters
    ----------
    density
        complex64 (rocking, row, column).
    support
        Where the crystal is, bool, the same shape.
    direct_basis
        Columns are the lab-frame steps of one voxel along each axis, nm, float64 (3, 3).
    direction
        Unit vector in the lab frame, float64 (3,).

    Returns
    -------
    Gradient
        Its values and how they came about.
    """
    neighbours = _windows(density, support)
    weights = np.abs(neighbours) * np.exp(-np.square(WINDOW).sum(axis=1) / 2, dtype=np.float32)
    turns = np.angle(neighbours * neighbours[:, len(WINDOW) // 2].conj()[:, None])

    # Weighted least squares of turns on 1 and the offsets: the slopes are those about the weighted mean.
    # Where all amplitudes are zero there is no phase, and no plane.
    total = np.maximum(weights.sum(axis=1), np.finfo(np.float32).tiny)
    mean = weights @ WINDOW / total[:, None]
    pairs = (WINDOW[:, :, None] * WINDOW[:, None, :]).reshape(-1, 9)
    spread = (weights @ pairs / total[:, None]).reshape(-1, 3, 3) - mean[:, :, None] * mean[:, None, :]
    plane = np.linalg.eigvalsh(spread)[:, 0] > LEAST_SPREAD
    spread[~plane] = np.eye(3)
    # The gradient in the lab is inv(D).T @ (change a voxel).
    along = np.linalg.solve(direct_basis, direction)
    slope = np.linalg.solve(spread, np.broadcast_to(along[:, None], (len(spread), 3, 1)))[..., 0]
    coefficients = weights * (slope @ WINDOW.T - (slope * mean).sum(axis=1)[:, None]) / total[:, None]
    values = np.einsum("ij,ij->i", coefficients, turns)
    return Gradient(np.where(plane, values, np.nan), coefficients.astype(np.float32))


def gradient_sd(gradient: Gradient, support: Mask, sd: NDArray[np.float32], length: float) -> FloatArray:
    """Return one sigma of a gradient from that of the phase, whose errors neighbours share.

    Parameters
    ----------
    gradient
        Of the phase.
    support
        Of the crystal, bool (rocking, row, column).
    sd
        Of the phase, rad, float32, of the support's shape.
    length
        Over which errors are alike, voxels: their correlation over r is ``exp(-r**2 / (2 length**2))``.

    Returns
    -------
    numpy.ndarray
        Rad/nm, float64 (voxels,), NaN where the gradient is.
    """
    errors = gradient.weights * _windows(sd, support)
    apart = np.square(WINDOW[:, None] - WINDOW).sum(axis=-1)
    alike = np.exp(-apart / (2 * length**2)).astype(np.float32)
    variance = np.einsum("ij,ij->i", errors @ alike, errors)
    return np.where(np.isfinite(gradient.values), np.sqrt(np.maximum(variance, 0)), np.nan)


def window_width_nm(gradient: Gradient, direct_basis: FloatArray, direction: FloatArray) -> float:
    """Return the width, along the direction, of what a gradient inside the crystal averages over, nm.

    A derivative by weights w at places x answers a slow wave as the true one after smoothing by a kernel of
    variance sum(w x**3) / 3 / sum(w x): a central difference is an average over two voxels. The full width
    at half maximum of the Gaussian of that variance is returned; NaN where no gradient is known.
    """
    along = WINDOW @ direct_basis.T @ direction
    known = gradient.weights[np.isfinite(gradient.values)]
    if not len(known):
        return float("nan")
    # The window that is least cut: the one whose weights have the least sum of squares.
    weights = known[np.square(known).sum(axis=1).argmin()]
    variance = float(weights @ along**3 / (3 * (weights @ along)))
    return float(np.sqrt(8 * np.log(2) * max(variance, 0.0)))


def _windows(values: NDArray[Any], support: Mask) -> NDArray[Any]:
    """Return the values round each voxel of a support, (voxels, 27), 0 outside of it."""
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    inside = np.pad(np.where(support[box], values[box], 0), 1)
    strides = [inside.shape[1] * inside.shape[2], inside.shape[2], 1]
    here = (np.argwhere(support[box]) + 1) @ strides
    return inside.ravel()[here[:, None] + WINDOW @ strides]

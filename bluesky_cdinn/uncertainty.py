"""How sure the phase is, voxel by voxel, and the strain.

Four things put a phase off, and their squares add up: counting noise, as the inverse of the amplitude, which
the surface feels five times as much, since the interior is averaged by the preference for a smooth one; the
surface itself; what independent starts don't agree on; and the finite resolution, where the phase bends. How
much each weighs was fitted to the true errors of simulated crystals and tested on others
(docs/explanations/strain.md). All of it is of a phase that was found: whether it was, `doubts.confidence`
says.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.phase_gradient import Gradient, gradient_sd
from bluesky_cdinn.unwrapping import neighbour_products

FloatArray = NDArray[np.float64]
Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Terms:
    """One sigma of a phase, rad, by what causes it.

    Parameters
    ----------
    counts
        Of a voxel in the interior, of amplitude 1 in the scale of the counts.
    edge
        Of a voxel at the surface, beside that.
    spread
        A rad of difference between two independent finalists.
    bend, bend_edge
        A rad a voxel squared of bending, in the interior and at the surface.
    """

    counts: float
    edge: float
    spread: float
    bend: float
    bend_edge: float


# Of the phase; and of what in it makes a slope. Of the errors that bending brings in the interior half
# alternates from voxel to voxel, and leaves the slope alone; at the surface the window is cut, and sees the
# slope beside it.
PHASE = Terms(counts=0.165, edge=0.021, spread=0.26, bend=0.21, bend_edge=0.21)
STEPS = Terms(counts=0.17, edge=0.009, spread=0.23, bend=0.095, bend_edge=0.35)
# How much more counting noise a surface voxel has.
AT_EDGE = 5.0
# Over how many voxels the errors of the steps are alike.
ALIKE = 1.0
# chi2 over that of counting noise, as simulated crystals have it; with more of it, counts tell less.
EXPLAINED = 2.6
# Nobody is less sure than one who knows nothing: all phases are as likely.
MOST = np.pi / np.sqrt(3)


def phase_sd(
    density: NDArray[np.complex64],
    support: Mask,
    spread_rad: float,
    misfit: float = EXPLAINED,
    terms: Terms = PHASE,
) -> Volume:
    """Return one sigma of a phase.

    Parameters
    ----------
    density
        In the scale of its counts: ``abs(F)**2`` are photons, orthonormal; complex64 (rocking, row, column).
    support
        Where the crystal is, bool, the same shape.
    spread_rad
        rms phase difference of two independent finalists.
    misfit
        chi2 over that of counting noise alone, `noise_chi2`.
    terms
        What weighs how much.

    Returns
    -------
    numpy.ndarray
        rad, float32, NaN outside the support.
    """
    amplitude = np.maximum(np.abs(density), np.finfo(np.float32).tiny)
    surface = surface_voxels(support)
    noise = terms.counts * np.where(surface, AT_EDGE, 1.0) * np.sqrt(max(misfit / EXPLAINED, 1.0)) / amplitude
    variance = noise**2 + surface * terms.edge**2 + (terms.spread * spread_rad) ** 2
    variance += (np.where(surface, terms.bend_edge, terms.bend) * bending(density, support)) ** 2
    return np.where(support, np.minimum(np.sqrt(variance), MOST), np.nan).astype(np.float32)


def strain_sd(
    gradient: Gradient,
    density: NDArray[np.complex64],
    support: Mask,
    length: float,
    spread_rad: float,
    misfit: float = EXPLAINED,
) -> Volume:
    """Return one sigma of a strain.

    Parameters
    ----------
    gradient
        Of the phase along Q, whose weights carry the errors of the phase on.
    density, support, spread_rad, misfit
        As in `phase_sd`.
    length
        abs(Q), 1/nm.

    Returns
    -------
    numpy.ndarray
        float32, NaN outside the support and where the strain is.
    """
    steps = phase_sd(density, support, spread_rad, misfit, STEPS)
    result = np.full(support.shape, np.nan, dtype=np.float32)
    result[support] = gradient_sd(gradient, support, steps, ALIKE) / length
    return result


def noise_chi2(counts: NDArray[np.float32]) -> float:
    """Return the chi2 that counting noise alone gives, at most.

    The variance of sqrt(counts) is 1/4 (Anscombe 1948), and no more than their mean where they are few.

    Parameters
    ----------
    counts
        Of the voxels that were measured, any shape.
    """
    return float(np.clip(counts, 0, 0.25).sum(dtype=np.float64) / max(counts.sum(dtype=np.float64), 1.0))


def surface_voxels(support: Mask) -> Mask:
    """Return the voxels of a support that have a face or an edge in common with one outside."""
    inside = ndimage.binary_erosion(support, ndimage.generate_binary_structure(3, 2))
    return support & ~np.asarray(inside, dtype=np.bool_)


def bending(density: NDArray[np.complex64], support: Mask) -> Volume:
    """Return the second differences of a phase, root of the sum over the axes, averaged over 27 voxels.

    Of the average only voxels inside count; an axis along which a neighbour is missing adds nothing.

    Returns
    -------
    numpy.ndarray
        Rad a voxel squared, float32, zero outside the support.
    """
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    # A margin, so that what rolls round is outside.
    inside = np.pad(support[box], 1)
    squares = np.zeros(inside.shape, dtype=np.float32)
    for axis, products in enumerate(neighbour_products(np.pad(density[box], 1), inside)):
        step, known = np.angle(products), products != 0
        both = known & np.roll(known, 1, axis)
        turn = np.angle(np.exp(1j * (step - np.roll(step, 1, axis))))
        squares += np.where(both, turn, 0) ** 2
    total = ndimage.uniform_filter(np.sqrt(squares), 3, mode="constant")
    share = ndimage.uniform_filter(inside.astype(np.float32), 3, mode="constant")
    bent = np.zeros(support.shape, dtype=np.float32)
    bent[support] = (total / np.maximum(share, 1 / 27))[inside]
    return bent

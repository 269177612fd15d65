"""Frames at uneven angles -> a regular grid of slices, by least squares.

A pattern that is sampled finely enough is a smooth function of the rocking angle. Each frame then lies,
nearly, on the cubic polynomial through the four slices around it, and the slices that fit all frames best are
weighted sums of them; of frames that lie on the grid they are the sums that they always were.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# rms distance of the frames from their slices, in steps, up to which they are taken to lie on them: a jitter
# of so much changes nothing that was measurable, and weights of one keep counts counts.
EVEN = 0.06
# How much slices that fewer frames than slices determine are drawn to what is smooth, against one frame.
SMOOTH = 1e-3
# Keeps what nothing determines from being anything.
TINY = 1e-9
# A frame's weight in a slice that is left out, and how far it may reach, in steps.
NEGLIGIBLE, REACH = 2e-3, 6
# Slices through which a frame is interpolated.
STENCIL = 4


def is_even(positions: FloatArray) -> bool:
    """Whether frames at these positions, in slices, may be taken to lie on the slices next to them."""
    return float(np.sqrt(np.mean((positions - np.rint(positions)) ** 2))) <= EVEN


def fitted_shares(
    positions: FloatArray, exposures: FloatArray, measured: NDArray[np.bool_]
) -> list[Mapping[int, float]]:
    """Return with what weight each frame's counts go into each slice; empty for those not measured.

    A slice's weights times exposures add up to the exposure that would count with the same relative noise,
    so that counts are as good as their square root says.

    Parameters
    ----------
    positions
        Of the frames, in slices, float64 (frames,).
    exposures
        Of the frames, above 0, float64 (frames,).
    measured
        Of each slice, whether it was, bool (n,).
    """
    slices = np.flatnonzero(measured)
    model = np.zeros((len(positions), len(slices)))
    for frame, position in enumerate(positions):
        near = np.sort(np.argsort(np.abs(slices - position), kind="stable")[:STENCIL])
        # Beyond the ends, or inside of a gap, nothing is extrapolated far.
        if np.abs(slices[near] - position).min() <= 1:
            model[frame, near] = _lagrange(slices[near].astype(float), float(position))
    usual = float(np.median(exposures))
    rough = np.diff(np.eye(len(slices)), n=2, axis=0)
    # Second differences across a gap say nothing.
    rough = rough[slices[2:] - slices[:-2] == 2]
    normal = model.T @ (exposures[:, None] * model) + SMOOTH * usual * rough.T @ rough
    fit = np.linalg.solve(normal + TINY * usual * np.eye(len(slices)), model.T * exposures)
    shares: list[Mapping[int, float]] = [{}] * len(measured)
    for row, index in zip(fit, slices, strict=True):
        kept = np.flatnonzero((np.abs(row) > NEGLIGIBLE) & (np.abs(positions - index) < REACH))
        rates = row[kept] / exposures[kept]
        exposure = 1 / float((row[kept] * rates).sum())
        shares[index] = dict(zip(kept.tolist(), (exposure * rates).tolist(), strict=True))
    return shares


def _lagrange(nodes: FloatArray, position: float) -> FloatArray:
    """Return the weights with which values at the nodes make the polynomial's value at a position."""
    weights = np.ones(len(nodes))
    for i, node in enumerate(nodes):
        others = np.delete(nodes, i)
        weights[i] = np.prod((position - others) / (node - others))
    return weights

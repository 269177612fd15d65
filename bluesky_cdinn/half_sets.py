"""A crystal twice over, from two halves of its counts: what the halves share is not noise.

The counts are dealt out at random (thinning: each half is Poisson again, and independent of the other), and
of two starts that agree each is fitted to its own half. Without a preference for smoothness, which would be
shared by both; few iterations suffice, for noise enters faster than structure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_cdinn import quality
from bluesky_cdinn.boxed import Boxed
from bluesky_cdinn.detection import Detection
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.refine import Measurement, run
from bluesky_cdinn.resolution import HalfSets

ITERATIONS = 12


@dataclass(frozen=True, eq=False)
class Counted:
    """What half-sets need of a measurement.

    Parameters
    ----------
    counts
        float32 (n0, n1, n2), origin at n // 2.
    fitted
        bool, the same shape, origin at index 0; None where all are.
    detection, averaged
        As `refine.Measurement` has them.
    """

    counts: NDArray[np.float32]
    fitted: Tensor | None
    detection: Detection | None
    averaged: bool = False

    @classmethod
    def of(cls, measurement: Measurement) -> "Counted":
        """Return the counts of a measurement."""
        counts = to_centre(measurement.magnitude).square_().cpu().numpy()
        return cls(counts, measurement.fitted, measurement.detection, measurement.averaged)


def thinned(
    counts: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Deal counts out to two halves, float32 like them.

    What is not whole, after a flat field or on another grid, is first rounded up or down by chance, so that
    the halves differ by as much as counts do.
    """
    whole = np.floor(counts + rng.random(counts.shape, dtype=np.float32))
    half = np.empty_like(whole)
    # Frame by frame: the whole numbers that are drawn take twice the memory.
    for frame, part in zip(whole, half, strict=True):
        number = frame.astype(np.int64)
        dealt = rng.binomial(number, 0.5)
        part[...], frame[...] = dealt, number - dealt
    return half, whole


def half_sets(objects: Boxed, counted: Counted, measured: Sequence[float], seed: int) -> HalfSets:
    """Fit two objects each to its own half of the counts.

    Parameters
    ----------
    objects
        Two or more that agree; the first two are taken.
    counted
        On their grid.
    measured
        Share of each axis of the grid that the detector's volume fills; the rest is padding.
    seed
        Of the dealing.
    """
    counts = counted.counts
    dealt = list(thinned(counts, np.random.default_rng(seed)))
    # Each half goes as soon as it is fitted: whole grids are large.
    densities = [fitted_to(dealt.pop(0), objects, number, counted) for number in range(2)]
    densities[1] = quality.align(densities[1], densities[0]).astype(np.complex64, copy=False)
    inner = [round(n * share) for n, share in zip(counts.shape, measured, strict=True)]
    window = window_on_grid(counts.shape, inner)
    fitted = None if counted.fitted is None else counted.fitted.cpu()
    fields = np.empty((2, *inner), np.complex64)
    for place in range(2):
        whole = torch.fft.fftn(torch.from_numpy(densities.pop(0)), norm="ortho")
        if fitted is not None:
            whole.mul_(fitted)
        fields[place] = to_centre(whole).numpy()[window]
    seen = counts[window] if fitted is None else counts[window] * to_centre(fitted).numpy()[window]
    known = counts.size if fitted is None else int(fitted.sum())
    return HalfSets(fields, seen, float(objects.support[0].sum()) / known)


def fitted_to(
    half: NDArray[np.float32], objects: Boxed, number: int, counted: Counted
) -> NDArray[np.complex64]:
    """Return one of the objects fitted to half of the counts.

    Parameters
    ----------
    half
        float32 (n0, n1, n2), origin at n // 2.
    objects, number
        As in `half_sets`, and which of them.
    counted
        All counts.

    Returns
    -------
    NDArray
        complex64 (n0, n1, n2), origin at index 0.
    """
    start = objects.whole(number, 0.5**0.5)
    magnitude = to_corner(torch.from_numpy(half)).sqrt_().to(start.density.device)
    del half
    seen = None if counted.detection is None else counted.detection.thinned(0.5)
    measurement = Measurement(magnitude, counted.fitted, detection=seen, averaged=counted.averaged)
    for _ in run([LBFGS(ITERATIONS)], start, measurement):
        pass
    return start.density[0].cpu().numpy()

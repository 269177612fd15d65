"""A crystal twice over, from two halves of its counts: what the halves share is not noise.

The counts are dealt out at random (thinning: each half is Poisson again, and independent of the other), and
of two starts that agree each is fitted to its own half. Without a preference for smoothness, which would be
shared by both; few iterations suffice, for noise enters faster than structure.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_cdinn import quality
from bluesky_cdinn.forward import propagate, to_centre, to_corner
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.refine import Measurement, Objects, run
from bluesky_cdinn.resolution import HalfSets

ITERATIONS = 6


def thinned(
    counts: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Deal counts out to two halves, float32 like them.

    What is not whole, after a flat field or on another grid, is first rounded up or down by chance, so that
    the halves differ by as much as counts do.
    """
    whole = np.floor(counts + rng.random(counts.shape, dtype=np.float32)).astype(np.int64)
    half = rng.binomial(whole, 0.5)
    return half.astype(np.float32), (whole - half).astype(np.float32)


def half_sets(objects: Objects, measurement: Measurement, measured: Sequence[float], seed: int) -> HalfSets:
    """Fit two objects each to its own half of the counts.

    Parameters
    ----------
    objects
        Two or more that agree; the first two are taken.
    measurement
        On their grid.
    measured
        Share of each axis of the grid that the detector's volume fills; the rest is padding.
    seed
        Of the dealing.
    """
    counts = to_centre(measurement.magnitude).square().cpu().numpy()
    halves = thinned(counts, np.random.default_rng(seed))
    densities = []
    for number, half in enumerate(halves):
        one = objects.keep(torch.tensor([number], device=objects.density.device))
        magnitude = torch.from_numpy(np.sqrt(half)).to(measurement.magnitude.device)
        start = Objects.start(one.density / np.sqrt(2), one.support)
        seen = None if measurement.detection is None else measurement.detection.thinned(0.5)
        problem = Measurement(to_corner(magnitude), measurement.fitted, detection=seen)
        for _ in run([LBFGS(ITERATIONS)], start, problem):
            pass
        densities.append(to_centre(start.density)[0].cpu().numpy())
    first, second = densities
    second = quality.align(second, first).astype(np.complex64)
    fields = propagate(torch.from_numpy(np.stack([first, second]))).numpy()
    fitted = np.ones(counts.shape, np.bool_)
    if measurement.fitted is not None:
        fitted = to_centre(measurement.fitted).cpu().numpy()
    inner = [round(n * share) for n, share in zip(counts.shape, measured, strict=True)]
    window = window_on_grid(counts.shape, inner)
    return HalfSets(
        (fields * fitted)[(slice(None), *window)],
        (counts * fitted)[window],
        float(objects.support[0].sum()) / np.count_nonzero(fitted),
    )

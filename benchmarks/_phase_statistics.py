"""What tells one kind of phase in a crystal from another: how large, how rough, how near to the surface."""

from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Separations at which the autocorrelation is taken, in diameters of the sphere of equal volume.
LAGS = np.arange(0, 1, 0.04)
# Depths below the surface, in radii of that sphere.
DEPTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)


def phase_statistics(density: NDArray[Any], step: NDArray[Any] | None = None) -> dict[str, float]:
    """Return the statistics of a phase that doesn't wrap, less its offset and ramp.

    Parameters
    ----------
    density
        Complex (n, n, n), amplitude 1 in a whole crystal.
    step
        Of its grid along the axes, in any unit of length, (3,); None where all are alike.

    Returns
    -------
    dict
        ``rms`` (rad); ``range`` of 99 % over rms; ``kurtosis``; separations where the autocorrelation
        inside falls to 1/2, 1/e and 0, in diameters; shares of the variance that polynomials of degree 2,
        3 and 4 explain; rms at the depths over all; ``fill`` of the bounding box; ``aspect``, least over
        largest axis of inertia.
    """
    voxel = np.ones(3) if step is None else np.asarray(step, dtype=float)
    inside = np.abs(density) > 0.5
    places = np.argwhere(inside) * voxel
    places -= places.mean(axis=0)
    radius = np.cbrt(3 * len(places) * voxel.prod() / (4 * np.pi))
    phase = np.angle(density[inside])
    phase = phase - explained(phase, places / radius, 1)
    rms = phase.std()
    correlation = autocorrelation(inside, phase, voxel, 2 * radius)
    # From the surface, which lies half a voxel off the first one.
    depth = ndimage.distance_transform_edt(inside, sampling=voxel)[inside] - voxel.mean() / 2
    depth = depth / radius
    axes = np.sqrt(np.linalg.eigvalsh(places.T @ places))
    found = {
        "rms": rms,
        "range": np.ptp(np.percentile(phase, [0.5, 99.5])) / rms,
        "kurtosis": (phase**4).mean() / rms**4,
        **{
            f"correlation {name}": crossing(correlation, level)
            for name, level in (("1/2", 0.5), ("1/e", 1 / np.e), ("0", 0))
        },
        **{f"polynomial {n}": explained(phase, places / radius, n).var() / rms**2 for n in (2, 3, 4)},
        "fill": len(places) / np.prod(np.ptp(places, axis=0) / voxel + 1),
        "aspect": axes[0] / axes[2],
    }
    for low, high in pairwise(DEPTHS):
        layer = phase[(depth > low) & (depth <= high)]
        found[f"depth {low} to {high}"] = np.sqrt((layer**2).mean()) / rms if len(layer) else np.nan
    return {name: float(value) for name, value in found.items()}


def explained(phase: NDArray[Any], places: NDArray[Any], degree: int) -> NDArray[Any]:
    """Return the polynomial of a degree that fits best, at the places."""
    powers = [e for e in product(range(degree + 1), repeat=3) if sum(e) <= degree]
    basis = np.stack([np.prod(places**e, axis=1) for e in powers], axis=1)
    return basis @ np.linalg.lstsq(basis, phase, rcond=None)[0]


def autocorrelation(
    inside: NDArray[Any], phase: NDArray[Any], step: NDArray[Any], diameter: float
) -> NDArray[Any]:
    """Return the mean product of the phases of two points inside, by their separation, 1 at zero."""
    shape = [2 * n for n in inside.shape]
    whole = np.zeros(inside.shape)
    whole[inside] = phase
    products, pairs = (
        np.fft.irfftn(np.abs(np.fft.rfftn(a, shape)) ** 2, shape) for a in (whole, inside * 1.0)
    )
    lags = np.stack(
        np.meshgrid(*(np.fft.fftfreq(n, 1 / n) * s for n, s in zip(shape, step, strict=True)), indexing="ij")
    )
    shell = np.rint(np.linalg.norm(lags, axis=0) / diameter / LAGS[1]).astype(int)
    # Few pairs are that far apart, and they say more about their corners than about the crystal.
    known = pairs > 0.05 * pairs.max()
    sums = [np.bincount(shell[known], a[known], minlength=len(LAGS))[: len(LAGS)] for a in (products, pairs)]
    filled = sums[1] > 0
    mean = np.interp(LAGS, LAGS[filled], sums[0][filled] / sums[1][filled])
    return mean / mean[0]


def crossing(correlation: NDArray[Any], level: float) -> float:
    """Return the first separation at which a correlation lies under a level, interpolated."""
    under = np.flatnonzero(correlation < level)
    if not len(under) or not under[0]:
        return float("nan")
    i = under[0]
    share = (correlation[i - 1] - level) / (correlation[i - 1] - correlation[i])
    return float(LAGS[i - 1] + share * LAGS[1])


def percentiles(rows: list[dict[str, float]]) -> dict[str, NDArray[Any]]:
    """Return the 10th, 50th and 90th percentile of each statistic."""
    return {name: np.nanpercentile([row[name] for row in rows], [10, 50, 90]) for name in rows[0]}

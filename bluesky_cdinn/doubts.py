"""What speaks against an object that was found, told from what is there already, and the confidence left.

A crystal's density is as even as its lattice. What phase retrieval gets wrong, whatever the cause - too few
counts, a wrong support, a twin mixed in, a pattern that is cut off, blurred or not the crystal's alone - it
gets wrong in amplitude and phase alike. The amplitude's part is seen without knowing the truth: inside as
`unevenness`, outside as `halo`. They tell the phase's error better than anything else that was tried, and
hardly change with the seed (docs/explanations/phasing.md).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.masking import connected
from bluesky_cdinn.uncertainty import noise_chi2, surface_voxels

logger = logging.getLogger(__name__)

Complex = NDArray[np.complex64]
FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Logit of the confidence: intercept, and slopes of the logarithms of unevenness and halo, as
# ``benchmarks/confidence.py --fit`` finds them.
CALIBRATION = (-14.1, -3.12, -0.84)
# What less of the two makes no difference; and voxels inside that are too few to tell an evenness.
LEAST, INSIDE = (0.003, 1e-4), 50
# Two objects that differ by so much, rad, can't both be right to 0.1.
APART = 0.2
# chi2 over which nothing was found; half of it is no reason for doubt: 10^3 counts in the peak give 0.1.
UNEXPLAINED = 0.3
# A second body of less than this of the first one's intensity is a speck.
SPECK = 0.1
# From where on a line says so: each leaves about an even chance. chi2 under `EXPLAINED` is small, whatever
# the noise.
DOUBTFUL, EXPLAINED = 0.5, 0.01
UNEVEN, DIFFERENT, MISFIT, PHOTONS = 0.07, 0.1, 20.0, 15.0


@dataclass(frozen=True)
class Signs:
    """What an object's confidence rests on.

    Parameters
    ----------
    unevenness
        Standard deviation of the amplitude inside the larger body over its mean.
    halo
        Intensity farther out than a voxel from the support over that of the surface.
    spread_rad
        rms phase difference of two independent objects; None for one alone, NaN where they share no place.
    chi2
        Of all that was measured.
    misfit
        chi2 over that of counting noise alone.
    photons
        Counts for each voxel of the object.
    second_body
        Intensity of the second largest body over that of the largest; 0 where there is one body.
    """

    unevenness: float
    halo: float
    spread_rad: float | None
    chi2: float
    misfit: float
    photons: float
    second_body: float

    def scalars(self) -> dict[str, float]:
        """Return those that a result doesn't have anyway, by name."""
        return {
            "unevenness": self.unevenness,
            "halo": self.halo,
            "misfit": self.misfit,
            "photons_per_voxel": self.photons,
            "second_body": self.second_body,
        }


def signs(
    density: Complex, support: Mask, counts: NDArray[np.float32], chi2: float, spread_rad: float | None
) -> Signs:
    """Return what speaks for and against an object.

    Parameters
    ----------
    density, support
        Of the object, complex64 and bool (n0, n1, n2).
    counts
        Measured, zero where not valid, float32 of any shape.
    chi2, spread_rad
        As in `Signs`.
    """
    body, second = larger_body(density, support)
    return Signs(
        unevenness=unevenness(density, body),
        halo=halo(density, support),
        spread_rad=spread_rad,
        chi2=chi2,
        misfit=chi2 / noise_chi2(counts),
        photons=float(counts.sum(dtype=np.float64)) / max(int(np.count_nonzero(support)), 1),
        second_body=second,
    )


def larger_body(density: Complex, support: Mask) -> tuple[Mask, float]:
    """Return where the largest of an object's bodies is, and the second one's intensity over its.

    What a gap of up to two voxels divides counts as one: a crystal with a domain wall, or a crack.
    """
    box = around(support)
    inside = support[box]
    labels = connected(np.asarray(ndimage.binary_dilation(inside), np.bool_))
    power = np.bincount(labels[inside], weights=np.abs(density[box][inside]) ** 2, minlength=2)
    if len(power) < 3:
        return support, 0.0
    second, first = np.sort(power)[-2:]
    body = np.zeros_like(support)
    body[box] = inside & (labels == int(power.argmax()))
    return body, float(second / first)


def unevenness(density: Complex, support: Mask) -> float:
    """Return the standard deviation of the amplitude over its mean, inside: the surface is left out.

    1 where there is next to no inside, as for noise and for frames of a few pixels.
    """
    box = around(support)
    amplitude = np.abs(density[box][support[box] & ~surface_voxels(support[box])])
    if len(amplitude) < INSIDE:
        return 1.0
    return float(amplitude.std() / amplitude.mean())


def halo(density: Complex, support: Mask) -> float:
    """Return the object's intensity farther out than a voxel from a support over that of its surface.

    1 where there is no support.
    """
    if not support.any():
        return 1.0
    box = around(support)
    power, inside = np.abs(density[box]) ** 2, support[box]
    near = float((power * ndimage.binary_dilation(inside)).sum(dtype=np.float64))
    whole = float(np.vdot(density, density).real)
    return max(whole - near, 0.0) / float((power * surface_voxels(inside)).sum(dtype=np.float64))


def around(support: Mask) -> tuple[slice, ...]:
    """Return the box of a support with two voxels around it, as far as the grid goes."""
    places = [np.flatnonzero(support.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(max(p[0] - 2, 0), p[-1] + 3) if len(p) else slice(0, 0) for p in places)


def confidence(found: Signs) -> float:
    """Return the estimated probability that an object is right: phase to 0.1 rad rms, place to 90 %.

    The latter is the intersection of the supports over their union. A logistic curve in the logarithms of
    unevenness and halo, fitted to the outcomes of simulated crystals, in every second of which something is
    wrong (docs/explanations/phasing.md). Two objects that share no place get none. Nor does one that leaves
    more than `UNEXPLAINED` of the data unexplained, however even: noise has its spots, too. One object alone
    was not found again, and gets an even chance at most; two that are `APART` get half of that.
    """
    told = [found.unevenness, found.halo, found.chi2, 0.0 if found.spread_rad is None else found.spread_rad]
    if not np.isfinite(told).all():
        return 0.0
    intercept, *slopes = CALIBRATION
    right = 1 / (1 + np.exp(-intercept - np.dot(slopes, terms(found.unevenness, found.halo))))
    most = 1.0 if found.spread_rad is not None else 0.5
    if found.spread_rad is not None and found.spread_rad > APART:
        most = 0.25
    return min(float(right), most) * float(np.clip(2 * (1 - found.chi2 / UNEXPLAINED), 0, 1))


def terms(uneven: float, around: float) -> FloatArray:
    """Return what the confidence's slopes go with, float64 (2,): logarithms of unevenness and halo."""
    return np.log(np.array([uneven, around]) + LEAST)


def doubts(found: Signs) -> list[str]:
    """Return, and log, a line for each thing that speaks against an object, and what to do about it."""
    lines = []
    if (chance := confidence(found)) < DOUBTFUL:
        lines.append(f"doubtful: confidence {chance:.2f}: strain and resolution hold for a right object only")
    if found.second_body > SPECK:
        lines.append(
            f"two crystals: the second has {found.second_body:.0%} of the first one's intensity; strain and "
            "facets are of the larger: close the slits"
        )
    if found.photons < PHOTONS:
        lines.append(
            f"too few counts: {found.photons:.1f} for each voxel of the crystal, {PHOTONS:g} are the least: "
            "count longer"
        )
    if found.spread_rad is not None and not found.spread_rad <= DIFFERENT:
        lines.append(f"not found twice: two objects differ by {found.spread_rad:.2f} rad: take more starts")
    if found.unevenness > UNEVEN:
        lines.append(
            f"uneven: the amplitude inside varies by {found.unevenness:.0%}: look for blur, a second peak, "
            "a peak that is cut off, defects"
        )
    if found.misfit > MISFIT and found.chi2 > EXPLAINED:
        lines.append(
            f"not explained: chi2 is {found.misfit:.0f} times its noise: the support is wrong, or not all "
            "counts are this crystal's"
        )
    for line in lines:
        logger.warning("%s", line)
    return lines


def signs_of(scalars: Mapping[str, float], chi2: float) -> Signs:
    """Return the signs that a result's scalars hold, as a calibration needs them again."""
    return Signs(
        scalars["unevenness"],
        scalars["halo"],
        scalars.get("phase_spread_rad"),
        chi2,
        scalars["misfit"],
        scalars["photons_per_voxel"],
        scalars["second_body"],
    )

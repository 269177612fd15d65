"""Peaks of other crystals in a diffraction volume."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.masking import connected, counting_unit, mask_voxels
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.records import DiffractionVolume

BIN = 2
"""Voxels along each axis that are added before looking, for statistics and speed."""

SIGMAS = 6.0
"""Standard deviations above the background from which on a bin belongs to something."""

LEVEL_STEP = 4.0
"""Factor between the levels at which blobs are looked for."""

EXCESS = 2.0
"""By which factor an alien exceeds anything that the peak itself could have at its distance."""

PARTNER = 0.2
"""A fringe has a partner across the peak with at least this part of its intensity; an alien has none."""

STRONG = 0.3
"""Part of the highest intensity from which on a bin counts for the peak's width."""

CLEARANCE = 6.0
"""Distance from the peak, in half widths, within which everything is taken to be the peak's own."""


def mask_aliens(volume: DiffractionVolume) -> DiffractionVolume:
    """Take out bright blobs that belong to other crystals.

    A blob is taken for an alien only if all of this holds: at some level above the background it is not
    connected with the peak; it is brighter, in its maximum and in all, by far than the envelope
    ``peak / d**2`` at its distance d in half widths, which bounds the fringes even along a facet's streak,
    where they are strongest; and nothing of its like lies across the peak, where a fringe, even of a
    strained crystal, has its partner.

    The history says how many there were, and ``strongest``: the brightest over the peak.

    Notes
    -----
    Along the streak of a facet abs(F)**2 follows sinc**2, whose maxima are 1 / (pi x)**2 of the peak at x
    fringes, and whose half width is 0.44 fringes: the envelope is twice that, and `EXCESS` doubles it again.
    """
    aliens, found = _aliens(volume) if min(volume.intensity.shape) >= 4 * BIN else (None, 0)
    bad = np.zeros(volume.intensity.shape, np.bool_)
    if aliens is not None:
        full = aliens.repeat(BIN, 0).repeat(BIN, 1).repeat(BIN, 2)
        bad[: full.shape[0], : full.shape[1], : full.shape[2]] = full
    intensity = np.where(volume.valid, volume.intensity, 0)
    strongest = float(intensity[bad].max() / intensity.max()) if found else 0.0
    return mask_voxels(volume, bad, "mask_aliens", aliens=found, strongest=strongest)


def _aliens(volume: DiffractionVolume) -> tuple[NDArray[np.bool_], int]:
    """Return the bins that belong to aliens, and how many these are."""
    binned = _binned(np.where(volume.valid, volume.intensity, np.float32(0)))
    background = float(np.median(binned))
    excess = binned - np.float32(background)
    centre = (np.array(find_peak(volume)) + 0.5) / BIN - 0.5
    # A partner may be a bin away from where it should be, since the peak's centre is no better known.
    around = ndimage.maximum_filter(excess, 3)
    place = tuple(np.clip(np.rint(centre).astype(int), 0, np.array(binned.shape) - 1))
    aliens, found = np.zeros(binned.shape, np.bool_), 0
    unit = counting_unit(volume)
    level = SIGMAS * np.sqrt(unit * (background + unit))
    # All strong speckles of a strained crystal make its width; a weaker alien doesn't.
    widths = half_widths(np.where(excess > STRONG * excess[place], excess, 0))
    while level < excess[place] / 2:
        labels = connected((excess > level) & ~aliens)
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            if label == labels[place]:
                continue
            bins = np.argwhere(labels[box] == label) + [part.start for part in box]
            if len(bins) > 2 and _is_alien(excess, around, bins, centre, float(excess[place]), widths):
                blob = np.zeros(binned.shape, np.bool_)
                blob[tuple(bins.T)] = True
                # Its tails too, but nothing of the peak.
                aliens |= ndimage.binary_dilation(blob, iterations=2) & (labels != labels[place])
                found += 1
        level *= LEVEL_STEP
    return aliens, found


def _is_alien(
    excess: NDArray[np.floating],
    around: NDArray[np.floating],
    bins: NDArray[np.intp],
    centre: NDArray[np.float64],
    peak: float,
    widths: NDArray[np.float64],
) -> bool:
    """Whether a blob, bins (n, 3), is too bright for where it is, and alone.

    ``around`` is the highest excess of a bin and its neighbours.
    """
    counts = excess[tuple(bins.T)]
    distances = np.linalg.norm((bins - centre) / widths, axis=1)
    if distances.min() < CLEARANCE:
        return False
    envelope = EXCESS * peak / distances**2
    if counts.max() < envelope[counts.argmax()] or counts.sum() < envelope.sum():
        return False
    across = np.rint(2 * centre - bins).astype(int)
    inside = ((across >= 0) & (across < excess.shape)).all(axis=1)
    if inside.mean() < 0.5:
        # Nobody can tell whether there is a partner.
        return False
    return float(around[tuple(across[inside].T)].sum()) < PARTNER * float(counts[inside].sum())


def half_widths(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return half the length along each axis that holds the middle nine tenths of the squared counts, bins.

    It is half a bin at least. For the central fringe of sinc**2 that is about its half width at half maximum.
    """
    widths, squares = [], counts.astype(np.float64) ** 2
    for axis in range(3):
        cumulated = np.cumsum(squares.sum(axis=tuple(a for a in range(3) if a != axis)))
        # Compared with what is there: in a volume that is the same everywhere there is nothing.
        ends = np.array([0.05, 0.95]) * cumulated[-1]
        low, high = np.interp(ends, cumulated, np.arange(len(cumulated)) + 0.5)
        widths.append(max(1.0, high - low) / 2)
    return np.array(widths)


def _binned(intensity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return sums of BIN**3 voxels; what doesn't fill a bin at the end is left out."""
    a, b, c = (n // BIN for n in intensity.shape)
    whole = intensity[: a * BIN, : b * BIN, : c * BIN]
    return whole.reshape(a, BIN, b, BIN, c, BIN).sum(axis=(1, 3, 5))

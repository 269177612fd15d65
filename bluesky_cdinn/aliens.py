"""Peaks of other crystals in a diffraction volume."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.masking import connected, mask_voxels, with_step
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.records import DiffractionVolume

BIN = 2
"""Voxels along each axis that are added before looking, for statistics and speed."""

SIGMAS = 6.0
"""Standard deviations above the background from which on a bin belongs to something."""

EXCESS = 5.0
"""By which factor an alien exceeds anything that the peak itself could have at its distance."""

PARTNER = 0.2
"""A fringe has a partner across the peak with at least this part of its intensity; an alien has none."""

CLEARANCE = 6.0
"""Distance from the peak, in half widths, within which everything is taken to be the peak's own."""


def mask_aliens(volume: DiffractionVolume) -> DiffractionVolume:
    """Take out bright blobs that belong to other crystals.

    A blob is taken for an alien only if all of this holds: it is not connected with the peak by anything
    above the background; it is brighter, in its maximum and in all, by far than the envelope ``peak / d**2``
    at its distance d in half widths, which bounds the fringes even along a facet's streak, where they are
    strongest; and nothing of its like lies across the peak, where a fringe, even of a strained crystal,
    has its partner.

    Notes
    -----
    Along the streak of a facet abs(F)**2 follows sinc**2, whose maxima are 1 / (pi x)**2 of the peak at x
    fringes, and whose half width is 0.44 fringes: the envelope is twice that, and `EXCESS` five times more.
    """
    binned = _binned(np.where(volume.valid, volume.intensity, np.float32(0)))
    if min(binned.shape) < 4:
        return with_step(volume, "mask_aliens", aliens=0, voxels=0)
    centre = np.array(find_peak(volume)) / BIN - (1 - 1 / BIN) / 2
    background = float(np.median(binned))
    labels = connected(binned > background + SIGMAS * np.sqrt(background + 1))
    main = labels[tuple(np.clip(np.rint(centre).astype(int), 0, np.array(binned.shape) - 1))]
    if main == 0 or labels.max() < 2:
        return with_step(volume, "mask_aliens", aliens=0, voxels=0)
    widths = _half_widths(binned, centre, background)
    aliens = np.zeros(binned.shape, np.bool_)
    found = 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        blob = labels[box] == label
        if label != main and np.count_nonzero(blob) > 2:
            places = np.argwhere(blob) + [part.start for part in box]
            if _is_alien(binned - np.float32(background), places, centre, widths):
                aliens[tuple(places.T)] = True
                found += 1
    if found:
        # Its tails too, but nothing of the peak.
        aliens = ndimage.binary_dilation(aliens, iterations=2) & (labels != main)
    bad = np.zeros(volume.intensity.shape, np.bool_)
    full = aliens.repeat(BIN, 0).repeat(BIN, 1).repeat(BIN, 2)
    bad[: full.shape[0], : full.shape[1], : full.shape[2]] = full
    return mask_voxels(volume, bad, "mask_aliens", aliens=found)


def _is_alien(
    excess: NDArray[np.floating],
    places: NDArray[np.intp],
    centre: NDArray[np.float64],
    widths: NDArray[np.float64],
) -> bool:
    """Whether a blob, bins (n, 3), is too bright for where it is, and alone."""
    counts = excess[tuple(places.T)]
    distances = np.linalg.norm((places - centre) / widths, axis=1)
    if distances.min() < CLEARANCE:
        return False
    peak = float(excess[tuple(np.rint(centre).astype(int))])
    envelope = EXCESS * peak / distances**2
    if counts.max() < envelope[counts.argmax()] or counts.sum() < envelope.sum():
        return False
    across = np.rint(2 * centre - places).astype(int)
    inside = ((across >= 0) & (across < excess.shape)).all(axis=1)
    if inside.mean() < 0.5:
        # Nobody can tell whether there is a partner.
        return False
    return float(excess[tuple(across[inside].T)].sum()) < PARTNER * float(counts[inside].sum())


def _half_widths(
    binned: NDArray[np.floating], centre: NDArray[np.float64], background: float
) -> NDArray[np.float64]:
    """Half the width at half maximum along each axis, through the peak; half a bin at least."""
    place = np.rint(centre).astype(int)
    widths = []
    for axis in range(3):
        line = binned[tuple(slice(None) if a == axis else place[a] for a in range(3))] - background
        above = line >= line[place[axis]] / 2
        label = connected(above)
        widths.append(max(1.0, np.count_nonzero(label == label[place[axis]])) / 2)
    return np.array(widths)


def _binned(intensity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return sums of BIN**3 voxels; what doesn't fill a bin at the end is left out."""
    a, b, c = (n // BIN for n in intensity.shape)
    whole = intensity[: a * BIN, : b * BIN, : c * BIN]
    return whole.reshape(a, BIN, b, BIN, c, BIN).sum(axis=(1, 3, 5))

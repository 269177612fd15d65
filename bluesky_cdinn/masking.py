"""Voxels that are no measurement of this crystal, found and taken out of ``valid``.

A mask only ever takes voxels out, and sets their intensity to zero so that nothing that forgets to look at
``valid`` meets a hot pixel. Each function is conservative: a peak and its fringes, sampled as finely as
phasing needs anyway, don't fit the tests.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.peak import second_smallest_neighbour
from bluesky_cdinn.records import DiffractionVolume

# A pixel is out of line if it differs from the third of its 24 neighbours by this factor, and by this many
# standard deviations of Poisson counts. At an oversampling of 2 a fringe may lie on one pixel and zeros
# of the transform on all eight around it, but the next fringes, two pixels away, are as bright.
RATIO = 10.0
SIGMAS = 10.0

# Frames that are looked at in one go: few, so that they stay in the processor's cache.
TOGETHER = 8

# A pixel that stands out in more than this part of the frames is hot in all.
OFTEN = 0.2

# Part of the frames that a pixel's floor is the sum of, and by which factor that may differ. The floor is far
# smoother from pixel to pixel than the peak.
FLOOR_SHARE = 0.25
FLOOR_RATIO = 4.0

# Counts that neighbours of a gap must have for the gap's silence to be no accident.
SILENT = 30.0

# Equal values at the top of a volume that are no coincidence, and from which count on.
PLATEAU_VOXELS = 4
PLATEAU_COUNTS = 1000.0


def with_step(
    volume: DiffractionVolume,
    step: str,
    *,
    intensity: NDArray[np.float32] | None = None,
    valid: NDArray[np.bool_] | None = None,
    **noted: Any,
) -> DiffractionVolume:
    """Return the volume after a step of preparation, which is added to its history."""
    return replace(
        volume,
        intensity=volume.intensity if intensity is None else intensity,
        valid=volume.valid if valid is None else valid,
        history=(*volume.history, {"step": step, **noted}),
    )


def mask_voxels(
    volume: DiffractionVolume, bad: ArrayLike, step: str = "mask", **noted: Any
) -> DiffractionVolume:
    """Take voxels out.

    Parameters
    ----------
    volume
        Stays as it is.
    bad
        bool, the volume's shape, or a frame's for the same pixels in every slice.
    step, noted
        For the history; the number of voxels that were valid until now is added.

    Raises
    ------
    InvalidInput
        If the shapes don't fit.
    """
    bad = np.asarray(bad, dtype=bool)
    if bad.shape not in (volume.intensity.shape, volume.intensity.shape[1:]):
        raise InvalidInput(
            f"a mask must have the volume's shape {volume.intensity.shape} or its frames', got {bad.shape}"
        )
    valid = volume.valid & ~bad
    lost = int(np.count_nonzero(volume.valid) - np.count_nonzero(valid))
    intensity = np.where(valid, volume.intensity, np.float32(0)) if lost else volume.intensity
    return with_step(volume, step, intensity=intensity, valid=valid, voxels=lost, **noted)


def counting_unit(volume: DiffractionVolume) -> float:
    """Return what one count is in the volume's own numbers, 1 at least.

    It is 1 where photons are counted. A detector that adds up charge gives many units for a photon: the
    weakest of its positive readings, their fifth percentile, stand for one.
    """
    some = volume.intensity[:: max(1, len(volume.intensity) // 32)]
    positive = some[some > 0]
    return max(1.0, float(np.quantile(positive, 0.05))) if len(positive) else 1.0


def mask_saturated(volume: DiffractionVolume, limit: float | None = None) -> DiffractionVolume:
    """Take out voxels at or above the detector's limit.

    Parameters
    ----------
    volume
        Before any correction that changes counts.
    limit
        In counts. None looks for a plateau: four voxels or more with exactly the highest count of the
        volume, a thousand or more, which Poisson statistics doesn't give.
    """
    if limit is None:
        top = float(volume.intensity.max(initial=0))
        flat = np.count_nonzero(volume.intensity == top)
        if top < PLATEAU_COUNTS or flat < PLATEAU_VOXELS:
            return with_step(volume, "mask_saturated", voxels=0)
        limit = top
    return mask_voxels(volume, volume.intensity >= limit, "mask_saturated", limit=float(limit))


def mask_gaps(volume: DiffractionVolume) -> DiffractionVolume:
    """Take out pixels that are silent in every slice although everything around them counts.

    Whole rows and columns between counting ones are gaps between modules; smaller silent patches are
    dead areas or the shadow of a beam stop. Where the surroundings count too little to tell, nothing
    is taken out.
    """
    total, measured = _total(volume.intensity, volume.valid)
    empty = measured & (total == 0)
    enough = SILENT * counting_unit(volume)
    silent = _silent_lines(total, measured, enough) | _silent_lines(total.T, measured.T, enough).T
    silent |= _silent_patches(total, empty & ~silent, enough)
    return mask_voxels(volume, silent, "mask_gaps", pixels=int(np.count_nonzero(silent)))


def mask_hot_pixels(
    volume: DiffractionVolume, *, ratio: float = RATIO, sigmas: float = SIGMAS
) -> DiffractionVolume:
    """Take out hot and dead pixels, and single voxels that stand out of their frame.

    A pixel is compared with the third brightest of the 24 around it, so that up to three hot ones side by
    side are found: in each frame first, for cosmic rays and sparks; then, without these, in the sum of the
    darker half of the frames, where the peak is weakest and a rate too low to be seen in one frame adds up;
    then in the sum of each pixel's own darkest frames, which a peak and its fringes, rocking past, leave
    dark. A dead pixel is darker by far than the darkest around it in the sum of all frames; `mask_gaps`
    finds larger patches.

    Parameters
    ----------
    volume
        Flat-fielded, best.
    ratio, sigmas
        By which factor, and by how many standard deviations of Poisson counts, a pixel must be out of line.
    """
    unit = counting_unit(volume)
    sparks = np.zeros(volume.intensity.shape, np.bool_)
    for first in range(0, len(sparks), TOGETHER):
        part = slice(first, first + TOGETHER)
        sparks[part] = _stands_out(
            np.where(volume.valid[part], volume.intensity[part], 0), ratio, sigmas, unit
        )
    trusted = volume.valid & ~sparks
    totals = np.array([frame.sum(dtype=np.float64) for frame in volume.intensity])
    everything, measured = _total(volume.intensity, trusted)
    quiet, _ = _total(volume.intensity, trusted, np.flatnonzero(totals <= np.median(totals)))
    hot = _stands_out(quiet, ratio, sigmas, unit) | (sparks.mean(axis=0) > OFTEN)
    hot |= _stands_out(_floor(volume.intensity, trusted), FLOOR_RATIO, sigmas, unit)
    darkest = ndimage.minimum_filter(everything, footprint=_AROUND, mode="mirror")
    dead = measured & _exceeds(darkest, everything, ratio, sigmas, unit)
    return mask_voxels(
        volume,
        sparks | hot | dead,
        "mask_hot_pixels",
        hot_pixels=int(np.count_nonzero(hot)),
        dead_pixels=int(np.count_nonzero(dead)),
        ratio=ratio,
        sigmas=sigmas,
        counting_unit=unit,
    )


def connected(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the connected parts of a mask numbered from 1 on, diagonal neighbours being connected."""
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, np.ones((3,) * mask.ndim), output=labels)
    return labels


_REACH = 2
_AROUND = np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.bool_)
_AROUND[_REACH, _REACH] = False


def _exceeds(
    value: NDArray[np.floating], other: NDArray[np.floating], ratio: float, sigmas: float, unit: float
) -> NDArray[np.bool_]:
    """Where Poisson counts, one being ``unit``, exceed others by a factor, and beyond chance."""
    return value > ratio * other + sigmas * np.sqrt(unit * (other + unit))


def _stands_out(frames: NDArray[np.floating], ratio: float, sigmas: float, unit: float) -> NDArray[np.bool_]:
    """Where a pixel of a frame, or of each in a stack, stands out above the third brightest of 24 around."""
    # The third brightest of 24 is at least the third brightest of four: a quick test, few are left.
    found = _exceeds(frames, second_smallest_neighbour(frames), ratio, sigmas, unit)
    *stack, rows, columns = np.nonzero(found)
    if len(rows):
        height, width = frames.shape[-2:]
        around = [
            frames[*stack, _reflected(rows + i - _REACH, height), _reflected(columns + j - _REACH, width)]
            for i, j in np.argwhere(_AROUND)
        ]
        third = np.partition(around, -3, axis=0)[-3]
        places = (*stack, rows, columns)
        found[places] = _exceeds(frames[places], third, ratio, sigmas, unit)
    return found


def _reflected(places: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Return places of an axis, those beyond its ends reflected about the first and the last."""
    period = max(2 * (size - 1), 1)
    places = places % period
    return np.minimum(places, period - places) if size > 1 else np.zeros_like(places)


def _total(
    intensity: NDArray[np.float32], valid: NDArray[np.bool_], slices: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return each pixel's counts over slices, those not valid made up for, and where any is valid."""
    slices = np.arange(len(intensity)) if slices is None else slices
    total, times = np.zeros(intensity.shape[1:]), np.zeros(intensity.shape[1:])
    for index in slices:
        total += np.where(valid[index], intensity[index], 0)
        times += valid[index]
    measured = times > 0
    return np.divide(total * len(slices), times, out=np.zeros_like(total), where=measured), measured


def _floor(intensity: NDArray[np.float32], trusted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sum of each pixel's darkest frames, those that are not trusted taken for dark."""
    n = max(1, int(FLOOR_SHARE * len(intensity)))
    floor = np.zeros(intensity.shape[1:])
    for row in range(intensity.shape[1]):
        counts = np.where(trusted[:, row], intensity[:, row], 0)
        floor[row] = np.partition(counts, n - 1, axis=0)[:n].sum(axis=0, dtype=np.float64)
    return floor


def _silent_lines(
    total: NDArray[np.float64], measured: NDArray[np.bool_], enough: float
) -> NDArray[np.bool_]:
    """Rows without a count that lie between counting ones; bool, the frame's shape."""
    sums = total.sum(axis=1)
    counting = np.flatnonzero(sums > 0)
    silent = np.zeros(total.shape, np.bool_)
    for row in np.flatnonzero((sums == 0) & measured.any(axis=1)):
        below, above = counting[counting < row], counting[counting > row]
        if len(below) and len(above) and min(sums[below[-1]], sums[above[0]]) >= enough:
            silent[row] = True
    return silent


def _silent_patches(total: NDArray[np.float64], empty: NDArray[np.bool_], enough: float) -> NDArray[np.bool_]:
    """Patches without a count whose surroundings, all around, count."""
    labels = connected(empty)
    silent = np.zeros(total.shape, np.bool_)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        # Most holes are in next to no counts.
        if 10 * total[box].max() < enough:
            continue
        patch = labels[box] == label
        around = total[box][ndimage.binary_dilation(patch, np.ones((3, 3))) & ~patch]
        # The surroundings' darkest tenth, since a hole in sparse counts always has some bright neighbours.
        # A silent detector has no surroundings.
        if around.size and np.quantile(around, 0.1) * min(np.count_nonzero(patch), 10) >= enough:
            silent[box] |= patch
    return silent

"""A measured volume -> a clean one: the detector's errors corrected, what is no measurement masked.

Each step is a pure function, `DiffractionVolume` to `DiffractionVolume`, that adds itself to the history.
`prepare` is the usual chain.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.aliens import mask_aliens
from bluesky_cdinn.crop import crop_around_peak
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.masking import mask_gaps, mask_hot_pixels, mask_saturated, mask_voxels, with_step
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.records import DiffractionVolume, RockingCurve

__all__ = [
    "correct_dark",
    "correct_flat",
    "crop_around_peak",
    "detector_fields",
    "estimate_background",
    "find_peak",
    "mask_aliens",
    "mask_gaps",
    "mask_hot_pixels",
    "mask_saturated",
    "mask_voxels",
    "prepare",
    "subtract_background",
]

# A dark field of whole numbers with fewer nonzero pixels than this is a list of bad ones.
BAD_PIXEL_SHARE = 0.05

# A pixel whose sensitivity is below or above these parts of the median can't be trusted.
FLAT_LOWEST, FLAT_HIGHEST = 0.25, 4.0

# Edge of the cubes of voxels whose mean counts are compared to tell background from signal.
BLOCK = 16
# Background is as flat as this: the mean of a block at the third decile over that at the first.
FLATNESS = 1.5
# Background has no fringes: this much of the squared mean may its variance exceed the Poisson one.
FRINGES = 0.1
# Numbers whose variance is less than this part of their mean are no counts: normalised, or noise-free.
POISSON = 0.8


def prepare(
    volume: DiffractionVolume,
    *,
    dark: ArrayLike | None = None,
    flat: ArrayLike | None = None,
    bad: ArrayLike | None = None,
    saturation: float | None = None,
    background: Literal["auto"] | float | None = "auto",
    aliens: bool = True,
) -> DiffractionVolume:
    """Apply the usual chain: saturation, given bad pixels, dark, flat, gaps, hot pixels, background, aliens.

    Every default is safe where nothing is known of the detector.

    Parameters
    ----------
    volume
        As assembled.
    dark, flat, bad
        Of the detector, for the volume's pixels; see `correct_dark`, `correct_flat`, `mask_voxels`.
    saturation
        The detector's limit in counts; None looks for one.
    background
        Counts a voxel to subtract; "auto" estimates them, None leaves them.
    aliens
        Whether other crystals' peaks are looked for.

    Raises
    ------
    InvalidInput
        If a field doesn't fit the frames, or there are no counts.
    """
    volume = mask_saturated(volume, saturation)
    if bad is not None:
        volume = mask_voxels(volume, bad, "mask_bad_pixels")
    if dark is not None:
        volume = correct_dark(volume, dark)
    if flat is not None:
        volume = correct_flat(volume, flat)
    volume = mask_hot_pixels(mask_gaps(volume))
    if background is not None:
        volume = subtract_background(volume, None if background == "auto" else float(background))
    return mask_aliens(volume) if aliens else volume


def detector_fields(curve: RockingCurve) -> dict[str, NDArray[Any]]:
    """Read the dark and the flat field that a curve's ``cdi`` metadata names, as keywords for `prepare`.

    ``cdi["dark_file"]`` and ``cdi["flat_file"]`` are each a mapping with the ``path`` of an HDF5 file, the
    ``dataset``, and where the frames are a part of the detector the ``region`` [row, row end, column,
    column end] of it.

    Raises
    ------
    InvalidInput
        If a field is named that can't be read.
    """
    cdi = curve.metadata.get("cdi", {})
    named = {name: cdi.get(f"{name}_file") for name in ("dark", "flat")}
    return {name: _read_field(name, where) for name, where in named.items() if where is not None}


def _read_field(name: str, where: Mapping[str, Any]) -> NDArray[Any]:
    try:
        with h5py.File(Path(where["path"]), "r") as file:
            field = np.squeeze(np.asarray(file[where["dataset"]]))
        row, row_end, column, column_end = where.get("region") or (0, len(field), 0, len(field.T))
        return field[row:row_end, column:column_end]
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"cdi.{name}_file must name path, dataset and region of a 2D field, got {where!r}: {error}"
        ) from error


def correct_dark(volume: DiffractionVolume, dark: ArrayLike) -> DiffractionVolume:
    """Subtract a dark field, or mask the bad pixels that it lists.

    Parameters
    ----------
    volume
        Stays as it is.
    dark
        Real (row, column). Whole numbers, nearly all zero, list the bad pixels of a counting detector;
        anything else is the counts of a frame without beam, subtracted down to zero.

    Raises
    ------
    InvalidInput
        If its shape isn't the frames'.
    """
    dark = _field("dark", dark, volume)
    if np.count_nonzero(dark) <= BAD_PIXEL_SHARE * dark.size and (dark == np.rint(dark)).all():
        return mask_voxels(volume, dark != 0, "mask_dark", pixels=int(np.count_nonzero(dark)))
    unknown = ~np.isfinite(dark)
    intensity = volume.intensity - np.where(unknown, 0, dark).astype(np.float32)
    np.maximum(intensity, 0, out=intensity)
    subtracted = with_step(volume, "subtract_dark", intensity=intensity, mean=float(np.nanmean(dark)))
    return mask_voxels(subtracted, unknown, "mask_dark") if unknown.any() else subtracted


def correct_flat(volume: DiffractionVolume, flat: ArrayLike) -> DiffractionVolume:
    """Divide by a flat field, relative to its median; pixels of extreme sensitivity are masked.

    Parameters
    ----------
    volume
        Stays as it is.
    flat
        Counts of a uniformly lit detector, real (row, column), in any unit.

    Raises
    ------
    InvalidInput
        If its shape isn't the frames', or it is nowhere positive.
    """
    flat = _field("flat", flat, volume)
    lit = np.isfinite(flat) & (flat > 0)
    if not lit.any():
        raise InvalidInput("a flat field must be positive somewhere, got none")
    relative = np.where(lit, flat, 0) / np.median(flat[lit])
    extreme = (relative < FLAT_LOWEST) | (relative > FLAT_HIGHEST)
    intensity = volume.intensity / np.where(extreme, 1, relative).astype(np.float32)
    divided = with_step(volume, "flat_field", intensity=intensity, spread=float(relative[~extreme].std()))
    return mask_voxels(divided, extreme, "mask_flat", pixels=int(np.count_nonzero(extreme)))


def _field(name: str, values: ArrayLike, volume: DiffractionVolume) -> NDArray[np.float64]:
    field = np.asarray(values)
    if field.dtype.kind not in "buif" or field.shape != volume.intensity.shape[1:]:
        raise InvalidInput(
            f"a {name} field must be real with the frames' shape {volume.intensity.shape[1:]}, got "
            f"{field.shape} of type {field.dtype}; give the region of it that the frames show"
        )
    return field.astype(np.float64)


def subtract_background(volume: DiffractionVolume, level: float | None = None) -> DiffractionVolume:
    """Subtract the same expected background everywhere, down to zero.

    Parameters
    ----------
    volume
        Masked, best.
    level
        Counts a voxel; None estimates it.
    """
    level = estimate_background(volume) if level is None else level
    if not level > 0:
        return with_step(volume, "subtract_background", level=0.0)
    intensity = volume.intensity - np.float32(level)
    np.maximum(intensity, 0, out=intensity)
    intensity[~volume.valid] = 0
    return with_step(volume, "subtract_background", intensity=intensity, level=float(level))


def estimate_background(volume: DiffractionVolume) -> float:
    """Estimate what every voxel counts beside the crystal's diffraction.

    It is the mean count of the darkest blocks of 16**3 voxels, provided that these agree with each other,
    and vary no more from voxel to voxel than Poisson counts of one mean: the tails of a peak that fills the
    volume fall off, and have fringes, and are not taken for background.

    Returns
    -------
    float
        Counts a voxel; 0 where nothing flat is found.
    """
    times, sums, squares = _blocks(volume)
    enough = times >= times.max(initial=1) / 2
    means = sums[enough] / times[enough]
    if len(means) < 10:
        return 0.0
    order = np.argsort(means)
    first, third = means[order[len(means) // 10]], means[order[3 * len(means) // 10]]
    if not first > 0 or third > FLATNESS * first:
        return 0.0
    darkest = order[: len(means) // 10 + 1]
    voxels, mean = times[enough][darkest].sum(), means[darkest].mean()
    dispersion = (squares[enough] / times[enough] - means**2)[darkest].mean() / mean
    if not POISSON < dispersion < 1 + FRINGES * mean + 3 * np.sqrt(2 / voxels):
        return 0.0
    return float(first)


def _blocks(volume: DiffractionVolume) -> NDArray[np.float64]:
    """Return number, sum and sum of squares of the valid voxels of each whole block, float64 (3, blocks)."""
    edges = [np.arange(0, n - n % min(BLOCK, n), min(BLOCK, n)) for n in volume.intensity.shape]
    ends = [int(starts[-1]) + min(BLOCK, n) for starts, n in zip(edges, volume.intensity.shape, strict=True)]
    sums = []
    for start in edges[0]:
        part = (slice(start, start + min(BLOCK, volume.intensity.shape[0])), slice(ends[1]), slice(ends[2]))
        valid = volume.valid[part]
        counts = np.where(valid, volume.intensity[part], 0)
        images = [array.sum(axis=0, dtype=np.float64) for array in (valid, counts, counts * counts)]
        sums.append(
            np.add.reduceat(np.add.reduceat(images, edges[1], axis=1), edges[2], axis=2).reshape(3, -1)
        )
    return np.concatenate(sums, axis=1)

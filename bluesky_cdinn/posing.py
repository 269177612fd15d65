"""From a diffraction volume to a phase problem: centred, padded, sampled as needed, some voxels held out."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_cdinn import phasing, quality
from bluesky_cdinn.detection import COHERENT, Blur, without_blur
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.forward import backpropagate, propagate, to_centre, to_corner
from bluesky_cdinn.grid import (
    coarse_levels,
    fill_invalid,
    held_out_voxels,
    resample_intensity,
    smooth_shape,
    sufficient_shape,
    window_on_grid,
)
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.support import autocorrelation_support

# Of the valid voxels, kept from the fit to judge it; outside the core, whose loss would cost too much.
HELD_OUT, CORE = 0.02, 0.15
# Voxels of over this share of the peak are the peak's own, not background.
FRINGES = 0.02
# Voxels that are not valid may hold this share of the counts before the grid is left as it is.
FILLED = 0.01
# Volumes of fewer voxels than this aren't worth padding, nor any whose edge holds more of its counts.
LARGE, CROSSED = 300_000, 1e-3
# Power of a lag, in that of counting noise, that no noise has by chance; and by how much a crystal may exceed
# what blur leaves of it (1.35 times at 1.2 voxels): more is a halo, or noise, that was amplified.
CERTAIN, HIDDEN = 20.0, 1.4
# Fewer slices or counts than this hold no crystal.
FEWEST_SLICES, FEWEST_COUNTS = 8, 500


def centre_peak(volume: DiffractionVolume) -> tuple[DiffractionVolume, tuple[int, ...]]:
    """Return the volume rolled so that its peak lies at n // 2, and by how much.

    The transform is periodic, so that rolling is exact; voxels that cross the edge stay what they were.
    """
    counts = float(volume.intensity[volume.valid].sum())
    if not FEWEST_COUNTS <= counts < np.inf or min(volume.intensity.shape) < FEWEST_SLICES:
        raise InvalidInput(
            f"a diffraction volume must have at least {FEWEST_SLICES} voxels a side and {FEWEST_COUNTS} "
            f"valid counts, got shape {volume.intensity.shape} and {counts:.0f} counts; voxels that hold no "
            "number must not be valid"
        )
    roll = tuple(
        n // 2 - round(p) for n, p in zip(volume.intensity.shape, centre_of_counts(volume), strict=True)
    )
    return rolled(volume, roll), roll


def rolled(volume: DiffractionVolume, roll: tuple[int, ...]) -> DiffractionVolume:
    """Return a volume rolled by whole voxels, its window and angles with it."""
    if not any(roll):
        return volume
    first, row, column = (w - r for w, r in zip(volume.window, roll, strict=True))
    angles = volume.angles_deg
    if angles is not None and len(angles) > 1:
        angles = angles - roll[0] * (angles[-1] - angles[0]) / (len(angles) - 1)
    return replace(
        volume,
        intensity=np.roll(volume.intensity, roll, axis=quality.AXES),
        valid=np.roll(volume.valid, roll, axis=quality.AXES),
        angles_deg=angles,
        window=(first, row, column),
    )


def padded(volume: DiffractionVolume, roll: tuple[int, ...]) -> DiffractionVolume:
    """Return a large volume with voxels that are not valid around it, up to lengths that FFTs are fast on.

    Voxels that rolling took across the edge lie where they belong only on the volume's own grid, so that
    they are left out; where they matter, the volume stays as it is.
    """
    shape = volume.intensity.shape
    larger = smooth_shape(shape)
    if larger == shape or volume.intensity.size < LARGE:
        return volume
    stayed = np.ones(shape, dtype=np.bool_)
    for axis, step in enumerate(roll):
        crossed = slice(0, step) if step > 0 else slice(shape[axis] + step, None)
        if step:
            np.moveaxis(stayed, axis, 0)[crossed] = False
    counts = np.where(volume.valid, volume.intensity, 0)
    if counts[~stayed].sum() > CROSSED * counts.sum():
        return volume
    window = window_on_grid(larger, shape)
    intensity, valid = np.zeros(larger, np.float32), np.zeros(larger, np.bool_)
    intensity[window], valid[window] = volume.intensity, volume.valid & stayed
    return DiffractionVolume(intensity, valid)


def unpadded(objects: Objects, shape: tuple[int, ...]) -> Objects:
    """Return objects on the grid whose field is the central window of theirs."""
    larger = tuple(objects.density.shape[-3:])
    if larger == shape:
        return objects
    window = (slice(None), *window_on_grid(larger, shape))
    density = backpropagate(propagate(to_centre(objects.density))[window])
    extended = backpropagate(propagate(to_centre(objects.support).to(density.dtype))[window]).real
    scale = (density[0].numel() / objects.density[0].numel()) ** 0.5
    support = (extended > 0.5 / scale).to(objects.support.dtype)
    return Objects(to_corner(density), to_corner(support), objects.chi2)


def centre_of_counts(volume: DiffractionVolume) -> tuple[float, ...]:
    """Return the centre of mass of the peak, voxels: where the crystal's mean lattice scatters to.

    A strongly strained crystal's brightest fringe may be far from it.
    """
    peak = find_peak(volume)
    shape = volume.intensity.shape
    # About the peak the volume is periodic, so that one at the edge has all its sides.
    roll = [n // 2 - round(p) for n, p in zip(shape, peak, strict=True)]
    counts = np.roll(np.where(volume.valid, volume.intensity, 0), roll, axis=quality.AXES)
    counts = np.where(counts > FRINGES * counts[tuple(n // 2 for n in shape)], counts, 0)
    total = counts.sum(dtype=np.float64)
    centre = []
    for axis, (n, r) in enumerate(zip(shape, roll, strict=True)):
        profile = counts.sum(axis=tuple(a for a in quality.AXES if a != axis), dtype=np.float64)
        centre.append(float(profile @ np.arange(n) / total) - r if total else peak[axis])
    return tuple(centre)


@dataclass(frozen=True, eq=False)
class Posed:
    """A volume made ready.

    Parameters
    ----------
    working
        The phase problem, sampled no finer than the crystal needs.
    full
        The same measurement on the volume's own grid.
    """

    working: phasing.Problem
    full: Measurement


def pose(volume: DiffractionVolume, options: ReconstructionOptions, device: torch.device) -> Posed:
    """Return a volume, centred on its peak, as a phase problem."""
    rng = np.random.default_rng(options.seed)
    intensity = np.where(volume.valid, volume.intensity, 0).clip(0)
    free = held_out_voxels(volume.valid, HELD_OUT, CORE, rng)
    filled = fill_invalid(intensity, volume.valid)
    full = _measurement(intensity, volume.valid, free, filled, device)
    del intensity, free, filled
    return Posed(sampled(full, options.seed), full)


def sampled(full: Measurement, seed: int, blur: Blur = COHERENT) -> phasing.Problem:
    """Return a measurement as a phase problem on no finer a grid than its crystal needs.

    Parameters
    ----------
    full
        On the volume's own grid.
    seed
        Of the voxels that are held out on another grid.
    blur
        What the pattern is known to be blurred by, voxels: it shortens the autocorrelation.
    """
    extent = extent_of(full.object_intensity)
    if any(blur):
        whole = extent_of(without_blur(full.intensity, blur, CERTAIN))
        if all(true <= HIDDEN * seen for true, seen in zip(whole, extent, strict=True)):
            extent = [max(pair) for pair in zip(whole, extent, strict=True)]
    filled = to_centre(full.intensity).cpu().numpy()
    assert full.fitted is not None
    assert full.held_out is not None
    free = to_centre(full.held_out).cpu().numpy()
    valid = to_centre(full.fitted).cpu().numpy() | free
    slices: NDArray[np.bool_] = np.asarray(valid.any(axis=(1, 2)))
    # What is guessed of whole slices to come says nothing of how far the counts reach.
    reached = filled * slices[:, None, None]
    shape = sufficient_shape(filled.shape, extent)
    if _share(filled, ~valid) > FILLED:
        # Along the detector's axes alone each slice stays what it is, measured or not.
        shape = sufficient_shape(filled.shape, (filled.shape[0], *extent[1:]))
        slices_hold = _share(reached, ~valid) <= FILLED
        shape = shape if slices_hold else filled.shape
    else:
        slices = np.ones_like(slices)
    if shape == filled.shape:
        return phasing.Problem(full, coarse_levels(reached, extent))
    coarser = resample_intensity(filled, (valid & ~free) | ~slices[:, None, None], shape)
    measured = np.ones(shape, dtype=np.bool_)
    if not slices.all():
        measured[~slices] = False
    spared = held_out_voxels(measured, HELD_OUT, CORE, np.random.default_rng([seed, 1]))
    device = full.magnitude.device
    working = _measurement(coarser * measured, measured, spared, coarser, device)
    return phasing.Problem(working, coarse_levels(coarser * measured, extent))


def extent_of(counts: Tensor) -> list[int]:
    """Return a crystal's extent along each axis, voxels, by the autocorrelation of its counts."""
    # A level high enough to leave out the halo; the grid's margins make up for what it cuts.
    box = to_centre(autocorrelation_support(counts, 0.01)).cpu().numpy()
    return [int(box.any(axis=tuple(a for a in quality.AXES if a != axis)).sum()) for axis in quality.AXES]


def _share(counts: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    """Return what part of the counts lies there."""
    return float(counts[where].sum()) / float(counts.sum())


def _measurement(
    intensity: NDArray[np.float32],
    valid: NDArray[np.bool_],
    free: NDArray[np.bool_],
    filled: NDArray[np.float32],
    device: torch.device,
) -> Measurement:
    arrays = (np.sqrt(intensity), valid & ~free, free, filled)
    magnitude, fitted, held_out, estimate = (to_corner(torch.from_numpy(a).to(device)) for a in arrays)
    # Where all is measured nothing is an estimate, and whole grids are large.
    return Measurement(magnitude, fitted, held_out, None if valid.all() else estimate, averaged=True)

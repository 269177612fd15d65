"""What an earlier part of a running scan came to, as the start of what comes next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdinn import quality
from bluesky_cdinn.forward import to_corner
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.posing import Posed
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.support import TINY
from bluesky_cdinn.windows import objects_on

Shape = tuple[int, ...]
Place = tuple[float, int, int]

FOUND_FROM = "running scan"


@dataclass(frozen=True, eq=False)
class Known:
    """Objects that are known from other data, where a measurement needs them.

    Parameters
    ----------
    objects
        On its working grid.
    origin
        Where they were found, for the result's parameters.
    most_misfit
        What chi2, over that of counting noise, may come to for them to be taken without a search.
    """

    objects: Objects
    origin: Mapping[str, str]
    most_misfit: float = math.inf


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Objects, and where in the scan's reciprocal space their grid lies.

    Parameters
    ----------
    objects
        On the working grid that they were found on, their centres at n // 2 (`refine.CentreObjects`).
    full
        Shape of the full grid around it; both have the same voxels.
    centre
        What the zero frequency lies on: rocking angle in deg, or slice where the volume has no angles, then
        row and column of the detector.
    step_deg
        Of the rocking angle; None where angles are not known.
    misfit
        chi2 of the best object over that of counting noise.
    """

    objects: Objects
    full: Shape
    centre: Place
    step_deg: float | None = None
    misfit: float = math.nan

    @classmethod
    def of(cls, objects: Objects, posed: Posed, volume: DiffractionVolume) -> "WarmStart":
        """Keep objects for later, with the volume that they were found in, centred on its peak."""
        return cls(
            objects,
            tuple(posed.full.magnitude.shape),
            zero_frequency(volume),
            step_deg(volume),
            over_noise(objects, posed.working.measurement),
        )

    def known(self, posed: Posed, volume: DiffractionVolume) -> Known:
        """Return the objects where another volume of the same scan needs them; see `on`."""
        return Known(self.on(posed, volume), {"found_from": FOUND_FROM})

    def on(self, posed: Posed, volume: DiffractionVolume) -> Objects:
        """Return the objects on the working grid of another volume of the same scan, as far as both reach."""
        moved = voxels_between(self.centre, volume)
        full = boxed(self.objects, self.full)
        turned = replace(full, density=ramped(full.density, moved))
        there = objects_on(turned, tuple(posed.full.magnitude.shape))
        here = boxed(there, tuple(posed.working.measurement.magnitude.shape))
        return here.to(posed.full.magnitude.device)


def voxels_between(centre: Place, volume: DiffractionVolume) -> tuple[int, int, int]:
    """Return how far a centre lies above a volume's own, in the volume's voxels."""
    rocking, row, column = (c - own for c, own in zip(centre, zero_frequency(volume), strict=True))
    angles = volume.angles_deg
    if angles is not None and len(angles) > 1:
        rocking *= (len(angles) - 1) / (angles[-1] - angles[0])
    return round(rocking), int(row), int(column)


def zero_frequency(volume: DiffractionVolume) -> Place:
    """Return where in its scan a volume has its centre; see `WarmStart`."""
    n, rows, columns = volume.intensity.shape
    first, row, column = volume.window
    angles = volume.angles_deg
    # Slices are counted from the first measured angle, which a scan that goes down moves.
    rocking = float(first + n // 2 if angles is None else angles[n // 2])
    return rocking, row + rows // 2, column + columns // 2


def boxed(objects: Objects, shape: Shape) -> Objects:
    """Return objects in a larger or smaller box of the same voxels, about n // 2."""
    old = tuple(objects.density.shape[-3:])
    if old == shape:
        return objects
    common = [min(n, m) for n, m in zip(old, shape, strict=True)]
    inner, outer = window_on_grid(old, common), window_on_grid(shape, common)

    def cut(values: Tensor) -> Tensor:
        whole = values.new_zeros((len(values), *shape))
        whole[(..., *outer)] = values[(..., *inner)]
        return whole

    return Objects(cut(objects.density), cut(objects.support), objects.chi2.clone())


def over_noise(objects: Objects, measurement: Measurement) -> float:
    """Return chi2 of the best object over that of counting noise."""
    return float(objects.chi2.min()) / max(measurement.noise, TINY)


def step_deg(volume: DiffractionVolume) -> float | None:
    """Return the rocking step, deg, or keV; None where angles are not known."""
    angles = volume.angles_deg
    if angles is None or len(angles) < 2:
        return None
    return float((angles[-1] - angles[0]) / (len(angles) - 1))


def ramped(density: Tensor, cycles: tuple[int, int, int]) -> Tensor:
    """Return objects whose field is moved by whole voxels."""
    shape = tuple(density.shape[-3:])
    return density * to_corner(torch.from_numpy(quality.ramp(shape, cycles))).to(density.device)

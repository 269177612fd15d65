"""The same crystal on another grid: windows of reciprocal space, larger or smaller.

A smaller window is the crystal seen blurred, on as many fewer voxels; in a larger one what lies beyond the
window is not measured, and zero of an object's field.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES
from bluesky_cdinn.guess import guessed_support
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.voxels import crystal_field, mean_field

# How a line along each axis lies in a volume.
LINES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))


def windowed(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return arrays on the window of ``shape`` about the origin, zero where they have no values.

    Parameters
    ----------
    values
        (..., n0, n1, n2), origin at index 0.
    shape
        Of the window, each side larger or smaller than the array's, or the same.
    """
    old = tuple(values.shape[-3:])
    if old == tuple(shape):
        return values
    common = [min(n, m) for n, m in zip(old, shape, strict=True)]
    # The lowest frequencies of both, in the order that transforms have them in.
    kept = [torch.fft.ifftshift(torch.arange(n, device=values.device) - n // 2) for n in common]
    there, here = (
        [(k % n).reshape(line) for k, n, line in zip(kept, sides, LINES, strict=True)]
        for sides in (old, shape)
    )
    whole = values.new_zeros((*values.shape[:-3], *shape))
    whole[(..., *here)] = values[(..., *there)]
    return whole


def measurement_window(measurement: Measurement, shape: Sequence[int]) -> Measurement:
    """Return a measurement in a window of its reciprocal space."""
    old = tuple(measurement.magnitude.shape)
    if old == tuple(shape):
        return measurement
    fitted = measurement.fitted
    if fitted is None and any(n > m for n, m in zip(shape, old, strict=True)):
        fitted = torch.ones_like(measurement.magnitude, dtype=torch.bool)
    cut = [
        None if array is None else windowed(array, shape)
        for array in (fitted, measurement.held_out, measurement.filled)
    ]
    seen = None if measurement.detection is None else measurement.detection.window(shape)
    magnitude = windowed(measurement.magnitude, shape)
    return Measurement(magnitude, *cut, detection=seen, averaged=measurement.averaged)


def objects_on(objects: Objects, shape: Sequence[int]) -> Objects:
    """Return objects on the grid of another window: the same crystal, as far as both windows reach."""
    if tuple(objects.density.shape[-3:]) == tuple(shape):
        return objects
    density = density_on(objects.density, shape)
    return Objects(density, guessed_support(density), objects.chi2.clone())


def density_on(density: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a crystal's means over the voxels of another window, complex ``(..., *shape)``."""
    field = torch.fft.fftn(density, dim=AXES, norm="ortho")
    # Voxels of another size are other means.
    field = mean_field(windowed(crystal_field(field), shape))
    return torch.fft.ifftn(field, dim=AXES, norm="ortho")

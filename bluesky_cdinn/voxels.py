"""What a voxel of an object is: the mean of the crystal over it, as far as the detector is concerned.

A crystal ends sharply, so that its far field goes on beyond any detector. Cut off where the detector ends,
it is that of a crystal that rings: a few percent of its amplitude lie outside of it, where no support lets
them be, and no object inside of one fits the counts. The means of the crystal over the voxels end where the
crystal does. Their field is the crystal's times the form factor of a voxel, which is 1 at the peak and
0.64 where an axis ends; what of it lies beyond the detector and is folded back is small, as the form factor
falls to zero at twice that.

The objects that are phased are such means; `crystal_field` tells what the detector saw of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES


def voxel_form_factor(shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """Return the form factor of a voxel as three factors, to be multiplied: ``sinc(k / n)`` along each axis.

    Parameters
    ----------
    shape
        Of the grid.
    like
        Tells on which device.

    Returns
    -------
    list of Tensor
        float32 (n0, 1, 1), (n1, 1) and (n2,), origin at index 0.
    """
    lines = [torch.sinc(torch.fft.fftfreq(n, device=like.device)) for n in shape]
    return [line.reshape([-1] + [1] * (2 - axis)) for axis, line in enumerate(lines)]


def mean_field(field: Tensor) -> Tensor:
    """Return what a crystal's field, or its magnitude, is of its means over voxels, (..., n0, n1, n2)."""
    first, second, third = voxel_form_factor(field.shape[-3:], field)
    return field * first * (second * third)


def crystal_field(field: Tensor) -> Tensor:
    """Return a crystal's field, (..., n0, n1, n2), from that of its means over voxels."""
    first, second, third = voxel_form_factor(field.shape[-3:], field)
    return field / first / (second * third)


def crystal_power(power: Tensor) -> Tensor:
    """Return a crystal's ``abs(F)**2``, float (..., n0, n1, n2), from that of its means over voxels."""
    first, second, third = voxel_form_factor(power.shape[-3:], power)
    return power / (first * first) / (second * third).square()


def averaged(density: Tensor) -> Tensor:
    """Return a crystal's means over voxels, complex (..., n0, n1, n2), origin at index 0."""
    return torch.fft.ifftn(mean_field(torch.fft.fftn(density, dim=AXES)), dim=AXES)


def unaveraged(density: Tensor) -> Tensor:
    """Return the crystal as the detector's grid resolves it, ringing and all, from its means over voxels.

    ``abs(F)**2`` of it is what is compared with the counts.

    Parameters
    ----------
    density
        complex (..., n0, n1, n2), origin at index 0.
    """
    return torch.fft.ifftn(crystal_field(torch.fft.fftn(density, dim=AXES)), dim=AXES)

"""From an object to its diffraction, differentiable: the one physical model that everything else fits.

Kinematic far-field diffraction of a crystal around one Bragg peak is the Fourier transform of its complex
density. The transform is orthonormal with the zero frequency at index n // 2 of each axis, so that
``intensity = abs(propagate(density))**2`` and the sums of both sides agree (Parseval).
"""

import torch
from torch import Tensor

AXES = (-3, -2, -1)


def to_corner(array: Tensor) -> Tensor:
    """Move the origin of the last three axes from index n // 2 to index 0, where the FFT has it."""
    return torch.fft.ifftshift(array, dim=AXES)


def to_centre(array: Tensor) -> Tensor:
    """Undo `to_corner`."""
    return torch.fft.fftshift(array, dim=AXES)


def propagate(density: Tensor) -> Tensor:
    """Return the far field of an object.

    Parameters
    ----------
    density
        complex (..., n0, n1, n2), origin at n // 2.

    Returns
    -------
    Tensor
        The field, the same shape and dtype, zero frequency at n // 2.
    """
    return to_centre(torch.fft.fftn(to_corner(density), dim=AXES, norm="ortho"))


def backpropagate(field: Tensor) -> Tensor:
    """Return the object of a far field: the inverse of `propagate` and, being orthonormal, its adjoint."""
    return to_centre(torch.fft.ifftn(to_corner(field), dim=AXES, norm="ortho"))


def amplitude_loss(field: Tensor, magnitude: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return chi2: sum of ``(abs(field) - magnitude)**2`` over the sum of ``magnitude**2``.

    With ``magnitude = sqrt(counts)`` this is, up to a factor, the Poisson likelihood where counts are not
    few: the square root makes the variance 1/4 everywhere (Anscombe 1948).

    Parameters
    ----------
    field
        complex (..., n0, n1, n2).
    magnitude
        float (n0, n1, n2), sqrt of counts.
    valid
        bool (n0, n1, n2); voxels that are False are free. None takes all.

    Returns
    -------
    Tensor
        float (...), one value an object.
    """
    residual = (field.abs() - magnitude).square()
    norm = magnitude.square()
    if valid is not None:
        residual, norm = residual * valid, norm * valid
    return residual.sum(AXES) / norm.sum()


def poisson_deviance(power: Tensor, counts: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean Poisson deviance a voxel, ``2 (m - n + n log(n / m))``, of a model from counts.

    It is about 1 where the model is right and counts are not few, and zero where it is exact; a model
    of less than a twentieth of a count is taken for that much.

    Parameters
    ----------
    power
        The model's expected counts, float (..., n0, n1, n2).
    counts
        Measured counts, float (n0, n1, n2).
    valid
        bool (n0, n1, n2); None takes all voxels.

    Returns
    -------
    Tensor
        float (...), one value an object.
    """
    if valid is not None:
        # Mostly a few: those alone.
        power, counts = power[..., valid], counts[valid]
    # A twentieth of a count is below any detector's background and keeps the logarithm finite.
    expected = power.clamp_min(0.05)
    deviance = 2 * (expected - counts - counts * expected.log() + torch.xlogy(counts, counts))
    return deviance.mean(AXES if valid is None else -1)

"""Where an object may be: estimates of its support, before there is an object and from one.

All arrays have their origin at index 0 (`forward.to_corner`).
"""

import math

import numpy as np
import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES, to_centre, to_corner

# Keeps quotients by a vanishing field finite; far below one count.
TINY = 1e-12


def modulus(values: Tensor) -> Tensor:
    """Return abs(values), floored above 0; on a CPU by NumPy, which vectorises it over complex numbers."""
    size = torch.from_numpy(np.abs(values.numpy())) if values.device.type == "cpu" else values.abs()
    return size.add_(TINY)


def typical_amplitude(amplitude: Tensor) -> Tensor:
    """Return the amplitude-weighted mean amplitude of each object, float (starts, 1, 1, 1)."""
    return amplitude.square().sum(AXES, keepdim=True) / amplitude.sum(AXES, keepdim=True).clamp_min(TINY)


def below_ceiling(image: Tensor, support: Tensor, ceiling: float) -> Tensor:
    """Return the factor, at most 1, that brings every amplitude down to ``ceiling`` times the typical one.

    Parameters
    ----------
    image
        complex (starts, n0, n1, n2).
    support
        float of the same shape; the typical amplitude is the one inside.
    ceiling
        Multiple of the typical amplitude.
    """
    amplitude = modulus(image)
    limit = ceiling * typical_amplitude(amplitude * support)
    return torch.div(limit, amplitude, out=amplitude).clamp_max_(1)


def largest(values: Tensor, count: int | tuple[int, ...]) -> Tensor:
    """Return the value of each object that ``count`` of its voxels exceed, float (starts, 1, 1, 1)."""
    flat = values.flatten(-3)
    counts = (count,) * len(flat) if isinstance(count, int) else count
    size = flat.shape[-1]
    levels = [
        row.kthvalue(size - most).values if most < size else row.new_zeros(())
        for row, most in zip(flat, counts, strict=True)
    ]
    return torch.stack(levels)[:, None, None, None]


def gaussian_blur(values: Tensor, sigma: float) -> Tensor:
    """Convolve real values with a Gaussian of ``sigma`` voxels over the last three (periodic) axes."""
    shape = values.shape[-3:]
    spectrum = torch.fft.rfftn(values, dim=AXES)
    for axis, n in zip(AXES, shape, strict=True):
        make = torch.fft.rfftfreq if axis == -1 else torch.fft.fftfreq
        frequency = make(n, device=values.device)
        factor = torch.exp(-2 * (torch.pi * sigma * frequency) ** 2)
        spectrum.mul_(factor.reshape([-1 if a == axis else 1 for a in AXES]))
    return torch.fft.irfftn(spectrum, s=shape, dim=AXES)


def autocorrelation(intensity: Tensor) -> Tensor:
    """Return the magnitude of the object's autocorrelation, float (n0, n1, n2), 1 at zero lag.

    By the Wiener-Khinchin theorem it is the transform of the intensity; no phase is needed.
    """
    lags = torch.fft.ifftn(intensity, dim=AXES).abs()
    return lags / lags.flatten()[0]


def autocorrelation_support(intensity: Tensor, threshold: float = 0.003) -> Tensor:
    """Return a first support, bool (n0, n1, n2), from the intensity alone.

    A body's autocorrelation extends over all differences of its points: twice the body itself, for a
    convex centrosymmetric one. So the support is where the autocorrelation at twice the distance is over
    ``threshold``, or over its noise where that is larger. The default gives 1.1 to 1.3 times a faceted
    crystal's volume for phase ranges of 0 to 4 pi; it is 0.04 in other programs, which loses half of a
    strongly strained crystal, whose autocorrelation falls off fast.
    """
    lags = gaussian_blur(autocorrelation(intensity), 1.0)
    # Counting noise spreads evenly over all lags: a voxel's sigma is sqrt(N) / N for N counts.
    noise = 4 / float(intensity.sum().clamp_min(1)) ** 0.5
    reached = to_centre(lags > max(threshold, noise) * lags.max())
    for axis, n in zip(AXES, reached.shape, strict=True):
        doubled = 2 * (torch.arange(n, device=reached.device) - n // 2) + n // 2
        inside = (doubled >= 0) & (doubled < n)
        shape = [-1 if a == axis else 1 for a in AXES]
        reached = reached.index_select(axis, doubled.clamp(0, n - 1)) & inside.reshape(shape)
    return to_corner(reached)


def phase_step(density: Tensor) -> float:
    """Return by how much the phase turns from a voxel to the next, rad: rms about the mean turn, of all axes.

    It is that of a normal distribution with the same mean resultant length, which takes no unwrapping: a ramp
    of the phase does not count.

    Parameters
    ----------
    density
        complex (n0, n1, n2), zero outside of the support.
    """
    variance = 0.0
    for axis in AXES:
        many = density.shape[axis] - 1
        pairs = density.narrow(axis, 1, many) * density.narrow(axis, 0, many).conj()
        weight = float(pairs.abs().sum())
        if weight > 0:
            resultant = float(pairs.sum().abs()) / weight
            variance -= 2 * math.log(min(max(resultant, TINY), 1.0))
    return math.sqrt(variance)

"""Simulated crystals and their diffraction, as the tests of the phasing engine need them."""

import numpy as np

from bluesky_cdinn import quality
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.sim.crystal import random_crystal, sample


def far_field(density):
    """Transform along the last three axes, in plain NumPy: orthonormal, origins at n // 2."""
    axes = (-3, -2, -1)
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density, axes), axes=axes, norm="ortho"), axes)


def random_object(rng, shape, dtype=np.complex128):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


def crystal_density(seed, phase_range, shape, oversampling=2.5):
    """Sample a faceted crystal that takes 1/oversampling of each axis, in amplitude 1."""
    crystal = random_crystal(np.random.default_rng(seed), 100.0, phase_range)
    extent = np.ptp(crystal.body.vertices(), axis=0)
    return sample(crystal, np.diag(extent * oversampling / np.array(shape)), shape)


def crystal_and_counts(seed, phase_range, shape, *, peak=1e6, cycles=(0, 0, 0), oversampling=2.5):
    """Return a crystal in the scale of its counts, and the counts: the peak is ``cycles`` off the centre."""
    density = crystal_density(seed, phase_range, shape, oversampling) * quality.ramp(shape, cycles)
    density = (density * np.sqrt(peak) / np.abs(far_field(density)).max()).astype(np.complex64)
    counts = np.random.default_rng([seed, 1]).poisson(np.abs(far_field(density)) ** 2)
    return density, counts.astype(np.float32)


def volume_of(counts, valid=None):
    return DiffractionVolume(counts, np.ones(counts.shape, dtype=bool) if valid is None else valid)

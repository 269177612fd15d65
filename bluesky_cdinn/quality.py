"""How good is it: comparisons that no ambiguity of phase retrieval can disturb.

A diffraction pattern doesn't tell an object's global phase, its place, its conjugate twin
``conj(density(-r))`` and, when the volume was recentred, a linear phase ramp. `align` removes them.
Origins are at index n // 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Complex = NDArray[np.complexfloating[Any]]
AXES = (0, 1, 2)


@dataclass(frozen=True)
class Comparison:
    """How far a reconstruction is from the truth, once aligned with it.

    Parameters
    ----------
    correlation
        Normalised complex correlation, abs, 0 to 1.
    phase_rmse
        rms difference of phase where both have their support, rad.
    amplitude_nrmse
        rms difference of amplitude over the rms amplitude of the truth, in either support.
    iou
        Intersection over union of the supports at half the typical amplitude.
    """

    correlation: float
    phase_rmse: float
    amplitude_nrmse: float
    iou: float


def typical_amplitude(density: Complex) -> float:
    """Return the amplitude-weighted mean amplitude: the crystal's interior, whatever the empty box."""
    amplitude = np.abs(density)
    return float((amplitude**2).sum() / max(amplitude.sum(), np.finfo(np.float32).tiny))


def half_level_support(density: Complex) -> NDArray[np.bool_]:
    """Return where the amplitude is over half its typical value: the edge of a crystal seen blurred."""
    return np.abs(density) > 0.5 * typical_amplitude(density)


def twin(density: Complex) -> Complex:
    """Return the conjugate, inverted about index n // 2: the other object with the same intensity.

    An even axis has one more voxel below the origin than above it, so that the flipped array is rolled
    by one voxel to bring the origin home.
    """
    return np.conj(_inverted(density))


def _inverted(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array inverted about index n // 2."""
    return np.roll(values[::-1, ::-1, ::-1], [(n + 1) % 2 for n in values.shape], axis=AXES)


def _transform(density: Complex) -> Complex:
    """Return the transform, not normalised, origins at index 0; of single precision in single precision."""
    return np.asarray(scipy.fft.fftn(density))


def shift(density: Complex, offset: Sequence[float]) -> Complex:
    """Move an object by any number of voxels, periodically (Fourier shift theorem)."""
    return _moved(_transform(density), offset)


def _moved(spectrum: Complex, offset: Sequence[float]) -> Complex:
    """Return the object of a spectrum, which is overwritten, moved by a number of voxels."""
    for axis, (along, step) in enumerate(zip(_frequencies(spectrum), offset, strict=True)):
        phase = np.exp(-2j * np.pi * along * step).astype(spectrum.dtype)
        spectrum *= phase.reshape([-1 if a == axis else 1 for a in AXES])
    return np.asarray(scipy.fft.ifftn(spectrum, overwrite_x=True))


def _frequencies(spectrum: Complex) -> list[NDArray[np.float64]]:
    """Return the frequencies along each axis, cycles a voxel, half a cycle to both sides of the peak.

    The pattern of a peak off the centre reaches across the grid's edge. With frequencies of half a cycle to
    both sides of zero, a shift by a fraction of a voxel would tear it apart there.
    """
    peak = np.unravel_index(np.abs(spectrum).argmax(), spectrum.shape)
    return [np.roll(np.fft.fftfreq(n), p) + p / n for n, p in zip(spectrum.shape, peak, strict=True)]


def ramp(shape: Sequence[int], cycles: Sequence[float], dtype: Any = np.complex64) -> Complex:
    """Return ``exp(2 pi i cycles . n / N)``, origin at n // 2: what moves a pattern by ``cycles`` voxels."""
    factors = [
        np.exp(2j * np.pi * k * (np.arange(n) - n // 2) / n) for n, k in zip(shape, cycles, strict=True)
    ]
    return (factors[0][:, None, None] * factors[1][:, None] * factors[2]).astype(dtype)


def best_shift(candidate: Complex, reference: Complex) -> tuple[tuple[float, ...], complex]:
    """Return by how much to move ``candidate`` onto ``reference``, and their inner product there.

    The maximum of the cross-correlation, to 1/20 voxel by an upsampled Fourier transform in the
    neighbourhood of the whole-voxel maximum (Guizar-Sicairos, Thurman and Fienup 2008).
    """
    return _registered(_transform(candidate), _transform(reference))


def _registered(candidate: Complex, reference: Complex) -> tuple[tuple[float, ...], complex]:
    """Return what `best_shift` does of two spectra."""
    cross = np.conj(candidate)
    cross *= reference
    coarse = np.abs(np.asarray(scipy.fft.ifftn(cross, overwrite_x=True)))
    peak = np.unravel_index(coarse.argmax(), coarse.shape)
    # Once more, where keeping it would have been one more array as large.
    del coarse
    cross = np.conj(candidate, out=cross if cross.dtype == candidate.dtype else None)
    cross *= reference
    fine = [
        (p if p <= n // 2 else p - n) + np.arange(-20, 21) / 20
        for p, n in zip(peak, cross.shape, strict=True)
    ]
    # One axis is summed at a time, the first one first, as it lies in memory.
    local = cross.reshape(len(cross), -1)
    for offsets, along in zip(fine, _frequencies(reference), strict=True):
        kernel = np.exp(2j * np.pi * np.outer(offsets, along)).astype(np.complex64)
        local = (kernel @ local.reshape(len(along), -1)).T
    local = local.reshape([len(offsets) for offsets in fine])
    best = np.unravel_index(np.abs(local).argmax(), local.shape)
    offset = tuple(float(offsets[i]) for offsets, i in zip(fine, best, strict=True))
    return offset, complex(local[best]) / cross.size


def align(candidate: Complex, reference: Complex, *, twins: bool = True, ramps: bool = False) -> Complex:
    """Bring an object to a reference's place, twin and global phase.

    Parameters
    ----------
    candidate, reference
        complex (n0, n1, n2).
    twins
        Take the candidate's twin where that fits better.
    ramps
        Remove a linear phase ramp too.

    Returns
    -------
    NDArray
        The candidate, moved, its scale unchanged.
    """
    goal, versions = _transform(reference), (False, True) if twins else (False,)
    if ramps:
        flat = [_remove_ramp(twin(candidate) if mirrored else candidate, reference) for mirrored in versions]
        found = [_registered(_transform(version), goal) for version in flat]
        best = int(np.argmax([abs(overlap) for _, overlap in found]))
        spectrum = _transform(flat[best])
    else:
        spectrum, found = _transform(candidate), []
        for mirrored in versions:
            if mirrored:
                # That of the twin, but for its place.
                np.conj(spectrum, out=spectrum)
            found.append(_registered(spectrum, goal))
        best = int(np.argmax([abs(overlap) for _, overlap in found]))
        if versions[best] is not versions[-1]:
            np.conj(spectrum, out=spectrum)
    del goal
    offset, overlap = found[best]
    moved = _moved(spectrum, offset)
    moved *= np.asarray(np.exp(1j * np.angle(overlap)), dtype=moved.dtype)
    return moved


def _remove_ramp(candidate: Complex, reference: Complex) -> Complex:
    """Take a linear phase ramp relative to the reference out of a candidate that may be moved, too."""
    offset, _ = best_shift(np.abs(candidate).astype(np.complex64), np.abs(reference).astype(np.complex64))
    moved = shift(candidate, offset)
    # A ramp between two objects is a shift between their transforms, and so is found like one.
    flat = np.fft.fftshift(_transform(np.fft.ifftshift(moved * np.conj(reference))))
    target = np.zeros_like(flat)
    target[tuple(n // 2 for n in flat.shape)] = 1
    cycles, _ = best_shift(flat, target)
    return moved * ramp(moved.shape, cycles)


def correlation(candidate: Complex, reference: Complex, *, twins: bool = True) -> float:
    """Return the normalised complex correlation of two objects over shift, twin and global phase."""
    norm = np.linalg.norm(candidate) * np.linalg.norm(reference)
    if not norm:
        return 0.0
    goal, spectrum = _transform(reference), _transform(candidate)
    found = [abs(_registered(spectrum, goal)[1])]
    if twins:
        # The conjugate is the spectrum of the twin, but for its place.
        found.append(abs(_registered(np.conj(spectrum, out=spectrum), goal)[1]))
    return max(found) / float(norm)


def compare(candidate: Complex, truth: Complex) -> Comparison:
    """Compare a reconstruction with the truth, all ambiguities (a ramp too) removed.

    Parameters
    ----------
    candidate, truth
        complex (n0, n1, n2) on the same grid, in any scale.
    """
    aligned = align(candidate, truth, ramps=True)
    ours, theirs = half_level_support(aligned), half_level_support(truth)
    both, either = ours & theirs, ours | theirs
    if not both.any():
        return Comparison(correlation(candidate, truth), float("nan"), float("nan"), 0.0)
    product = aligned * np.conj(truth)
    difference = np.angle(product[both] * np.exp(-1j * np.angle(product[both].sum())))
    a, t = np.abs(aligned), np.abs(truth)
    scale = (a * t)[either].sum() / (a**2)[either].sum()
    return Comparison(
        correlation=float(abs(product.sum()) / (np.linalg.norm(aligned) * np.linalg.norm(truth))),
        phase_rmse=float(np.sqrt(np.mean(difference**2))),
        amplitude_nrmse=float(np.sqrt(np.mean((scale * a - t)[either] ** 2) / np.mean(t[either] ** 2))),
        iou=float(both.sum() / either.sum()),
    )


def canonical(density: Complex, support: NDArray[np.bool_]) -> tuple[Complex, NDArray[np.bool_]]:
    """Return the one of an object's equals that everybody gets: centred, mean phase zero, one twin.

    The centre of mass comes to n // 2 to the nearest voxel. Of the twins the one is taken in which the
    plainest of several odd features (`_handedness`) is positive.
    """
    density, support = _centred(density, support)
    density = density * np.exp(-1j * np.angle(density[support].sum())).astype(np.complex64)
    if _handedness(density, support) < 0:
        density, support = twin(density), _inverted(support)
        density, support = _centred(density, support)
    return np.ascontiguousarray(density), np.ascontiguousarray(support)


def _handedness(density: Complex, support: NDArray[np.bool_]) -> float:
    """Return the strongest of the features that an object's twin has with the opposite sign.

    They are the skewness of its shape along each axis, and the skewness and the curvatures of its phase.
    """
    if not support.any():
        return 0.0
    phase, weight = np.angle(density[support]), np.abs(density[support])
    place = np.argwhere(support).astype(np.float64)
    place = (place - np.average(place, axis=0, weights=weight)) / np.maximum(place.std(axis=0), 1e-9)
    phase = phase - np.average(phase, weights=weight)
    features = [np.average(phase**3, weights=weight)]
    for along in place.T:
        features.append(np.average(along**3, weights=weight))
        features.append(np.average(phase * (along**2 - 1), weights=weight))
    return float(max(features, key=abs))


def _centred(density: Complex, support: NDArray[np.bool_]) -> tuple[Complex, NDArray[np.bool_]]:
    weight = np.abs(density) * support
    total = weight.sum()
    if not total:
        return density, support
    step = []
    for axis, n in enumerate(weight.shape):
        profile = weight.sum(axis=tuple(a for a in AXES if a != axis))
        # The mean on a circle, so that an object across the box's edge has a centre too.
        angle = np.angle((profile * np.exp(2j * np.pi * np.arange(n) / n)).sum())
        step.append(n // 2 - round(angle / (2 * np.pi) * n))
    return np.roll(density, step, axis=AXES), np.roll(support, step, axis=AXES)


def similarity(density: Complex, reference: Complex) -> float:
    """Return the normalised complex correlation of two objects that are aligned already, 0 to 1."""
    norm = np.linalg.norm(density) * np.linalg.norm(reference)
    return float(abs(np.vdot(density, reference)) / norm) if norm else 0.0


def phase_difference(density: Complex, reference: Complex) -> float:
    """Return the rms phase difference of two aligned objects where both have their support, rad."""
    both = half_level_support(density) & half_level_support(reference)
    product = (density * np.conj(reference))[both]
    if not len(product):
        return float("nan")
    return float(np.sqrt(np.mean(np.angle(product * np.exp(-1j * np.angle(product.sum()))) ** 2)))


def phase_retrieval_transfer(densities: Sequence[Complex]) -> NDArray[np.float32]:
    """Return the PRTF: in each shell of frequency, how far independent starts found the same phases.

    The usual form, ``abs(mean of F) / sqrt(I)`` (Chapman et al. 2006), can't fall below about
    ``1 / sqrt(number of starts)``. This one is its limit for many starts, estimated without that bias
    from pairs: the square root of their Fourier shell correlation.

    Parameters
    ----------
    densities
        At least two objects, aligned with one another, complex (n0, n1, n2) each.

    Returns
    -------
    NDArray
        float32 (2, shells): frequency in cycles a voxel (0.5 is the edge of the volume), and the PRTF.
    """
    fields = [_transform(d) for d in densities]
    shape = fields[0].shape
    axes = [np.fft.ifftshift((np.arange(n) - n // 2) / n) for n in shape]
    shells = min(shape) // 2
    common, norm = np.zeros(shells), np.zeros(shells)
    # Plane by plane: sums want double precision, and whole volumes of that are large.
    for index, height in enumerate(axes[0]):
        frequency = np.sqrt(height**2 + axes[1][:, None] ** 2 + axes[2] ** 2)
        shell = np.minimum((frequency * 2 * shells).astype(int), shells).ravel()
        for one, other in combinations([field[index] for field in fields], 2):
            product = (one * np.conj(other)).real.ravel()
            size = (np.abs(one) * np.abs(other)).ravel()
            common += np.bincount(shell, weights=product, minlength=shells + 1)[:shells]
            norm += np.bincount(shell, weights=size, minlength=shells + 1)[:shells]
    value = np.sqrt(np.divide(common, norm, out=np.zeros(shells), where=norm > 0).clip(0, 1))
    return np.stack([(np.arange(shells) + 0.5) / (2 * shells), value]).astype(np.float32)


def resolved_frequency(transfer: NDArray[np.float32], level: float = 1 / np.e) -> float:
    """Return where a PRTF first falls under ``level``, cycles a voxel; the last shell if it never does."""
    frequency, value = transfer
    below = np.flatnonzero(value < level)
    if not len(below):
        return float(frequency[-1])
    i = int(below[0])
    if i == 0:
        return float(frequency[0])
    share = (value[i - 1] - level) / (value[i - 1] - value[i])
    return float(frequency[i - 1] + share * (frequency[i] - frequency[i - 1]))

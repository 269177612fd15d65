"""Which grid is worked on: peak at the centre, coarse levels first; and the way back to the volume's own."""

from collections.abc import Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

# A crystal phased on a coarse level must still be this many voxels across: fewer can't hold its phase.
ACROSS = 11
# A grid is this much longer than the autocorrelation, whose extent is an estimate.
MARGIN = 1.25
# Fewer voxels than this share must do for a coarser sampling to be worth its way there and back.
WORTHWHILE = 0.4
# Iterations that fill what was not measured, and the autocorrelation's level that counts as empty.
FILLINGS, EMPTY = 30, 0.01
# What was not measured needs no better estimate than its neighbours' if it holds less of the counts.
NEGLIGIBLE = 1e-3
# Along each axis a level holds this share of the counts that exceed those of planes as dark as this
# percentile: of a peak of 10^4 a background of one count a voxel, however flat, is a third of all.
SHARE, DARKEST = 0.985, 5
# The smallest level. Below it an iteration costs next to nothing already.
FLOOR = 32


def window_on_grid(shape: Sequence[int], inner: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a box of shape ``inner`` whose n // 2 lies on that of ``shape``."""
    return tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(shape, inner, strict=True))


def coarse_levels(intensity: NDArray[np.float32], extent: Sequence[float]) -> list[tuple[int, int, int]]:
    """Return the shapes of the reciprocal-space windows to phase in turn, coarse to fine.

    The central part of a diffraction pattern is the pattern of the same crystal seen blurred, on as many
    fewer voxels: cheaper by its volume, and with fewer ways to stagnate. But a part of the crystal whose
    strain scatters out of the window would be missing from what is seen: so the window holds nearly all
    counts. Each level doubles the one before it at most.

    Parameters
    ----------
    intensity
        Counts on the whole grid, zero where not valid, the peak at n // 2; float (n0, n1, n2).
    extent
        The crystal's extent along each axis, in voxels of the whole grid.

    Returns
    -------
    list of tuple
        Even sizes with small prime factors, except for the last, which is the whole grid.
    """
    shape, smallest = intensity.shape, []
    for axis, (n, size) in enumerate(zip(shape, extent, strict=True)):
        wanted = max(FLOOR, ACROSS * n / max(size, 1.0), _width(intensity, axis))
        smallest.append(min(n, fast_side(wanted)))
    levels = [(int(shape[0]), int(shape[1]), int(shape[2]))]
    while any(n > m for n, m in zip(levels[0], smallest, strict=True)):
        halved = [max(m, fast_side(n // 2)) for n, m in zip(levels[0], smallest, strict=True)]
        levels.insert(0, (halved[0], halved[1], halved[2]))
        # A last step that saves less than half of the voxels isn't worth its iterations.
        if np.prod(levels[0]) > 0.5 * np.prod(levels[1]):
            levels.pop(0)
            break
    return levels


def _width(intensity: NDArray[np.float32], axis: int) -> int:
    """Return the width of the window about n // 2 that holds `SHARE` of the counts over the background."""
    profile = intensity.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
    profile = np.maximum(profile - np.percentile(profile, DARKEST), 0)
    distance = np.abs(np.arange(len(profile)) - len(profile) // 2)
    inside = np.cumsum(np.bincount(distance, weights=profile))
    return 2 * int(np.searchsorted(inside, SHARE * inside[-1])) + 2


def smooth_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the nearest lengths from ``shape`` up that an FFT is fast on: with no prime factor over 11."""
    a, b, c = (int(scipy.fft.next_fast_len(n) or n) for n in shape)
    return a, b, c


def fast_side(length: float) -> int:
    """Return the next even length from there up that an FFT is fast on."""
    n = int(np.ceil(length))
    n += n % 2
    while scipy.fft.next_fast_len(n) != n or n % 2:
        n += 2
    return n


def sufficient_shape(shape: Sequence[int], extent: Sequence[float]) -> tuple[int, int, int]:
    """Return the smallest grid that samples a crystal's diffraction as sampling theory needs.

    The intensity is band-limited: its transform, the autocorrelation, is zero beyond twice the crystal's
    extent. A finer sampled pattern holds no more information, only more voxels.

    Parameters
    ----------
    shape
        Of the measured volume.
    extent
        The crystal's, along each axis, in object voxels.
    """
    wanted = [min(n, fast_side(max(FLOOR // 2, MARGIN * 2 * e))) for n, e in zip(shape, extent, strict=True)]
    if np.prod(wanted) > WORTHWHILE * np.prod(shape):
        wanted = list(shape)
    return int(wanted[0]), int(wanted[1]), int(wanted[2])


def resample_intensity(
    intensity: NDArray[np.float32], valid: NDArray[np.bool_], shape: Sequence[int]
) -> NDArray[np.float32]:
    """Sample a diffraction pattern more coarsely over the same range of frequencies.

    The autocorrelation is cut to a box of ``shape``, which must hold it, and transformed back. Each new
    voxel takes in the photons of the old ones it stands for, so that counts stay Poisson-distributed.

    Parameters
    ----------
    intensity
        Counts, float32 (n0, n1, n2), zero frequency at n // 2.
    valid
        bool, the same shape; voxels that are not are filled from their neighbours first.
    shape
        Of the new grid.

    Returns
    -------
    NDArray
        Counts, float32 of ``shape``, not negative.
    """
    filled = _from_neighbours(intensity, valid, 1.0)
    lags = np.asarray(scipy.fft.ifftn(np.fft.ifftshift(filled)))
    # The shortest lags, in the order that transforms have them in.
    kept = [np.fft.ifftshift(np.arange(m) - m // 2) for m in shape]
    small = lags[np.ix_(*kept)]
    del lags
    transformed = np.asarray(scipy.fft.fftn(small, overwrite_x=True))
    sampled = np.fft.fftshift(np.real(transformed))
    # Both FFTs are orthonormal on their own grid: the same field is stronger on fewer voxels.
    return (sampled * (filled.size / sampled.size)).clip(0).astype(np.float32)


def fill_invalid(intensity: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the intensity with voxels that are not valid estimated from all that are.

    A crystal's pattern is band-limited: where its autocorrelation vanishes is alternately enforced with
    the measured values (Papoulis 1975; Gerchberg 1974), from a first estimate by the neighbours' mean
    magnitude. Zeros instead would put streaks into the autocorrelation, and with them the support.
    """
    filled = np.where(valid, intensity, 0).astype(np.float32)
    if valid.all() or not valid.any():
        return filled
    filled = _from_neighbours(filled, valid, 2.0)
    if filled[~valid].sum() < NEGLIGIBLE * filled.sum():
        return filled
    for _ in range(FILLINGS):
        lags = np.asarray(scipy.fft.rfftn(filled))
        size = np.abs(lags)
        lags[size < EMPTY * size.max()] = 0
        smooth = np.asarray(scipy.fft.irfftn(lags, s=filled.shape, overwrite_x=True))
        filled = np.where(valid, filled, smooth.clip(0))
    return filled


def _from_neighbours(
    intensity: NDArray[np.float32], valid: NDArray[np.bool_], sigma: float
) -> NDArray[np.float32]:
    """Return the intensity, the squared mean magnitude of the valid neighbours where it is not valid."""
    if valid.all():
        return intensity.astype(np.float32)
    reach = gaussian_filter(valid.astype(np.float32), sigma)
    magnitude = gaussian_filter(np.sqrt(np.where(valid, intensity, 0)), sigma)
    return np.where(valid, intensity, (magnitude / np.maximum(reach, 1e-3)) ** 2).astype(np.float32)


def held_out_voxels(
    valid: NDArray[np.bool_], share: float, core: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a random choice of the valid voxels to keep from the fit, for judging it.

    Parameters
    ----------
    valid
        bool (n0, n1, n2), zero frequency at n // 2.
    share
        Of the valid voxels.
    core
        Radius around the centre, as a share of each axis' half-width, from which none is taken: the
        central fringe holds the crystal's volume and mean phase, and can't be predicted by its neighbours.
    rng
        Where chance comes from.
    """
    chosen = rng.random(valid.shape, dtype=np.float32) < share
    axes = [(np.arange(n) - n // 2) / (n / 2) for n in valid.shape]
    far = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 > core**2
    return chosen & valid & far


def signal_window(
    intensity: NDArray[np.float32], centre: Sequence[float], most: int = 128
) -> tuple[int, int, int]:
    """Return the shape of the box around the peak that holds all that can be told from noise.

    Parameters
    ----------
    intensity
        Counts, background subtracted, float32 (n0, n1, n2).
    centre
        The peak's voxel.
    most
        Largest side.

    Returns
    -------
    tuple
        Even sizes with small prime factors, at least `FLOOR`.
    """
    # A mean of 3x3x3 voxels over one count is five sigma above an empty detector.
    smooth = uniform_filter(intensity, 3)
    sides = []
    for axis, place in enumerate(centre):
        profile = smooth.max(axis=tuple(a for a in range(3) if a != axis))
        reach = np.abs(np.flatnonzero(profile > 1.0) - place)
        wanted = 2 * int(np.ceil(reach.max())) if len(reach) else 0
        sides.append(fast_side(min(max(wanted, FLOOR), most)))
    return sides[0], sides[1], sides[2]

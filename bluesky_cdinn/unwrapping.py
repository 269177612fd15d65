"""A density's phase without its offset, its linear ramp and its wraps."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import unwrap_phase

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.float64]
Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]


def flatten_phase(density: NDArray[np.complex64], support: Mask) -> tuple[NDArray[np.complex64], FloatArray]:
    """Take the offset and the linear ramp out of a density's phase.

    A first ramp comes from the mean step between neighbours, which knows no wraps; least squares on
    what is left, unwrapped and weighted with the amplitude, gives the rest.

    Parameters
    ----------
    density
        complex64, 3D.
    support
        Where the phase counts, bool, the same shape.

    Returns
    -------
    tuple
        The density without them, complex64, and the ramp that was taken out, rad a voxel, float64 (3,).

    Raises
    ------
    InvalidInput
        If the support is empty or doesn't fit the density.
    """
    check_density(density, support)
    first = np.array([np.angle(products.sum()) for products in neighbour_products(density, support)])
    flat = _without(density, np.append(0.0, first))
    phase = unwrapped_phase(flat, support)[support]
    weight = np.sqrt(np.abs(density[support]))
    design = np.column_stack([np.ones(len(phase)), np.argwhere(support) - np.array(support.shape) // 2])
    solution = np.linalg.lstsq(design * weight[:, None], phase * weight, rcond=None)[0]
    rest = np.asarray(solution, dtype=np.float64)
    return _without(flat, rest), first + rest[1:]


def unwrapped_phase(density: NDArray[np.complex64], support: Mask) -> Volume:
    """Return the phase inside the support without jumps of 2 pi, rad, float32, NaN outside.

    Where a dislocation winds, a jump remains (`branch_cut`). The multiple of 2 pi that is free is chosen
    for a mean near zero; parts of the support that don't touch have each their own.
    """
    check_density(density, support)
    phase = np.full(support.shape, np.nan, dtype=np.float32)
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    # A border outside the support, since a flat image would be unwrapped by a method without masks.
    inside = np.pad(support[box], 1)
    wrapped = np.ma.masked_array(np.angle(np.pad(density[box], 1)), mask=~inside)
    values = np.asarray(unwrap_phase(wrapped, rng=0))[inside]
    phase[support] = values - 2 * np.pi * np.round(values.mean() / (2 * np.pi))
    return phase


def branch_cut(phase: Volume) -> Mask:
    """Return the voxels beside which an unwrapped phase jumps by over pi all the same, bool.

    A winding phase must jump somewhere; where is the unwrapping's choice and says nothing of the crystal.
    """
    cut = np.zeros(phase.shape, dtype=np.bool_)
    for axis in range(3):
        jumps = np.abs(np.diff(phase, axis=axis)) > np.pi
        before, after = [slice(None)] * 3, [slice(None)] * 3
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        cut[tuple(before)] |= jumps
        cut[tuple(after)] |= jumps
    return cut


def neighbour_products(density: NDArray[np.complex64], support: Mask) -> list[NDArray[np.complex64]]:
    """Return next * conj(this) along each axis, zero where one of the two is outside the support."""
    inside = np.where(support, density, 0)
    products = []
    for axis in range(3):
        following = np.roll(inside, -1, axis=axis)
        # Periodic: nothing follows the last voxel.
        np.moveaxis(following, axis, 0)[-1] = 0
        products.append(following * inside.conj())
    return products


def check_density(density: NDArray[np.complex64], support: Mask) -> None:
    """Refuse a density and a support that don't belong together.

    Raises
    ------
    InvalidInput
        If the support is empty or doesn't fit the density.
    """
    if density.ndim != 3 or support.shape != density.shape:
        raise InvalidInput(
            f"density and support must be 3D and of one shape, got {density.shape} and {support.shape}"
        )
    if not support.any():
        raise InvalidInput("the support must hold the crystal, got one without a voxel")


def _without(density: NDArray[np.complex64], ramp: FloatArray) -> NDArray[np.complex64]:
    """Return a density with an offset and a ramp (offset, rad a voxel along each axis) taken out."""
    result = density * np.exp(-1j * ramp[0])
    for axis, (size, slope) in enumerate(zip(density.shape, ramp[1:], strict=True)):
        shape = [1, 1, 1]
        shape[axis] = size
        result = result * np.exp(-1j * slope * (np.arange(size) - size // 2)).reshape(shape)
    return result.astype(np.complex64)

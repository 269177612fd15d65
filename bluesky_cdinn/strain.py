"""From the phase of a reconstruction to displacement, strain and size.

The phase is Q . u. A ramp of it is a turned or uniformly strained lattice, which only moves the Bragg
peak, so it is taken out first and reported. What is left gives u_Q = phase / abs(Q), the displacement
along Q, and the strain d(u_Q)/d(x_Q), its derivative along Q; see Robinson and Harder, Nature Materials
8, 291 (2009).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import unwrap_phase

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.float64]
Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StrainField:
    """What a reconstruction says about the lattice; maps are NaN outside the support.

    Parameters
    ----------
    phase
        Unwrapped, without offset and ramp, rad, float32.
    displacement
        u_Q, nm, float32.
    strain
        d(u_Q)/d(x_Q), float32.
    d_spacing_nm
        Of the planes, float32.
    q_vector
        Bragg vector of the mean lattice, lab frame, 1/nm, float64 (3,): the given one, moved by the ramp.
    scalars
        strain_rms, d_spacing_nm, size_x_nm, size_y_nm, size_z_nm (lab axes), size_nm (diameter of the
        sphere of the same volume); without those that couldn't be computed.
    """

    phase: Volume
    displacement: Volume
    strain: Volume
    d_spacing_nm: Volume
    q_vector: FloatArray
    scalars: dict[str, float]


def strain_field(
    density: NDArray[np.complex64], support: Mask, direct_basis: FloatArray, q_vector: FloatArray
) -> StrainField:
    """Return what a density says about the lattice.

    Parameters
    ----------
    density
        amplitude * exp(i phase), complex64 (rocking, row, column).
    support
        Where the crystal is, bool, the same shape.
    direct_basis
        Columns are the lab-frame steps of one voxel along each axis, nm, float64 (3, 3).
    q_vector
        The measured Bragg vector at the centre of the volume, lab frame, 1/nm, float64 (3,).

    Returns
    -------
    StrainField
        The maps and scalars.

    Raises
    ------
    InvalidInput
        If the support is empty or doesn't fit the density.
    """
    flat, ramp = flatten_phase(density, support)
    phase = unwrapped_phase(flat, support)
    # F(q) = sum density exp(i (q - Q) . r): a ramp of -g . r in the density moves the peak by +g.
    mean_q = q_vector - _to_lab(ramp, direct_basis)
    length = np.linalg.norm(mean_q)
    strain = strain_along(flat, support, direct_basis, mean_q)
    spacing = 2 * np.pi / length
    x, y, z = extents_nm(support, direct_basis)
    scalars = {
        "strain_rms": strain_rms(strain),
        "d_spacing_nm": float(spacing),
        "size_x_nm": float(x),
        "size_y_nm": float(y),
        "size_z_nm": float(z),
        "size_nm": equivalent_diameter_nm(support, direct_basis),
    }
    return StrainField(
        phase=phase,
        displacement=(phase / length).astype(np.float32),
        strain=strain,
        d_spacing_nm=(spacing * (1 + strain)).astype(np.float32),
        q_vector=mean_q,
        scalars={name: value for name, value in scalars.items() if np.isfinite(value)},
    )


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
    _check(density, support)
    first = np.array([np.angle(products.sum()) for products in _neighbour_products(density, support)])
    flat = _without(density, np.append(0.0, first))
    phase = unwrapped_phase(flat, support)[support]
    weight = np.sqrt(np.abs(density[support]))
    design = np.column_stack([np.ones(len(phase)), np.argwhere(support) - np.array(support.shape) // 2])
    solution = np.linalg.lstsq(design * weight[:, None], phase * weight, rcond=None)[0]
    rest = np.asarray(solution, dtype=np.float64)
    return _without(flat, rest), first + rest[1:]


def unwrapped_phase(density: NDArray[np.complex64], support: Mask) -> Volume:
    """Return the phase inside the support without jumps of 2 pi, rad, float32, NaN outside.

    Where a dislocation winds, a jump remains. The multiple of 2 pi that is free is chosen for a mean
    near zero; parts of the support that don't touch have each their own.
    """
    _check(density, support)
    phase = np.full(support.shape, np.nan, dtype=np.float32)
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    # A border outside the support, since a flat image would be unwrapped by a method without masks.
    inside = np.pad(support[box], 1)
    wrapped = np.ma.masked_array(np.angle(np.pad(density[box], 1)), mask=~inside)
    values = np.asarray(unwrap_phase(wrapped, rng=0))[inside]
    phase[support] = values - 2 * np.pi * np.round(values.mean() / (2 * np.pi))
    return phase


def strain_along(
    density: NDArray[np.complex64], support: Mask, direct_basis: FloatArray, q_vector: FloatArray
) -> Volume:
    """Return the strain along Q, dimensionless, float32, NaN outside the support.

    From the phase steps between neighbours, which wraps don't touch: central differences inside, one-
    sided ones at the edge. (Of the second order they would be exact for a parabola, but on edge voxels
    with 0.02 rad of noise their error is larger already.) NaN too where a voxel has no neighbour along
    some axis.

    Parameters
    ----------
    density
        complex64, 3D.
    support
        Where the crystal is, bool, the same shape.
    direct_basis
        Columns are the lab-frame steps of one voxel along each axis, nm, float64 (3, 3).
    q_vector
        Along which, lab frame, 1/nm, float64 (3,).

    Returns
    -------
    numpy.ndarray
        The strain.
    """
    _check(density, support)
    length = np.linalg.norm(q_vector)
    # grad(phase) in the lab is inv(D).T @ (change a voxel); its part along Q, over abs(Q), is the strain.
    weights = np.linalg.solve(direct_basis, q_vector / length) / length
    steps = [
        _derivative(products, axis) for axis, products in enumerate(_neighbour_products(density, support))
    ]
    strain = sum(weight * step for weight, step in zip(weights, steps, strict=True))
    return np.where(support, strain, np.nan).astype(np.float32)


def strain_rms(strain: Volume) -> float:
    """Return the root mean square of a strain map over where it is known, NaN if that is nowhere."""
    known = strain[np.isfinite(strain)].astype(np.float64)
    return float(np.sqrt(np.mean(known**2))) if known.size else float("nan")


def extents_nm(support: Mask, direct_basis: FloatArray) -> FloatArray:
    """Return how far the support reaches along the three lab axes, nm, float64 (3,)."""
    corners = np.argwhere(support) @ direct_basis.T
    return np.asarray(np.ptp(corners, axis=0) + np.linalg.norm(direct_basis, axis=1), dtype=np.float64)


def equivalent_diameter_nm(support: Mask, direct_basis: FloatArray) -> float:
    """Return the diameter of the sphere that has the support's volume, nm."""
    volume = np.count_nonzero(support) * abs(np.linalg.det(direct_basis))
    return float(np.cbrt(6 * volume / np.pi))


def _neighbour_products(density: NDArray[np.complex64], support: Mask) -> list[NDArray[np.complex64]]:
    """Return next * conj(this) along each axis, zero where one of the two is outside the support."""
    inside = np.where(support, density, 0)
    products = []
    for axis in range(3):
        following = np.roll(inside, -1, axis=axis)
        # Periodic: nothing follows the last voxel.
        np.moveaxis(following, axis, 0)[-1] = 0
        products.append(following * inside.conj())
    return products


def _derivative(products: NDArray[np.complex64], axis: int) -> FloatArray:
    """Return the phase's derivative along an axis, rad a voxel, NaN where no neighbour is known."""
    known = products != 0
    step = np.where(known, np.angle(products), 0.0)
    # What comes before is the last voxel's step; the roll's periodic end is zero already.
    total = step + np.roll(step, 1, axis=axis)
    count = known.astype(np.int8) + np.roll(known, 1, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _without(density: NDArray[np.complex64], ramp: FloatArray) -> NDArray[np.complex64]:
    """Return a density with an offset and a ramp (offset, rad a voxel along each axis) taken out."""
    result = density * np.exp(-1j * ramp[0])
    for axis, (size, slope) in enumerate(zip(density.shape, ramp[1:], strict=True)):
        shape = [1, 1, 1]
        shape[axis] = size
        result = result * np.exp(-1j * slope * (np.arange(size) - size // 2)).reshape(shape)
    return result.astype(np.complex64)


def _to_lab(per_voxel: FloatArray, direct_basis: FloatArray) -> FloatArray:
    """Return a gradient (3,) given along the voxels' axes in the lab frame, per nm."""
    return np.asarray(np.linalg.solve(direct_basis.T, per_voxel), dtype=np.float64)


def _check(density: NDArray[np.complex64], support: Mask) -> None:
    if density.ndim != 3 or support.shape != density.shape:
        raise InvalidInput(
            f"density and support must be 3D and of one shape, got {density.shape} and {support.shape}"
        )
    if not support.any():
        raise InvalidInput("the support must hold the crystal, got one without a voxel")

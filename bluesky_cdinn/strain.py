"""From the phase of a reconstruction to displacement, strain and size.

The phase is Q . u. A ramp of it is a turned or uniformly strained lattice, which only moves the Bragg
peak, so it is taken out first and reported. What is left gives u_Q = phase / abs(Q), the displacement
along Q, and the strain d(u_Q)/d(x_Q), its derivative along Q; see Robinson and Harder, Nature Materials
8, 291 (2009).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from bluesky_cdinn.dislocations import dislocation_lines
from bluesky_cdinn.phase_gradient import directional_gradient, window_width_nm
from bluesky_cdinn.uncertainty import EXPLAINED, phase_sd, strain_sd
from bluesky_cdinn.unwrapping import branch_cut, check_density, flatten_phase, unwrapped_phase

FloatArray = NDArray[np.float64]
Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]

# What is nearer than this to the surface is the surface's, in voxels of mean size.
SHELL = 2.0


@dataclass(frozen=True, eq=False)
class StrainField:
    """What a reconstruction says about the lattice; maps are NaN outside the support.

    Parameters
    ----------
    phase
        Unwrapped, without offset and ramp, rad, float32.
    displacement
        u_Q, nm, float32. NaN too on a dislocation's line, and beside the cut behind it, where no
        displacement is single-valued.
    strain
        d(u_Q)/d(x_Q), float32. It knows no cut; NaN too where neighbours are missing.
    phase_sd, strain_sd
        One sigma, rad and dimensionless, float32; None where the starts can't say it.
    d_spacing_nm
        Of the planes, float32.
    q_vector
        Bragg vector of the mean lattice, lab frame, 1/nm, float64 (3,): the given one, moved by the ramp.
    scalars
        strain_rms, d_spacing_nm, size_x_nm, size_y_nm, size_z_nm (lab axes), size_nm (diameter of the
        sphere of the same volume), strain_resolution_nm (full width at half maximum, along Q, of what the
        derivative averages over, beside the density's own resolution), dislocation_voxels, phase_sd_rad and
        strain_sd_typical (medians), and of `surface_and_bulk`; without those that couldn't be computed.
    """

    phase: Volume
    displacement: Volume
    strain: Volume
    phase_sd: Volume | None
    strain_sd: Volume | None
    d_spacing_nm: Volume
    q_vector: FloatArray
    scalars: dict[str, float]


def strain_field(
    density: NDArray[np.complex64],
    support: Mask,
    direct_basis: FloatArray,
    q_vector: FloatArray,
    *,
    spread_rad: float | None = None,
    misfit: float = EXPLAINED,
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
    spread_rad
        rms phase difference of two independent finalists; without a finite one there are no sigmas.
    misfit
        chi2 over that of counting noise alone.

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
    length = float(np.linalg.norm(mean_q))
    gradient = directional_gradient(flat, support, direct_basis, mean_q / length)
    strain = np.full(support.shape, np.nan, dtype=np.float32)
    strain[support] = gradient.values / length
    lines = dislocation_lines(flat, support)
    displacement = np.where(lines | branch_cut(phase), np.nan, phase / length).astype(np.float32)
    sigmas: list[Volume | None] = [None, None]
    if spread_rad is not None and np.isfinite(spread_rad):
        sigmas = [
            phase_sd(flat, support, spread_rad, misfit),
            strain_sd(gradient, flat, support, length, spread_rad, misfit),
        ]
    spacing = 2 * np.pi / length
    x, y, z = extents_nm(support, direct_basis)
    scalars = {
        "strain_rms": strain_rms(strain),
        "d_spacing_nm": float(spacing),
        "size_x_nm": float(x),
        "size_y_nm": float(y),
        "size_z_nm": float(z),
        "size_nm": equivalent_diameter_nm(support, direct_basis),
        "strain_resolution_nm": window_width_nm(gradient, direct_basis, mean_q / length),
        "dislocation_voxels": float(np.count_nonzero(lines)),
        **surface_and_bulk(strain, displacement, support, direct_basis),
    }
    for name, sigma in zip(("phase_sd_rad", "strain_sd_typical"), sigmas, strict=True):
        if sigma is not None and np.isfinite(sigma).any():
            scalars[name] = float(np.nanmedian(sigma))
    return StrainField(
        phase=phase,
        displacement=displacement,
        strain=strain,
        phase_sd=sigmas[0],
        strain_sd=sigmas[1],
        d_spacing_nm=d_spacing_map(strain, mean_q),
        q_vector=mean_q,
        scalars={name: value for name, value in scalars.items() if np.isfinite(value)},
    )


def strain_along(
    density: NDArray[np.complex64], support: Mask, direct_basis: FloatArray, q_vector: FloatArray
) -> Volume:
    """Return the strain along Q, dimensionless, float32, NaN outside the support.

    As `phase_gradient` finds it; NaN too where a voxel's neighbours lie in a plane.

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
    check_density(density, support)
    length = np.linalg.norm(q_vector)
    strain = np.full(support.shape, np.nan, dtype=np.float32)
    strain[support] = directional_gradient(density, support, direct_basis, q_vector / length).values / length
    return strain


def d_spacing_map(strain: Volume, q_vector: FloatArray) -> Volume:
    """Return the spacing of the lattice planes, nm, float32: that of the mean lattice's Q, strained."""
    return (2 * np.pi / np.linalg.norm(q_vector) * (1 + strain)).astype(np.float32)


def lattice_parameter_map(strain: Volume, q_vector: FloatArray, reflection: Sequence[int]) -> Volume:
    """Return the parameter of a cubic lattice as the planes (h, k, l) have it, nm, float32."""
    return (d_spacing_map(strain, q_vector) * np.linalg.norm(reflection)).astype(np.float32)


def surface_and_bulk(
    strain: Volume, displacement: Volume, support: Mask, direct_basis: FloatArray
) -> dict[str, float]:
    """Return means and rms of strain and displacement in the surface's shell and in the interior.

    The shell is what is less than `SHELL` voxels under the surface.

    Returns
    -------
    dict
        strain_mean_surface, strain_rms_surface, displacement_mean_surface_nm, displacement_rms_surface_nm,
        and the same of the bulk; NaN where there is no such voxel.
    """
    shell = surface_shell(support, direct_basis)
    numbers = {}
    for where, part in (("surface", support & shell), ("bulk", support & ~shell)):
        for what, unit, values in (("strain", "", strain), ("displacement", "_nm", displacement)):
            known = values[part & np.isfinite(values)].astype(np.float64)
            mean, rms = (known.mean(), np.sqrt(np.mean(known**2))) if known.size else (np.nan, np.nan)
            numbers |= {f"{what}_mean_{where}{unit}": float(mean), f"{what}_rms_{where}{unit}": float(rms)}
    return numbers


def surface_shell(support: Mask, direct_basis: FloatArray) -> Mask:
    """Return what of the support is less than `SHELL` voxels of mean size under the surface, bool."""
    thickness = SHELL * abs(np.linalg.det(direct_basis)) ** (1 / 3)
    return depth_nm(support, direct_basis, thickness) < thickness


def depth_nm(support: Mask, direct_basis: FloatArray, most_nm: float = np.inf) -> Volume:
    """Return how deep each voxel's centre lies under the surface, nm, float32, NaN outside the support.

    The surface runs half a voxel from the centres of the nearest voxels outside. Deeper than ``most_nm`` is
    infinitely deep: to know how much takes half a minute of a crystal of a million voxels.
    """
    half = abs(np.linalg.det(direct_basis)) ** (1 / 3) / 2
    around = np.pad(support, 1)
    reached = np.asarray(ndimage.binary_dilation(around, structure=np.ones((3, 3, 3))), dtype=np.bool_)
    outside = reached & ~around
    distance, _ = KDTree((np.argwhere(outside) - 1) @ direct_basis.T).query(
        np.argwhere(support) @ direct_basis.T, distance_upper_bound=most_nm + half
    )
    depth = np.full(support.shape, np.nan, dtype=np.float32)
    depth[support] = distance - half
    return depth


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


def _to_lab(per_voxel: FloatArray, direct_basis: FloatArray) -> FloatArray:
    """Return a gradient (3,) given along the voxels' axes in the lab frame, per nm."""
    return np.asarray(np.linalg.solve(direct_basis.T, per_voxel), dtype=np.float64)

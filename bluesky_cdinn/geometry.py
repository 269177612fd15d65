"""From where the beam, the crystal and the detector stood to the lattice vectors of a volume's voxels.

The lab frame and the detector's axes are those of `Geometry`. The crystal's frame is the lab frame at
the centre of the rocking curve; a crystal turned by an angle from there sees the lab turned back.
Wave vectors carry the 2 pi. The signs are decided in ``docs/explanations/decisions``, 0002.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import InvalidInput, MissingMetadata
from bluesky_cdinn.geometry_metadata import REQUIRED, geometry_from
from bluesky_cdinn.goniometer import rotation
from bluesky_cdinn.records import DiffractionVolume, Geometry

__all__ = [
    "HC_KEV_NM",
    "REQUIRED",
    "bragg_vector",
    "d_spacing",
    "detector_frame",
    "direct_basis",
    "geometry_from",
    "pixel_k",
    "pixel_positions",
    "reciprocal_basis",
    "rotation",
    "scattering_vectors",
    "volume_bases",
    "voxel_q",
    "voxel_volume",
    "wavenumber",
]

FloatArray = NDArray[np.float64]

# Planck's constant times the speed of light, keV nm; exact in the SI.
HC_KEV_NM = 1.239841984332

# Straight ahead.
BEAM = np.array([0.0, 0.0, 1.0])


def wavenumber(energy_keV: float) -> float:
    """Return 2 pi / wavelength of photons, 1/nm."""
    return 2 * np.pi * energy_keV / HC_KEV_NM


def d_spacing(q_vector: ArrayLike) -> float:
    """Return the spacing 2 pi / abs(Q) of the lattice planes, nm, for Q in 1/nm, (3,)."""
    return float(2 * np.pi / np.linalg.norm(q_vector))


def voxel_volume(basis: FloatArray) -> float:
    """Return the volume that three basis vectors, the columns of (3, 3), span."""
    return float(abs(np.linalg.det(basis)))


def detector_frame(geometry: Geometry) -> FloatArray:
    """Return unit vectors of the detector in the lab: columns' way, against rows', arm; float64 (3, 3).

    The first two are at right angles; the arm is at right angles to them unless the detector is tilted.
    """
    if geometry.detector_axes is not None:
        rows, columns, arm = np.array(geometry.detector_axes)
        return np.array([columns, -rows, arm])
    delta, gamma = np.radians(geometry.detector_angles_deg)
    sd, cd, sg, cg = np.sin(delta), np.cos(delta), np.sin(gamma), np.cos(gamma)
    return np.array([[cd, 0.0, -sd], [-sd * sg, cg, -cd * sg], [sd * cg, sg, cd * cg]])


def pixel_positions(geometry: Geometry, rows: ArrayLike, columns: ArrayLike) -> FloatArray:
    """Return where pixels lie, from the sample, in the lab, m.

    Parameters
    ----------
    geometry
        Of the measurement.
    rows, columns
        Pixel indices, fractions allowed, broadcast against each other to (...).

    Returns
    -------
    numpy.ndarray
        float64 (..., 3).
    """
    row, column = np.broadcast_arrays(np.asarray(rows, dtype=float), np.asarray(columns, dtype=float))
    along_columns, up, arm = detector_frame(geometry)
    row_pitch, column_pitch = np.multiply(geometry.pixel_size_um, 1e-6)
    down = (row - geometry.beam_centre_px[0]) * row_pitch
    across = (column - geometry.beam_centre_px[1]) * column_pitch
    return geometry.detector_distance_m * arm + across[..., None] * along_columns - down[..., None] * up


def pixel_k(geometry: Geometry, rows: ArrayLike, columns: ArrayLike) -> FloatArray:
    """Return the wave vectors that reach pixels, in the lab, 1/nm, float64 (..., 3), exactly."""
    positions = pixel_positions(geometry, rows, columns)
    distances = np.linalg.norm(positions, axis=-1, keepdims=True)
    return wavenumber(geometry.energy_keV) * positions / distances


def bragg_vector(geometry: Geometry, pixel: tuple[float, float] | None = None) -> FloatArray:
    """Return Q = k_out - k_in at a pixel (row, column), else at the beam centre; 1/nm, float64 (3,)."""
    row, column = geometry.beam_centre_px if pixel is None else pixel
    return pixel_k(geometry, row, column) - wavenumber(geometry.energy_keV) * BEAM


def scattering_vectors(
    geometry: Geometry, offsets_deg: ArrayLike, rows: ArrayLike, columns: ArrayLike
) -> FloatArray:
    """Return what pixels see of the crystal's reciprocal space along a scan, Ewald curvature included.

    Parameters
    ----------
    geometry
        Of the measurement.
    offsets_deg
        Rocking angles from the centre of the curve, (m...); of an energy scan energies, keV.
    rows, columns
        Pixel indices, broadcast against each other to (p...).

    Returns
    -------
    numpy.ndarray
        q in the crystal's frame, 1/nm, float64 (m..., p..., 3).
    """
    offsets = np.asarray(offsets_deg, dtype=float)
    transfer = pixel_k(geometry, rows, columns) - wavenumber(geometry.energy_keV) * BEAM
    if geometry.scanned == "energy":
        return np.multiply.outer(1 + offsets / geometry.energy_keV, transfer)
    to_crystal = rotation(geometry.rocking_axis, -offsets)
    turned = np.tensordot(to_crystal, transfer, axes=(-1, -1))
    return np.moveaxis(turned, to_crystal.ndim - 2, -1)


def reciprocal_basis(geometry: Geometry, step: float, pixel: tuple[float, float] | None = None) -> FloatArray:
    """Return the lattice vectors of a diffraction volume's voxels.

    Parameters
    ----------
    geometry
        Of the measurement.
    step
        Rocking step, deg, or of an energy scan step of the energy, keV; positive, since volumes are sorted.
    pixel
        (row, column) of the peak, where the derivatives are taken; the beam centre if None.

    Returns
    -------
    numpy.ndarray
        float64 (3, 3), 1/nm: columns are dq for one step along (rocking, row, column).

    Raises
    ------
    InvalidInput
        If the step is not positive, or rocking doesn't move the peak off the Ewald sphere.
    """
    if not step > 0:
        raise InvalidInput(f"the step must be above 0, got {step}; sort the frames by rocking angle")
    row, column = geometry.beam_centre_px if pixel is None else pixel
    position = pixel_positions(geometry, row, column)
    distance = np.linalg.norm(position)
    direction = position / distance
    along_columns, up, _ = detector_frame(geometry)
    row_pitch, column_pitch = np.multiply(geometry.pixel_size_um, 1e-6)
    k = wavenumber(geometry.energy_keV)
    # A step on the detector turns k_out by its part across the line of sight.
    across = k / distance * (np.eye(3) - np.outer(direction, direction))
    rocking = _along_scan(geometry, step, k * (direction - BEAM))
    basis = np.column_stack([rocking, across @ up * -row_pitch, across @ along_columns * column_pitch])
    turn = step / geometry.energy_keV if geometry.scanned == "energy" else np.radians(step)
    if voxel_volume(basis) < 1e-6 * turn * k * np.linalg.norm(basis[:, 1:], axis=0).prod():
        raise InvalidInput(
            f"a scan must sweep the peak through the Ewald sphere, but about the axis "
            f"{geometry.rocking_axis} it stays on it; check rocking_axis and detector_angles_deg"
        )
    return basis


def _along_scan(geometry: Geometry, step: float, q: FloatArray) -> FloatArray:
    """Return how far one step moves what a pixel sees, in the crystal's frame, 1/nm."""
    if geometry.scanned == "energy":
        return step / geometry.energy_keV * q
    axis = np.asarray(geometry.rocking_axis) / np.linalg.norm(geometry.rocking_axis)
    return -np.radians(step) * np.cross(axis, q)


def direct_basis(reciprocal: FloatArray, shape: Sequence[int]) -> FloatArray:
    """Return the lattice vectors of the object's voxels behind a diffraction volume.

    Voxel n of the object, whose FFT the volume is, lies at ``direct @ n``. The minus sign makes the
    object's phase +Q . u under numpy's sign of the transform: see decision 0002.

    Parameters
    ----------
    reciprocal
        The volume's own basis, columns, 1/nm, float64 (3, 3).
    shape
        The volume's shape.

    Returns
    -------
    numpy.ndarray
        float64 (3, 3), nm, columns.
    """
    inverse = np.linalg.inv(reciprocal * np.asarray(shape, dtype=float))
    return np.asarray(-2 * np.pi * inverse.T, dtype=np.float64)


def volume_bases(volume: DiffractionVolume) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the lattice vectors of a volume and of the object behind it, and its Bragg vector.

    Parameters
    ----------
    volume
        On the measured pixels, its zero frequency at voxel n//2 of each axis.

    Returns
    -------
    tuple
        `reciprocal_basis`, 1/nm, and `direct_basis`, nm, float64 (3, 3); and Q of the middle voxel,
        1/nm, float64 (3,); in the lab frame at the middle slice's angle.

    Raises
    ------
    MissingMetadata
        If the volume came without angles or geometry.
    InvalidInput
        If it has a single slice, or its angles don't rise.
    """
    geometry, angles, step = _scan_of(volume)
    shape = volume.intensity.shape
    middle, pixel = float(angles[shape[0] // 2]), _middle_pixel(volume)
    if volume.flat_about is None:
        geometry = _at(geometry, middle)
        reciprocal, q = reciprocal_basis(geometry, step, pixel), bragg_vector(geometry, pixel)
    else:
        # A lattice's steps are the same everywhere; only the frame is turned from its centre to the middle.
        angle, row, column = volume.flat_about
        geometry = _at(geometry, angle)
        offset = np.array([(middle - angle) / step, pixel[0] - row, pixel[1] - column])
        turn = np.eye(3) if geometry.scanned == "energy" else rotation(geometry.rocking_axis, middle - angle)
        reciprocal = reciprocal_basis(geometry, step, (row, column))
        q = turn @ (bragg_vector(geometry, (row, column)) + reciprocal @ offset)
        reciprocal = turn @ reciprocal
    return reciprocal, direct_basis(reciprocal, shape), q


def voxel_q(volume: DiffractionVolume) -> FloatArray:
    """Return q of every voxel as it was measured, on its curved frame; of a flattened volume, on its lattice.

    Parameters
    ----------
    volume
        As for `volume_bases`, and raises what that does.

    Returns
    -------
    numpy.ndarray
        1/nm, float64 (rocking, row, column, 3), in the lab frame at the middle slice's angle.
    """
    n, rows, columns = volume.intensity.shape
    if volume.flat_about is not None:
        reciprocal, _, q = volume_bases(volume)
        places = np.stack(
            np.meshgrid(*(np.arange(m) - m // 2 for m in (n, rows, columns)), indexing="ij"), -1
        )
        return q + places @ reciprocal.T
    geometry, angles, _ = _scan_of(volume)
    middle = float(angles[n // 2])
    first_row, first_column = volume.window[1:]
    return scattering_vectors(
        _at(geometry, middle),
        angles - middle,
        first_row + np.arange(rows)[:, None],
        first_column + np.arange(columns),
    )


def _middle_pixel(volume: DiffractionVolume) -> tuple[float, float]:
    _, rows, columns = volume.intensity.shape
    return float(volume.window[1] + rows // 2), float(volume.window[2] + columns // 2)


def _scan_of(volume: DiffractionVolume) -> tuple[Geometry, FloatArray, float]:
    """Return a volume's geometry, its angles and their step."""
    if volume.geometry is None or volume.angles_deg is None:
        raise MissingMetadata(
            "physical units need the geometry and the rocking angles, and the volume has not both; say "
            f"{', '.join(REQUIRED)} in the start document's cdi, the detector's configuration or the settings"
        )
    angles = volume.angles_deg
    if len(angles) < 2:
        raise InvalidInput("a volume in physical units must have two slices or more, got one")
    return volume.geometry, angles, float((angles[-1] - angles[0]) / (len(angles) - 1))


def _at(geometry: Geometry, angle: float) -> Geometry:
    """Return the geometry at one slice of the scan: of an energy scan it has that energy."""
    return replace(geometry, energy_keV=angle) if geometry.scanned == "energy" else geometry

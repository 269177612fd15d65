"""From where the beam, the crystal and the detector stood to the lattice vectors of a volume's voxels.

The lab frame and the detector's axes are those of `Geometry`. The crystal's frame is the lab frame at
the centre of the rocking curve; a crystal turned by an angle from there sees the lab turned back.
Wave vectors carry the 2 pi. The signs are decided in ``docs/explanations/decisions``, 0002.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import InvalidInput, MissingMetadata
from bluesky_cdinn.records import DiffractionVolume, Geometry

FloatArray = NDArray[np.float64]

# Planck's constant times the speed of light, keV nm; exact in the SI.
HC_KEV_NM = 1.239841984332

# What the ``cdi`` metadata may say: how many numbers, from, to, unit. The bounds are far outside of what
# Bragg CDI uses, so that a value in the wrong unit (eV, mm, angstrom) doesn't pass.
_QUANTITIES = {
    "energy_keV": (1, 1.0, 200.0, "keV"),
    "detector_distance_m": (1, 0.05, 50.0, "m"),
    "pixel_size_um": (2, 0.5, 1000.0, "um, (row, column) or one for both"),
    "detector_angles_deg": (2, -180.0, 180.0, "deg, (delta, gamma)"),
    "beam_centre_px": (2, -1e5, 1e5, "pixels, (row, column)"),
    "rocking_axis": (3, -1e6, 1e6, "(x, y, z), a direction in the lab frame"),
    "reflection": (3, -99.0, 99.0, "(h, k, l)"),
    "lattice_nm": (1, 0.1, 3.0, "nm"),
}

# Those without which there is no geometry.
REQUIRED = ("energy_keV", "detector_distance_m", "pixel_size_um", "detector_angles_deg", "beam_centre_px")


def wavenumber(energy_keV: float) -> float:
    """Return 2 pi / wavelength of photons, 1/nm."""
    return 2 * np.pi * energy_keV / HC_KEV_NM


def d_spacing(q_vector: ArrayLike) -> float:
    """Return the spacing 2 pi / abs(Q) of the lattice planes, nm, for Q in 1/nm, (3,)."""
    return float(2 * np.pi / np.linalg.norm(q_vector))


def voxel_volume(basis: FloatArray) -> float:
    """Return the volume that three basis vectors, the columns of (3, 3), span."""
    return float(abs(np.linalg.det(basis)))


def rotation(axis: ArrayLike, angle_deg: ArrayLike) -> FloatArray:
    """Return the right-handed rotation about an axis (3,) by angles (...), float64 (..., 3, 3).

    Rodrigues' formula.
    """
    x, y, z = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(np.asarray(angle_deg, dtype=float))[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def detector_frame(geometry: Geometry) -> FloatArray:
    """Return the unit vectors of the detector, in the lab: rows of columns, up, arm; float64 (3, 3)."""
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
    return pixel_k(geometry, row, column) - wavenumber(geometry.energy_keV) * np.array([0.0, 0.0, 1.0])


def scattering_vectors(
    geometry: Geometry, offsets_deg: ArrayLike, rows: ArrayLike, columns: ArrayLike
) -> FloatArray:
    """Return what pixels see of the crystal's reciprocal space as it rocks, Ewald curvature included.

    Parameters
    ----------
    geometry
        Of the measurement.
    offsets_deg
        Rocking angles from the centre of the curve, (m...).
    rows, columns
        Pixel indices, broadcast against each other to (p...).

    Returns
    -------
    numpy.ndarray
        q in the crystal's frame, 1/nm, float64 (m..., p..., 3).
    """
    transfer = pixel_k(geometry, rows, columns) - wavenumber(geometry.energy_keV) * np.array([0.0, 0.0, 1.0])
    to_crystal = rotation(geometry.rocking_axis, -np.asarray(offsets_deg, dtype=float))
    turned = np.tensordot(to_crystal, transfer, axes=(-1, -1))
    return np.moveaxis(turned, to_crystal.ndim - 2, -1)


def reciprocal_basis(
    geometry: Geometry, step_deg: float, pixel: tuple[float, float] | None = None
) -> FloatArray:
    """Return the lattice vectors of a diffraction volume's voxels.

    Parameters
    ----------
    geometry
        Of the measurement.
    step_deg
        Rocking step, positive, since volumes are sorted by angle.
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
    if not step_deg > 0:
        raise InvalidInput(f"step_deg must be above 0, got {step_deg}; sort the frames by rocking angle")
    row, column = geometry.beam_centre_px if pixel is None else pixel
    position = pixel_positions(geometry, row, column)
    distance = np.linalg.norm(position)
    direction = position / distance
    along_columns, up, _ = detector_frame(geometry)
    row_pitch, column_pitch = np.multiply(geometry.pixel_size_um, 1e-6)
    # A step on the detector turns k_out by its part across the line of sight.
    across = wavenumber(geometry.energy_keV) / distance * (np.eye(3) - np.outer(direction, direction))
    axis = np.asarray(geometry.rocking_axis) / np.linalg.norm(geometry.rocking_axis)
    rocking = -np.radians(step_deg) * np.cross(axis, bragg_vector(geometry, (row, column)))
    basis = np.column_stack([rocking, across @ up * -row_pitch, across @ along_columns * column_pitch])
    most = (
        np.radians(step_deg) * wavenumber(geometry.energy_keV) * np.linalg.norm(basis[:, 1:], axis=0).prod()
    )
    if voxel_volume(basis) < 1e-6 * most:
        raise InvalidInput(
            f"rocking must sweep the peak through the Ewald sphere, but about the axis "
            f"{geometry.rocking_axis} it stays on it; check rocking_axis and detector_angles_deg"
        )
    return basis


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
    if volume.geometry is None or volume.angles_deg is None:
        raise MissingMetadata(
            "physical units need the geometry and the rocking angles, and the volume has not both; say "
            f"{', '.join(REQUIRED)} in the start document's cdi, the detector's configuration or the settings"
        )
    if len(volume.angles_deg) < 2:
        raise InvalidInput("a volume in physical units must have two slices or more, got one")
    step = float((volume.angles_deg[-1] - volume.angles_deg[0]) / (len(volume.angles_deg) - 1))
    _, rows, columns = volume.intensity.shape
    pixel = (float(volume.window[1] + rows // 2), float(volume.window[2] + columns // 2))
    reciprocal = reciprocal_basis(volume.geometry, step, pixel)
    direct = direct_basis(reciprocal, volume.intensity.shape)
    return reciprocal, direct, bragg_vector(volume.geometry, pixel)


def geometry_from(*layers: Mapping[str, Any]) -> tuple[Geometry | None, tuple[str, ...]]:
    """Read a geometry from what the documents and the settings say.

    Parameters
    ----------
    layers
        Mappings with the names of the start document's ``cdi`` entry, the first having precedence:
        start document, device configuration, settings. A value of None counts as not said. A single
        ``pixel_size_um`` stands for both directions. ``rocking_axis``, ``reflection`` and
        ``lattice_nm`` may be absent.

    Returns
    -------
    tuple
        The geometry, or None where something needed was said nowhere; and the names of what is missing.

    Raises
    ------
    InvalidInput
        If a value has the wrong type or shape, or can't be in the unit of its name.
    """
    said: dict[str, Any] = {}
    for layer in reversed(layers):
        if not isinstance(layer, Mapping):
            raise InvalidInput(f"the cdi metadata must be a mapping of names to values, got {layer!r}")
        said.update({name: layer[name] for name in _QUANTITIES if layer.get(name) is not None})
    numbers = {name: _numbers(name, value) for name, value in said.items()}
    missing = tuple(name for name in REQUIRED if name not in said)
    if missing:
        return None, missing
    fields: dict[str, Any] = {
        name: values[0] if len(values) == 1 else tuple(values) for name, values in numbers.items()
    }
    if "rocking_axis" in fields:
        axis = np.array(fields["rocking_axis"])
        if not axis.any():
            raise InvalidInput("rocking_axis must be a direction (x, y, z) in the lab frame, got zeros")
        fields["rocking_axis"] = tuple((axis / np.linalg.norm(axis)).tolist())
    if "reflection" in fields:
        fields["reflection"] = tuple(round(index) for index in numbers["reflection"])
    return Geometry(**fields), ()


def _numbers(name: str, value: Any) -> list[float]:
    """Check a value against its row of the table, and return it as plain numbers."""
    count, low, high, unit = _QUANTITIES[name]
    required = (
        f"{name} must be {'a number' if count == 1 else f'{count} numbers'} from {low:g} to {high:g} {unit}"
    )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInput(f"{required}, got {value!r}") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{required}, got {value!r}")
    array = array.astype(float).ravel()
    if name == "pixel_size_um" and array.size == 1:
        array = array.repeat(2)
    if array.size != count:
        raise InvalidInput(f"{required}, got {array.size} values: {value!r}")
    if not ((array >= low) & (array <= high)).all():
        raise InvalidInput(f"{required}, got {value!r}; check its unit")
    if name == "reflection" and (array % 1).any():
        raise InvalidInput(f"reflection must be whole Miller indices, got {value!r}")
    return array.tolist()

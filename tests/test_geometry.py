import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from bluesky_cdinn.errors import InvalidInput, MissingMetadata
from bluesky_cdinn.geometry import (
    REQUIRED,
    bragg_vector,
    d_spacing,
    direct_basis,
    geometry_from,
    pixel_k,
    pixel_positions,
    reciprocal_basis,
    scattering_vectors,
    volume_bases,
    voxel_volume,
    wavenumber,
)
from bluesky_cdinn.records import DiffractionVolume, Geometry

# The arm and energy of a gold 111 scan at APS 34-ID-C.
GOLD = Geometry(
    energy_keV=9.0,
    detector_distance_m=0.5,
    pixel_size_um=(55.0, 55.0),
    detector_angles_deg=(32.174, 12.6346),
    beam_centre_px=(128.0, 120.0),
)
# Nothing along an axis, nothing square.
ODD = Geometry(
    energy_keV=11.3,
    detector_distance_m=1.7,
    pixel_size_um=(75.0, 50.0),
    detector_angles_deg=(-21.0, 28.0),
    beam_centre_px=(40.3, 71.9),
    rocking_axis=(0.6, 0.64, 0.48),
)
SAID = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": 55,
    "detector_angles_deg": [32.174, 12.6346],
    "beam_centre_px": (128, 120),
}


def test_gold_111_is_found_where_34_id_c_found_it():
    assert d_spacing(bragg_vector(GOLD)) == pytest.approx(0.2335, abs=5e-5)


def test_wavenumber_of_the_copper_line():
    # Cu K alpha 1: 8.04778 keV, 0.1540593 nm.
    assert 2 * np.pi / wavenumber(8.04778) == pytest.approx(0.154059, abs=2e-6)


def test_arm_points_along_delta_then_gamma():
    delta, gamma = np.radians(GOLD.detector_angles_deg)
    direction = [np.sin(delta) * np.cos(gamma), np.sin(gamma), np.cos(delta) * np.cos(gamma)]
    k_out = pixel_k(GOLD, *GOLD.beam_centre_px)
    np.testing.assert_allclose(k_out, wavenumber(9.0) * np.array(direction), rtol=1e-14)


def test_straight_arm_has_rows_down_and_columns_along_x():
    straight = replace(GOLD, detector_angles_deg=(0.0, 0.0))
    np.testing.assert_allclose(pixel_positions(straight, 128, 120), [0, 0, 0.5])
    np.testing.assert_allclose(pixel_positions(straight, 129, 120), [0, -55e-6, 0.5])
    np.testing.assert_allclose(pixel_positions(straight, 128, 121), [55e-6, 0, 0.5])


def test_pixels_broadcast_and_scatter_elastically():
    k_out = pixel_k(ODD, np.arange(5)[:, None], np.arange(7))
    assert k_out.shape == (5, 7, 3)
    np.testing.assert_allclose(np.linalg.norm(k_out, axis=-1), wavenumber(ODD.energy_keV), rtol=1e-14)


@pytest.mark.parametrize("geometry", [GOLD, ODD])
def test_a_turned_crystal_sees_the_transfer_turned_back(geometry):
    rows, columns, offsets = np.arange(4)[:, None], np.arange(3), np.array([-0.7, 0.0, 1.2])
    q = scattering_vectors(geometry, offsets, rows, columns)
    assert q.shape == (3, 4, 3, 3)
    transfer = pixel_k(geometry, rows, columns) - [0, 0, wavenumber(geometry.energy_keV)]
    for one, offset in zip(q, offsets, strict=True):
        turn = Rotation.from_rotvec(np.radians(offset) * np.array(geometry.rocking_axis))
        np.testing.assert_allclose(turn.apply(one.reshape(-1, 3)).reshape(one.shape), transfer, atol=1e-12)
    np.testing.assert_allclose(scattering_vectors(geometry, 1.2, rows, columns), q[2])


@pytest.mark.parametrize("pixel", [None, (11.0, 200.0)])
@pytest.mark.parametrize("geometry", [GOLD, ODD])
def test_reciprocal_basis_is_the_derivative_of_the_exact_map(geometry, pixel):
    row, column = pixel or geometry.beam_centre_px
    step = 0.01

    def q(n, m, k):
        return scattering_vectors(geometry, n * step, row + m, column + k)

    small = 0.01
    numeric = [(q(*(small * e)) - q(*(-small * e))) / (2 * small) for e in np.eye(3)]
    basis = reciprocal_basis(geometry, step, pixel)
    np.testing.assert_allclose(basis, np.column_stack(numeric), atol=1e-8 * np.abs(basis).max())


def test_frames_bend_with_the_ewald_sphere():
    # At arm (0, 0) the frame lies on the sphere k_z = sqrt(k^2 - q^2) - k.
    straight = replace(GOLD, detector_angles_deg=(0.0, 0.0))
    q = scattering_vectors(straight, 0.0, 128 + 500, 120 - 300)
    k = wavenumber(9.0)
    assert q[2] == pytest.approx(np.sqrt(k**2 - q[0] ** 2 - q[1] ** 2) - k, rel=1e-12)
    assert q[2] == pytest.approx(-(q[0] ** 2 + q[1] ** 2) / (2 * k), rel=0.01)


def test_direct_basis_is_reciprocal_to_the_volume():
    shape = (31, 64, 50)
    reciprocal = reciprocal_basis(ODD, 0.02)
    direct = direct_basis(reciprocal, shape)
    np.testing.assert_allclose(direct.T @ reciprocal, -2 * np.pi * np.diag(1 / np.array(shape)), atol=1e-14)
    volume = (2 * np.pi) ** 3 / (voxel_volume(reciprocal) * np.prod(shape))
    assert voxel_volume(direct) == pytest.approx(volume)


def _centred(n):
    return np.arange(n) - n // 2


def _lattice(basis, shape):
    indices = np.meshgrid(*map(_centred, shape), indexing="ij")
    return np.stack(indices, axis=-1) @ basis.T


def _transform(density):
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density)))


def test_fft_on_direct_voxels_is_the_kinematic_sum():
    rng = np.random.default_rng(0)
    # Decision 0002: F(q) = sum A exp(i Q.u) exp(+i (q - Q).r).
    shape = (5, 6, 4)
    density = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    reciprocal = reciprocal_basis(ODD, 0.02)
    q, r = _lattice(reciprocal, shape), _lattice(direct_basis(reciprocal, shape), shape)
    waves = np.exp(1j * np.einsum("abci,defi->abcdef", q, r))
    np.testing.assert_allclose(_transform(density), np.einsum("abcdef,def", waves, density), atol=1e-10)


def test_a_stretched_lattice_diffracts_at_a_smaller_angle():
    shape, stretch = (32, 32, 32), 5e-4
    reciprocal = reciprocal_basis(GOLD, 0.01)
    direct, bragg = direct_basis(reciprocal, shape), bragg_vector(GOLD)
    r = _lattice(direct, shape)
    density = np.exp(-np.sum(r**2, axis=-1) / (2 * 120.0**2) + 1j * stretch * r @ bragg)
    intensity = np.abs(_transform(density)) ** 2
    q = _lattice(reciprocal, shape)
    peak = bragg + np.einsum("abc,abci->i", intensity, q) / intensity.sum()
    assert d_spacing(peak) == pytest.approx(d_spacing(bragg) * (1 + stretch), rel=1e-5)


def test_rocking_about_the_bragg_vector_is_refused():
    axis = tuple(bragg_vector(GOLD) / np.linalg.norm(bragg_vector(GOLD)))
    with pytest.raises(InvalidInput, match="stays on it; check rocking_axis"):
        reciprocal_basis(replace(GOLD, rocking_axis=axis), 0.01)
    with pytest.raises(InvalidInput, match="the step must be above 0"):
        reciprocal_basis(GOLD, -0.01)


def test_bases_of_a_volume_are_those_at_its_middle_voxel():
    intensity = np.zeros((11, 20, 31), dtype=np.float32)
    volume = DiffractionVolume(
        intensity, intensity == 0, angles_deg=np.linspace(-0.1, 0.1, 11), geometry=GOLD, window=(0, 100, 90)
    )
    reciprocal, direct, bragg = volume_bases(volume)
    np.testing.assert_allclose(reciprocal, reciprocal_basis(GOLD, 0.02, (110, 105)))
    np.testing.assert_allclose(direct, direct_basis(reciprocal, (11, 20, 31)))
    np.testing.assert_allclose(bragg, bragg_vector(GOLD, (110, 105)))
    for without in ({"geometry": None}, {"angles_deg": None}):
        with pytest.raises(MissingMetadata, match="need the geometry and the rocking angles"):
            volume_bases(replace(volume, **without))
    with pytest.raises(InvalidInput, match="two slices or more"):
        volume_bases(
            replace(volume, intensity=intensity[:1], valid=intensity[:1] == 0, angles_deg=np.zeros(1))
        )


SCAN54 = (
    Path(os.environ.get("CDINN_DATA", Path(__file__).parents[2] / "shared" / "data")) / "aps34idc_scan54.h5"
)
# Where six flares of its diffraction point, (rocking, row, column) voxels from the peak: {111}, then {100}.
FLARES = [(61, 8, 14), (12, -30, -1), (-21, 13, -29), (-50, 11, 16), (34, 18, -13), (-8, -16, -26)]


def _brightest_near(start, intensity, peak):
    """Return the direction, close to a first one, along which a flare is brightest."""
    start = np.array(start, dtype=float)
    reach = np.linspace(-1.5, 1.5, 100)
    reach = reach[np.abs(reach) > 0.4]

    def dimness(direction):
        line = np.array(peak)[:, None] + direction[:, None] * reach * np.linalg.norm(start) / np.linalg.norm(
            direction
        )
        return -np.log(ndimage.map_coordinates(intensity, line, order=1) + 0.05).mean()

    simplex = start + 4 * np.vstack([np.zeros(3), np.eye(3)])
    return optimize.minimize(
        dimness,
        start,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.1, "fatol": 1e-3},
    ).x


@pytest.mark.skipif(not SCAN54.is_file(), reason="the measured scan isn't here (CDINN_DATA)")
def test_facets_of_a_measured_gold_crystal_make_the_angles_of_gold():
    # A facet's flare runs along its normal: pixels, distance, arm and rocking sense, all in one.
    with h5py.File(SCAN54) as file:
        frames = file["frames"][:, 62:192, 62:192]
        white, dark = file["whitefield"][62:192, 62:192], file["dark"][62:192, 62:192]
    flat = np.where((dark == 0) & (white > 100), np.median(white) / np.maximum(white, 1), 0.0)
    intensity = ndimage.gaussian_filter(frames * flat, 1.0)
    voxels = np.column_stack([_brightest_near(flare, intensity, (99, 64, 65)) for flare in FLARES])

    def angles(rocking_axis):
        normals = reciprocal_basis(replace(GOLD, rocking_axis=rocking_axis), 0.005) @ voxels
        normals /= np.linalg.norm(normals, axis=0)
        return np.degrees(np.arccos(np.abs(np.clip(normals.T @ normals, -1, 1))))

    def misfit(found):
        between = [(i, j) for i in range(6) for j in range(i)]
        ideal = [70.53 if i < 4 else 90.0 if j >= 4 else 54.74 for i, j in between]
        return np.sqrt(
            np.mean([(found[pair] - angle) ** 2 for pair, angle in zip(between, ideal, strict=True)])
        )

    assert misfit(angles((0.0, 1.0, 0.0))) < 2.0
    assert misfit(angles((0.0, -1.0, 0.0))) > 10.0


def test_geometry_is_read_from_layers_in_order_of_precedence():
    start = {"energy_keV": 10.0, "sample": "A", "beam_centre_px": None}
    device = {**SAID, "reflection": (1, 1, 1)}
    settings = {"lattice_nm": 0.4078, "energy_keV": 5.0, "rocking_axis": [0, 2, 0]}
    geometry, missing = geometry_from(start, device, settings)
    assert missing == ()
    assert geometry == Geometry(
        energy_keV=10.0,
        detector_distance_m=0.5,
        pixel_size_um=(55.0, 55.0),
        detector_angles_deg=(32.174, 12.6346),
        beam_centre_px=(128.0, 120.0),
        reflection=(1, 1, 1),
        lattice_nm=0.4078,
    )
    assert all(type(index) is int for index in geometry.reflection)


def test_numpy_values_are_read_as_plain_numbers():
    said = {**SAID, "energy_keV": np.array([9.0], dtype=np.float32), "pixel_size_um": np.array([55, 75])}
    geometry, _ = geometry_from(said)
    assert type(geometry.energy_keV) is float
    assert geometry.pixel_size_um == (55.0, 75.0)


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_missing_is_named(name):
    rest = {key: value for key, value in SAID.items() if key != name}
    assert geometry_from(rest) == (None, (name,))


def test_nothing_said_misses_everything():
    assert geometry_from() == geometry_from({}, {}) == (None, REQUIRED)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("energy_keV", 9000.0, r"a number from 1 to 200 keV, got 9000.0; check its unit"),
        ("energy_keV", "9", r"a number from 1 to 200 keV, got '9'"),
        ("energy_keV", True, "got True"),
        ("energy_keV", float("nan"), "got nan"),
        ("detector_distance_m", 500, "0.05 to 50 m, got 500"),
        ("pixel_size_um", 55e-6, "0.5 to 1000 um"),
        ("pixel_size_um", [1, 2, 3], "got 3 values"),
        ("detector_angles_deg", 32.0, "2 numbers from -180 to 180 deg"),
        ("detector_angles_deg", [[1, 2], [3]], "2 numbers"),
        ("beam_centre_px", {"row": 1}, "2 numbers"),
        ("reflection", (1, 1, 0.5), "whole Miller indices"),
        ("lattice_nm", 4.078, "0.1 to 3 nm, got 4.078; check its unit"),
        ("rocking_axis", (0, 0, 0), "must be a direction"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name, value, message):
    with pytest.raises(InvalidInput, match=message) as error:
        geometry_from({**SAID, name: value})
    assert str(error.value).startswith(name)


def test_metadata_that_is_no_mapping_is_refused():
    with pytest.raises(InvalidInput, match="must be a mapping"):
        geometry_from(["energy_keV"])

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import (
    bragg_vector,
    direct_basis,
    reciprocal_basis,
    scattering_vectors,
    wavenumber,
)
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.crystal import Crystal, SmoothField, random_crystal, sample
from bluesky_cdinn.sim.diffraction import Diffraction, SampledCrystal
from bluesky_cdinn.sim.polyhedron import Polyhedron

GEOMETRY = Geometry(
    energy_keV=9.0,
    detector_distance_m=0.5,
    pixel_size_um=(110.0, 110.0),
    detector_angles_deg=(32.174, 12.6346),
    beam_centre_px=(32.0, 32.0),
)
# Nothing along an axis, nothing square.
ODD = Geometry(
    energy_keV=11.3,
    detector_distance_m=1.7,
    pixel_size_um=(150.0, 120.0),
    detector_angles_deg=(-21.0, 28.0),
    beam_centre_px=(32.0, 32.0),
    rocking_axis=(0.6, 0.64, 0.48),
)
SHAPE = (64, 64)
NEAR = replace(GEOMETRY, detector_distance_m=0.2)
TURN = Rotation.from_euler("xyz", [20, 35, 50], degrees=True).as_matrix()
SIDES = np.array([200.0, 260.0, 170.0])


def _box(ramp=(0.0, 0.0, 0.0)):
    """A turned box whose phase is ramp . r; its transform is known: a product of sincs, moved."""
    body = Polyhedron(np.concatenate([TURN, -TURN]), np.concatenate([SIDES, SIDES]) / 2)
    coefficients = np.zeros(20)
    coefficients[1:4] = ramp[::-1]
    none = np.zeros(0)
    return Crystal(body, SmoothField(1.0, coefficients, np.zeros((0, 3)), none, none))


def _box_transform(q, ramp=(0.0, 0.0, 0.0)):
    return np.prod(SIDES * np.sinc((q + ramp) @ TURN.T * SIDES / (2 * np.pi)), axis=-1)


@pytest.mark.parametrize(
    ("ramp", "tolerance", "rms"),
    [((0.0, 0.0, 0.0), 1e-4, 3e-6), ((0.01, -0.02, 0.015), 5e-4, 3e-5)],
)
def test_transform_of_a_box_is_a_product_of_sincs(ramp, tolerance, rms):
    # Errors are relative to the peak's amplitude; over this part of q the box's own rms is 7e-3.
    q = np.random.default_rng(0).uniform(-0.4, 0.4, size=(20_000, 3))
    sampled = SampledCrystal.reaching(_box(ramp), np.eye(3), np.full(3, 0.4))
    error = np.abs(sampled.transform(q) - _box_transform(q, ramp)) / SIDES.prod()
    assert error.max() < tolerance
    assert np.sqrt(np.mean(error**2)) < rms


def test_transform_is_the_sum_over_finer_voxels():
    # The slow reference: a direct sum over a grid three times as fine, its own voxels' sinc divided out.
    crystal = random_crystal(np.random.default_rng(3), 150.0, 4.0, defect="dislocation")
    q = np.random.default_rng(0).uniform(-0.3, 0.3, size=(60, 3))
    transform = SampledCrystal.reaching(crystal, TURN, np.full(3, 0.52)).transform(q)
    voxel, n = 1.5, 106
    density = sample(crystal, voxel * np.eye(3), (n, n, n)).astype(np.complex128)
    axis = (np.arange(n) - n // 2) * voxel
    expected = np.empty(len(q), dtype=complex)
    for i, (x, y, z) in enumerate(q):
        waves = (np.exp(1j * component * axis) for component in (x, y, z))
        expected[i] = np.einsum("abc,a,b,c", density, *waves, optimize=True)
    expected *= voxel**3 / np.sinc(q * voxel / (2 * np.pi)).prod(axis=1)
    assert np.abs(transform - expected).max() < 1e-3 * np.abs(density).sum() * voxel**3


def test_frames_are_slices_of_the_transform_on_the_ewald_sphere():
    diffraction = Diffraction(_box(), GEOMETRY, SHAPE)
    offsets = np.array([-0.2, 0.0, 0.35])
    rows, columns = np.arange(64)[:, None], np.arange(64)
    q = scattering_vectors(GEOMETRY, offsets, rows, columns) - bragg_vector(GEOMETRY)
    exact = _box_transform(q) ** 2 / SIDES.prod() ** 2
    frames = diffraction.frames(offsets)
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames, exact, atol=3e-6)
    np.testing.assert_array_equal(diffraction.frame(0.35), frames[2])
    assert diffraction.peak == pytest.approx(SIDES.prod() ** 2, rel=1e-4)


def test_frames_bend_away_from_the_linear_map():
    # A pixel far out lies q^2 / 2k off the plane of the linear map.
    diffraction = Diffraction(_box(), NEAR, SHAPE, half_range_deg=0.1)
    indices = np.stack(np.meshgrid(np.arange(64) - 32, np.arange(64) - 32, indexing="ij"), axis=-1)
    flat = indices @ reciprocal_basis(NEAR, 0.01)[:, 1:].T
    bent = scattering_vectors(NEAR, 0.0, np.arange(64)[:, None], np.arange(64)) - bragg_vector(NEAR)
    sag = np.sum(flat**2, axis=-1) / (2 * wavenumber(NEAR.energy_keV))
    np.testing.assert_allclose(np.linalg.norm(bent - flat, axis=-1), sag, rtol=0.05, atol=1e-6)

    far = np.linalg.norm(indices, axis=-1) > 24
    magnitude = np.sqrt(diffraction.frame(0.0))[far]

    def misfit(q):
        expected = np.abs(_box_transform(q)[far]) / SIDES.prod()
        return np.sum((magnitude - expected) ** 2) / np.sum(expected**2)

    assert misfit(bent) < 1e-3
    assert misfit(flat) > 0.02


@pytest.mark.parametrize(("geometry", "size_nm", "step"), [(GEOMETRY, 250.0, 0.02), (ODD, 700.0, 0.01)])
def test_a_rocking_curve_is_the_fft_of_the_crystal_on_direct_voxels(geometry, size_nm, step):
    # Geometry, signs and axes all at once: the twin, or any other sign, would not fit.
    crystal = random_crystal(np.random.default_rng(11), size_nm, 4.0)
    shape = (64, 64, 64)
    frames = Diffraction(crystal, geometry, SHAPE).frames((np.arange(64) - 32) * step)
    density = sample(crystal, direct_basis(reciprocal_basis(geometry, step), shape), shape)

    def misfit(density):
        magnitude = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density))))
        magnitude *= np.sqrt(frames.sum()) / np.linalg.norm(magnitude)
        return np.sum((magnitude - np.sqrt(frames)) ** 2) / frames.sum()

    assert misfit(density) < 5e-3
    assert misfit(density.conj()) > 0.05


def test_the_brightest_pixel_of_a_fine_curve_is_one():
    for seed in range(3):
        crystal = random_crystal(np.random.default_rng(seed), 300.0, 2 * np.pi)
        frames = Diffraction(crystal, GEOMETRY, SHAPE).frames(np.linspace(-0.3, 0.3, 121))
        assert 0.8 < frames.max() <= 1.0 + 1e-4


def test_a_crystal_off_the_beam_centre_diffracts_where_its_bragg_vector_says():
    bragg = bragg_vector(GEOMETRY, (20.0, 45.0))
    frame = Diffraction(_box(), GEOMETRY, SHAPE, bragg=bragg).frame(0.0)
    assert np.unravel_index(frame.argmax(), SHAPE) == (20, 45)
    assert frame.max() == pytest.approx(1.0, rel=1e-4)


def test_far_from_the_peak_there_is_nothing():
    diffraction = Diffraction(_box(), GEOMETRY, SHAPE, half_range_deg=0.1)
    assert diffraction.frame(8.0).max() < 1e-6


def test_a_detector_that_would_see_too_much_is_refused():
    with pytest.raises(InvalidInput, match="take a smaller crystal or detector"):
        Diffraction(random_crystal(np.random.default_rng(0), 5000.0, 1.0), GEOMETRY, SHAPE)

import numpy as np
import pytest
from scipy import ndimage

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.crystal import random_crystal, sample
from bluesky_cdinn.strain import (
    SHELL,
    d_spacing_map,
    depth_nm,
    equivalent_diameter_nm,
    extents_nm,
    lattice_parameter_map,
    strain_along,
    strain_field,
    strain_rms,
    surface_and_bulk,
)
from bluesky_cdinn.unwrapping import flatten_phase, unwrapped_phase

# Voxels as oblique as a detector makes them, and a Bragg vector along nothing.
SHEARED = np.array([[-5.0, 0.4, -3.8], [-2.0, 6.0, -0.2], [-7.8, 0.0, 5.2]])
Q = np.array([13.0, 5.0, -8.0])
SHAPE = (48, 40, 44)


def _points(basis, shape=SHAPE):
    indices = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return np.stack(indices, axis=-1) @ basis.T


def _ball(basis, radius_nm, shape=SHAPE):
    return np.linalg.norm(_points(basis, shape), axis=-1) < radius_nm


def _bent(curvature_per_nm, radius_nm=50.0):
    """A ball with u_Q = c x_Q^2, hence strain 2 c x_Q."""
    along = _points(SHEARED) @ Q / np.linalg.norm(Q)
    support = _ball(SHEARED, radius_nm)
    density = support * np.exp(1j * np.linalg.norm(Q) * curvature_per_nm * along**2)
    return density, support, 2 * curvature_per_nm * along


def _inner(support):
    """Voxels all of whose 26 neighbours are inside."""
    return ndimage.binary_erosion(support, np.ones((3, 3, 3)))


@pytest.mark.parametrize("curvature", [2e-5, 2e-4])
def test_strain_of_a_bent_lattice_on_sheared_voxels(curvature):
    # The second case wraps its phase more than once.
    density, support, expected = _bent(curvature)
    strain = strain_along(density, support, SHEARED, Q)
    inner = _inner(support)
    np.testing.assert_allclose(strain[inner], expected[inner], atol=1e-6 * np.abs(expected).max())
    # What is cut of a window moves its middle: it sees the strain up to half a voxel away along each axis.
    half_voxels = np.abs(np.linalg.solve(SHEARED, Q) / np.linalg.norm(Q)).sum()
    bound = 2 * curvature * half_voxels * 30
    known = support & np.isfinite(strain)
    assert np.abs(strain - expected)[known].max() < bound
    assert np.isnan(strain[~support]).all()


def test_uniform_strain_is_exact_up_to_the_edge():
    points = _points(SHEARED)
    support = _ball(SHEARED, 50.0)
    density = support * np.exp(1j * 1.5e-3 * points @ Q)
    strain = strain_along(density, support, SHEARED, Q)
    known = support & np.isfinite(strain)
    assert np.count_nonzero(known) > 0.99 * np.count_nonzero(support)
    np.testing.assert_allclose(strain[known], 1.5e-3, rtol=1e-6)


def test_displacement_across_the_bragg_vector_is_no_strain():
    across = np.cross(Q, [0.0, 0.0, 1.0])
    support = _ball(SHEARED, 50.0)
    density = support * np.exp(1j * 2e-3 * _points(SHEARED) @ across)
    strain = strain_along(density, support, SHEARED, Q)
    assert np.nanmax(np.abs(strain)) < 1e-8


def test_offset_and_ramp_come_out_and_are_reported():
    density, support, _ = _bent(2e-5)
    ramp = np.array([0.4, -0.7, 0.25])
    indices = _points(np.eye(3))
    flat, found = flatten_phase(density * np.exp(1j * (0.9 + indices @ ramp)), support)
    np.testing.assert_allclose(found, flatten_phase(density, support)[1] + ramp, atol=1e-5)
    np.testing.assert_allclose(flat[support], flatten_phase(density, support)[0][support], atol=1e-4)
    phase = unwrapped_phase(flat, support)
    assert abs(phase[support].mean()) < 1e-5


def test_a_ramp_is_another_lattice_spacing_and_not_strain():
    density, support, _ = _bent(2e-5)
    stretched = density * np.exp(1j * 1e-3 * _points(SHEARED) @ Q)
    before, after = (strain_field(d, support, SHEARED, Q) for d in (density, stretched))
    ratio = after.scalars["d_spacing_nm"] / before.scalars["d_spacing_nm"]
    assert ratio == pytest.approx(1 + 1e-3, abs=2e-6)
    np.testing.assert_allclose(after.strain[support], before.strain[support], atol=1e-5, equal_nan=True)


def test_unwrapping_gives_the_phase_back_over_several_turns():
    density, support, _ = _bent(2e-4)
    along = _points(SHEARED) @ Q / np.linalg.norm(Q)
    phase = unwrapped_phase(density, support)[support]
    truth = (np.linalg.norm(Q) * 2e-4 * along**2)[support]
    assert np.ptp(truth) > 2 * np.pi
    np.testing.assert_allclose(phase - phase.mean(), truth - truth.mean(), atol=1e-4)
    assert abs(phase.mean()) <= np.pi


@pytest.mark.parametrize("seed", range(3))
def test_random_crystals_give_their_own_strain_back(seed):
    crystal = random_crystal(np.random.default_rng(seed), 300.0, 4.0)
    basis = 300.0 / 32 * np.eye(3)
    density = sample(crystal, basis, (48, 48, 48))
    support = np.abs(density) > 0.5
    field = strain_field(density, support, basis, Q)

    points, direction = _points(basis, density.shape), Q / np.linalg.norm(Q)
    step = 0.01 * direction
    truth = (crystal.phase(points + step) - crystal.phase(points - step)) / 0.02 / np.linalg.norm(Q)
    inner = _inner(support)
    error = (field.strain - truth)[inner]
    # The field has no ramp over the crystal, but the support is the crystal but for its surface.
    assert np.std(error) < 0.05 * np.std(truth[inner])
    assert abs(error.mean()) < 0.1 * np.std(truth[inner])
    phase = crystal.phase(points)[support]
    assert np.std(field.phase[support] - phase) < 0.1
    np.testing.assert_allclose(
        field.displacement[support], field.phase[support] / np.linalg.norm(field.q_vector)
    )
    assert field.scalars["strain_rms"] == pytest.approx(strain_rms(field.strain))
    spacing = 2 * np.pi / np.linalg.norm(field.q_vector)
    np.testing.assert_allclose(
        field.d_spacing_nm[support], spacing * (1 + field.strain[support]), rtol=1e-6, equal_nan=True
    )


def test_a_dislocation_strains_without_a_seam():
    crystal = random_crystal(np.random.default_rng(4), 300.0, 0.0, defect="dislocation")
    basis = 300.0 / 48 * np.eye(3)
    density = sample(crystal, basis, (64, 64, 64))
    support = np.abs(density) > 0.5
    strain = strain_along(density, support, basis, Q)
    line = crystal.defects[0]
    distance = np.linalg.norm(
        ((_points(basis, density.shape) - line.point_nm) @ line.frame.T)[..., :2], axis=-1
    )
    far = support & (distance > 40.0) & np.isfinite(strain)
    # Away from the line, |grad phase| of an edge is at most (1 + 1 / (2 (1 - nu))) / distance.
    assert np.abs(strain[far]).max() < 1.9 / 40.0 / np.linalg.norm(Q) * 1.2


def test_sizes_of_a_ball():
    support = _ball(SHEARED, 60.0)
    assert equivalent_diameter_nm(support, SHEARED) == pytest.approx(120.0, rel=0.01)
    np.testing.assert_allclose(extents_nm(support, SHEARED), 120.0, atol=7.0)


def test_size_of_a_box_on_square_voxels_is_exact():
    support = np.zeros((20, 20, 20), dtype=bool)
    support[2:12, 3:8, 5:6] = True
    np.testing.assert_allclose(extents_nm(support, np.diag([-2.0, 3.0, 4.0])), [20.0, 15.0, 4.0])


def test_a_plate_one_voxel_thick_has_no_strain_and_no_error():
    support = np.zeros((8, 8, 8), dtype=bool)
    support[4, 2:6, 2:6] = True
    field = strain_field(support.astype(np.complex64), support, np.eye(3), Q)
    assert np.isnan(field.strain).all()
    np.testing.assert_allclose(field.phase[support], 0.0, atol=1e-6)
    assert "strain_rms" not in field.scalars


def test_stray_voxels_and_holes_without_amplitude_take_nothing_from_the_rest():
    density, support, _ = _bent(2e-5)
    whole = strain_field(density, support, SHEARED, Q, spread_rad=0.05)
    support[1, 1, 1] = density[1, 1, 1] = True
    density[22:27, 18:23, 20:25] = 0
    field = strain_field(density, support, SHEARED, Q, spread_rad=0.05)
    assert np.isnan(field.strain[[1, 24], [1, 20], [1, 22]]).all()
    assert np.isfinite(field.strain).sum() > 0.9 * np.isfinite(whole.strain).sum()
    width = whole.scalars["strain_resolution_nm"]
    assert field.scalars["strain_resolution_nm"] == pytest.approx(width, rel=1e-3)
    lone = np.zeros(SHAPE, dtype=bool)
    lone[3, 3, 3] = True
    assert "strain_resolution_nm" not in strain_field(lone * 1.0, lone, SHEARED, Q).scalars


def test_what_does_not_fit_is_refused():
    density = np.ones((4, 4, 4), dtype=np.complex64)
    with pytest.raises(InvalidInput, match="of one shape"):
        flatten_phase(density, np.ones((4, 4, 3), dtype=bool))
    with pytest.raises(InvalidInput, match="without a voxel"):
        strain_field(density, np.zeros(density.shape, dtype=bool), np.eye(3), Q)


def test_depth_and_shell_of_a_ball():
    support = _ball(SHEARED, 60.0)
    depth = depth_nm(support, SHEARED)
    radius = np.linalg.norm(_points(SHEARED), axis=-1)
    voxel = abs(np.linalg.det(SHEARED)) ** (1 / 3)
    assert np.isnan(depth[~support]).all()
    assert np.abs(depth - (60.0 - radius))[support].max() < voxel
    bounded = depth_nm(support, SHEARED, SHELL * voxel)
    np.testing.assert_array_equal(bounded < SHELL * voxel, depth < SHELL * voxel)
    numbers = surface_and_bulk(depth, depth, support, SHEARED)
    assert numbers["strain_mean_surface"] < SHELL * voxel < numbers["strain_mean_bulk"]
    assert numbers["displacement_rms_bulk_nm"] >= numbers["displacement_mean_bulk_nm"]
    thin = np.zeros((6, 6, 6), dtype=bool)
    thin[2:4, 1:5, 1:5] = True
    assert np.isnan(surface_and_bulk(thin * 1.0, thin * 1.0, thin, np.eye(3))["strain_mean_bulk"])


def test_lattice_parameter_of_a_cubic_crystal():
    strain = np.array([[[0.0, 1e-3, np.nan]]], dtype=np.float32)
    q = 2 * np.pi * np.array([1.0, 1.0, 1.0]) / 0.408
    np.testing.assert_allclose(
        lattice_parameter_map(strain, q, (1, 1, 1)), [[[0.408, 0.408408, np.nan]]], rtol=1e-6
    )
    np.testing.assert_allclose(d_spacing_map(strain, q)[0, 0, 0], 0.408 / np.sqrt(3), rtol=1e-6)


def test_the_twin_has_the_same_strain_on_the_other_side():
    density, support, _ = _bent(2e-5)
    rng = np.random.default_rng(2)
    density = (density * np.exp(0.05j * rng.normal(size=SHAPE))).astype(np.complex64)
    strain = strain_along(density, support, SHEARED, Q)
    other = strain_along(np.conj(density[::-1, ::-1, ::-1]), support[::-1, ::-1, ::-1], SHEARED, Q)
    np.testing.assert_allclose(other[::-1, ::-1, ::-1], strain, atol=1e-7)

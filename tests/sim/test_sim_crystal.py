import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.crystal import interior_points, random_crystal, sample
from bluesky_cdinn.sim.defects import Dislocation, DomainWall

OBLIQUE = np.array([[-5.0, 0.4, -3.8], [-2.0, 6.0, -0.2], [-7.8, 0.0, 5.2]])


def _points(basis, shape):
    indices = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return np.stack(indices, axis=-1) @ basis.T


@pytest.mark.parametrize("phase_range", [0.5, 2 * np.pi])
@pytest.mark.parametrize("seed", range(5))
def test_the_field_has_the_range_asked_for_and_no_ramp(seed, phase_range):
    crystal = random_crystal(np.random.default_rng(seed), 200.0, phase_range)
    points = interior_points(crystal.body)
    phase = crystal.phase(points)
    assert np.ptp(phase) == pytest.approx(phase_range)
    design = np.column_stack([np.ones(len(points)), points])
    ramp = np.linalg.lstsq(design, phase, rcond=None)[0]
    np.testing.assert_allclose(ramp, 0.0, atol=1e-9)


def test_the_field_is_smooth_on_the_scale_of_a_benchmark_voxel():
    for seed in range(10):
        crystal = random_crystal(np.random.default_rng(seed), 200.0, 2 * np.pi)
        points = interior_points(crystal.body)
        # 26 voxels across, as for an oversampling of 2.5 in 64 voxels.
        step = crystal.phase(points + np.array([200.0 / 26, 0, 0])) - crystal.phase(points)
        assert np.abs(step).max() < np.pi / 2


def test_the_same_seed_grows_the_same_crystal():
    one, other = (
        sample(
            random_crystal(np.random.default_rng(7), 100.0, 3.0, defect="void"), 4.0 * np.eye(3), (32,) * 3
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("defect", [None, "void", "dislocation", "domain_wall"])
def test_a_sample_is_the_crystal_at_each_voxel(defect):
    crystal = random_crystal(np.random.default_rng(1), 150.0, 3.0, defect=defect)
    shape = (45, 50, 48)
    density = sample(crystal, OBLIQUE, shape)
    assert density.dtype == np.complex64
    points = _points(OBLIQUE, shape)
    expected = crystal.amplitude(points, OBLIQUE) * np.exp(1j * crystal.phase(points))
    np.testing.assert_allclose(density, expected, atol=1e-6)


def test_samples_on_different_grids_hold_the_same_matter():
    crystal = random_crystal(np.random.default_rng(2), 150.0, 1.0)
    total = [
        np.abs(sample(crystal, basis, shape)).sum() * abs(np.linalg.det(basis))
        for basis, shape in ((OBLIQUE, (64, 64, 64)), (3.0 * np.eye(3), (64, 64, 64)))
    ]
    assert total[0] == pytest.approx(total[1], rel=0.01)


def test_a_crystal_larger_than_the_grid_is_cut_and_not_wrapped():
    crystal = random_crystal(np.random.default_rng(2), 150.0, 1.0)
    small, large = (sample(crystal, 3.0 * np.eye(3), (n, n, n)) for n in (20, 64))
    np.testing.assert_array_equal(small, large[22:42, 22:42, 22:42])


def test_a_void_is_empty():
    crystal = random_crystal(np.random.default_rng(5), 200.0, 2.0, defect="void")
    void = crystal.defects[0]
    assert crystal.amplitude(void.centre_nm) == 0.0
    assert crystal.amplitude(void.centre_nm + 2 * void.body.diameter() * np.array([0, 0, 0.3])) in (0.0, 1.0)
    whole = crystal.body.coverage(interior_points(crystal.body)).sum()
    missing = 1 - crystal.amplitude(interior_points(crystal.body)).sum() / whole
    assert 0.002 < missing < 0.1


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("order", [1, -1, 2])
def test_a_dislocation_winds_the_phase_once_for_each_lattice_plane(edge, order):
    line = Dislocation(np.array([1.0, 2.0, 3.0]), np.eye(3)[[2, 0, 1]], order=order, edge=edge, core_nm=1.0)
    angles = np.linspace(0, 2 * np.pi, 101)
    circle = np.array([1.0, 2.0, 3.0]) + 5.0 * (
        np.cos(angles)[:, None] * line.frame[0] + np.sin(angles)[:, None] * line.frame[1]
    )
    phase = line.phase(circle)
    winding = np.angle(np.exp(1j * np.diff(phase))).sum() / (2 * np.pi)
    assert winding == pytest.approx(order)
    assert line.amplitude(np.array([1.0, 2.0, 3.0])) == 0.0
    assert line.amplitude(circle).min() > 0.99


def test_a_domain_wall_steps():
    wall = DomainWall(np.array([0.0, 0.6, 0.8]), 2.0, step_rad=2.0, width_nm=0.5)
    far = wall.phase(np.array([[0.0, 6.0, 8.0], [0.0, -6.0, -8.0], [0.0, 1.2, 1.6]]))
    np.testing.assert_allclose(far, [1.0, -1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "phase_range", "defect", "message"),
    [
        (0.0, 1.0, None, "size_nm must be above 0, got 0.0"),
        (100.0, -1.0, None, "phase_range_rad must be 0 or more, got -1.0"),
        (100.0, 1.0, "crack", "got 'crack'"),
    ],
)
def test_what_cannot_be_grown_is_refused(size, phase_range, defect, message):
    with pytest.raises(InvalidInput, match=message):
        random_crystal(np.random.default_rng(0), size, phase_range, defect=defect)

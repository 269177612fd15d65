import numpy as np
import pytest

from bluesky_cdinn.training.atomistic import MATERIALS, Recipe, build
from bluesky_cdinn.training.displacement import Grid, coarse_grained
from bluesky_cdinn.training.kinematic import bragg_peak, continuum_peak, kinematic_sum, scattering_vector

CELL = MATERIALS["gold"].lattice_nm
OBLIQUE = np.array([[0.3, 0.05, 0.0], [0.0, 0.25, 0.04], [0.02, 0.0, 0.35]])


def double_loop(positions: np.ndarray, wavevectors: np.ndarray) -> np.ndarray:
    total = np.zeros(len(wavevectors), dtype=complex)
    for i, q in enumerate(wavevectors):
        for r in positions:
            total[i] += np.exp(1j * (q @ r))
    return total


def grid_points(centre: np.ndarray, basis: np.ndarray, side: int) -> np.ndarray:
    return centre + (np.moveaxis(np.indices((side,) * 3), 0, -1) - side // 2) @ basis.T


def test_sum_is_that_of_a_double_loop():
    rng = np.random.default_rng(0)
    positions = rng.uniform(-2, 2, size=(150, 3))
    wavevectors = scattering_vector((1, 1, 1), CELL) + rng.normal(size=(40, 3))
    expected = double_loop(positions, wavevectors)
    np.testing.assert_allclose(kinematic_sum(positions, wavevectors), expected, atol=1e-6)


@pytest.mark.parametrize("side", [8, 9])
def test_peak_on_a_grid_is_the_sum_at_its_points(side):
    rng = np.random.default_rng(1)
    # Far from the origin the phases wrap round many times.
    positions = rng.uniform(48, 52, size=(200, 3))
    centre = scattering_vector((2, 0, 0), CELL)
    expected = kinematic_sum(positions, grid_points(centre, OBLIQUE, side))
    np.testing.assert_allclose(bragg_peak(positions, centre, OBLIQUE, side), expected, atol=1e-6)


def test_stretched_lattice_scatters_at_a_smaller_angle():
    sites = build(Recipe(0, atoms=2000, hold="free", strain=0, bend=0)).sites_nm
    centre = scattering_vector((1, 1, 1), CELL)
    at_stretched = kinematic_sum(1.02 * sites, np.stack([centre / 1.02, centre]))
    assert abs(at_stretched[0]) == pytest.approx(len(sites))
    assert abs(at_stretched[1]) < 0.9 * len(sites)


@pytest.mark.parametrize("hkl", [(1, 1, 1), (2, 0, 0), (2, 2, 0)])
def test_continuum_agrees_with_the_atoms_of_a_bent_crystal(hkl):
    recipe = Recipe(4, atoms=4000, hold="free", strain=0.005, bend=0.01)
    atoms = build(recipe)
    positions = atoms.positions_nm
    grid = Grid.around(positions, 28)
    field = coarse_grained(positions, positions - atoms.sites_nm, CELL, grid)
    wavevector = scattering_vector(hkl, CELL)
    density = field.occupancy * np.exp(1j * np.tensordot(wavevector, field.displacement_nm, axes=1))
    # Two fringes of a crystal of 4 nm to every side.
    basis, side = 0.3 * np.eye(3), 20
    shift = -field.gradient.T @ wavevector
    exact = bragg_peak(positions, wavevector + shift, basis, side)
    q = grid_points(np.zeros(3), basis, side)
    # The affine part took its share of the phase out, and the Gaussian dims what lies off the peak.
    smeared = np.exp(-((q * grid.sigma_nm(CELL)) ** 2).sum(axis=-1) / 2)
    continuum = continuum_peak(density, grid.corner_nm, grid.voxel_nm, np.zeros(3), basis, side) / smeared
    continuum *= 4 / CELL**3
    overlap = np.vdot(continuum, exact) / np.linalg.norm(continuum) / np.linalg.norm(exact)
    assert abs(overlap) > 0.998
    assert np.linalg.norm(continuum) == pytest.approx(np.linalg.norm(exact), rel=0.02)

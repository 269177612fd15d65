"""Making a set of relaxed crystals: in parallel, with progress, and going on where it was stopped.

    python -m bluesky_cdinn.training.atomistic_making FOLDER --count 200 --seed 100000 --processes 8

One file a crystal, written whole or not at all.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import replacing
from bluesky_cdinn.training.atomistic import MATERIALS, Atoms, Recipe, build, random_recipe
from bluesky_cdinn.training.atomistic_set import VERSION, as_set, load_set, save_set
from bluesky_cdinn.training.displacement import Field, Grid, coarse_grained
from bluesky_cdinn.training.relaxation import RelaxationFailed, relax

LOG = logging.getLogger(__name__)

# Points along each axis of a crystal's grid.
SIDE = 28


def make_set(
    folder: Path, count: int, seed: int, *, processes: int = 1, side: int = SIDE, progress: bool = True
) -> None:
    """Make the mixed crystals of ``count`` consecutive seeds, those that the folder lacks.

    Parameters
    ----------
    folder
        Where to; made if absent.
    count
        How many.
    seed
        Of the first.
    processes, side, progress
        As for `make_crystals`, which also says what is raised.
    """
    recipes = [random_recipe(number) for number in range(seed, seed + count)]
    make_crystals(folder, recipes, processes=processes, side=side, progress=progress)


def make_crystals(
    folder: Path, recipes: Sequence[Recipe], *, processes: int = 1, side: int = SIDE, progress: bool = True
) -> None:
    """Make crystals, those whose seeds the folder lacks.

    Parameters
    ----------
    folder
        Where to; made if absent. One file a crystal, named by its seed.
    recipes
        What to make, each with a seed of its own.
    processes
        How many crystals are made at once, each by one process and its LAMMPS child.
    side
        Points along each axis of their grids.
    progress
        Draw a progress bar on the terminal.

    Raises
    ------
    InvalidInput
        If the folder holds a set of another version or side.
    RelaxationFailed
        If some crystals could not be made; all others were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _require_same(folder / "set.json", {"version": VERSION, "side": side})
    missing = [recipe for recipe in recipes if not _file(folder, recipe).exists()]
    failed: dict[int, RelaxationFailed] = {}
    # Started anew rather than forked: the caller may hold threads.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(_make_one, folder, recipe, side): recipe.seed for recipe in missing}
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="crystal", disable=not progress):
            try:
                job.result()
            except RelaxationFailed as error:
                LOG.warning("crystal %d was not made: %s", jobs[job], error)
                failed[jobs[job]] = error
    if failed:
        raise RelaxationFailed(
            f"{len(recipes)} crystals were asked for, {len(failed)} could not be made, of seeds "
            f"{sorted(failed)}; the others are in {folder}. The first reason: {next(iter(failed.values()))}"
        )


def make_crystal(recipe: Recipe, side: int = SIDE) -> tuple[Atoms, NDArray[np.float64], Field]:
    """Build, relax and coarse-grain the crystal of a recipe.

    Returns
    -------
    atoms, positions_nm, field
        As built, where the atoms went, float64 (atoms, 3), and what the continuum sees of it.
    """
    material = MATERIALS[recipe.material]
    atoms = build(recipe)
    positions = relax(atoms.positions_nm, material.potential, recipe.steps, atoms.clamped).positions_nm
    shift = positions - atoms.sites_nm
    if atoms.dislocation is not None:
        shift = shift - atoms.dislocation.displacement(atoms.sites_nm)
    return (
        atoms,
        positions,
        coarse_grained(positions, shift, material.lattice_nm, Grid.around(positions, side)),
    )


def _make_one(folder: Path, recipe: Recipe, side: int) -> None:
    atoms, _, field = make_crystal(recipe, side)
    save_set(as_set(recipe, field, atoms.dislocation), _file(folder, recipe))


def _file(folder: Path, recipe: Recipe) -> Path:
    return folder / f"crystal-{recipe.seed:07d}.npz"


def _require_same(file: Path, facts: dict[str, int]) -> None:
    if not file.exists():
        with replacing(file) as stream:
            stream.write(json.dumps(facts).encode())
    found = json.loads(file.read_text())
    if found != facts:
        raise InvalidInput(f"{file.parent} must hold a set with {facts}, got {found}: take another folder")


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Make, or go on making, a set of relaxed atomistic crystals."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the first crystal")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--pack", type=Path, help="write all crystals of the folder to this file, too")
    given = parser.parse_args()
    make_set(given.folder, given.count, given.seed, processes=given.processes, side=given.side)
    if given.pack:
        save_set(load_set(given.folder), given.pack)


if __name__ == "__main__":
    _main()

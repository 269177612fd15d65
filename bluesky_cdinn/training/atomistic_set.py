"""A stored set of relaxed crystals, read by training and evaluation; independent of the reflection."""

import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import replacing
from bluesky_cdinn.training.atomistic import MATERIALS, Recipe
from bluesky_cdinn.training.displacement import Field, Grid
from bluesky_cdinn.training.volterra import Dislocation

# Raised whenever a seed gives another crystal, or a file means something else.
VERSION = 1
# Occupancy is stored in steps of 1/200, so that 255 leaves room for the few per cent above 1.
FULL = 200
# Numbers that describe a dislocation: point 3, frame 9, Burgers vector, edge, Poisson's ratio.
_DISLOCATION = 15
_ARRAYS = ("occupancy", "displacement_nm", "voxel_nm", "corner_nm", "dislocation")


@dataclass(frozen=True, eq=False)
class AtomisticSet:
    """Relaxed crystals, each on a grid of its own; independent of the reflection.

    Parameters
    ----------
    occupancy
        200 where the crystal is whole, uint8 (crystals, side, side, side).
    displacement_nm
        Displacement without its affine part and without the dislocation's continuum field, float16
        (crystals, 3, side, side, side), along the lattice's cube axes; zero where no atoms are.
    voxel_nm, corner_nm
        Of each grid, along its axes, which are the cube's, float32 (crystals, 3).
    dislocation
        Of each crystal, float32 (crystals, 15): point, frame, Burgers vector in nm, 1 for an edge or 0 for
        a screw, Poisson's ratio; all zero where there is none.
    recipes
        What each was made from.
    """

    occupancy: NDArray[np.uint8]
    displacement_nm: NDArray[np.float16]
    voxel_nm: NDArray[np.float32]
    corner_nm: NDArray[np.float32]
    dislocation: NDArray[np.float32]
    recipes: tuple[Recipe, ...]

    def __len__(self) -> int:
        return len(self.recipes)

    @property
    def side(self) -> int:
        """Points along each axis of the grids."""
        return self.occupancy.shape[-1]

    def grid(self, item: int) -> Grid:
        """Return where a crystal's values lie."""
        return Grid(self.side, self.voxel_nm[item].astype(float), self.corner_nm[item].astype(float))

    def dislocation_of(self, item: int) -> Dislocation | None:
        """Return a crystal's dislocation, if it has one."""
        numbers = self.dislocation[item].astype(float)
        if not numbers.any():
            return None
        return Dislocation(
            numbers[:3], numbers[3:12].reshape(3, 3), numbers[12], bool(numbers[13]), numbers[14]
        )

    def density(self, item: int, hkl: Sequence[int], scale: float = 1.0) -> NDArray[np.complex64]:
        """Return what a reflection sees of a crystal, on its own grid.

        Parameters
        ----------
        item
            Which crystal.
        hkl
            Miller indices of the reflection.
        scale
            Of the elastic displacement: a crystal that is larger by this factor, strained alike, is
            displaced by so much more. A dislocation's field is the same at every size and isn't scaled.

        Returns
        -------
        numpy.ndarray
            occupancy * exp(i Q . u), complex64 (side, side, side).
        """
        wavevector = (
            2 * np.pi / MATERIALS[self.recipes[item].material].lattice_nm * np.asarray(hkl, dtype=float)
        )
        phase = scale * np.tensordot(wavevector, self.displacement_nm[item].astype(float), axes=1)
        dislocation = self.dislocation_of(item)
        if dislocation is not None:
            phase += dislocation.displacement(self.grid(item).points_nm()) @ wavevector
        return (self.occupancy[item] / FULL * np.exp(1j * phase)).astype(np.complex64)

    def select(self, items: Iterable[int]) -> "AtomisticSet":
        """Return some of the crystals."""
        chosen = list(items)
        arrays: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        return AtomisticSet(**arrays, recipes=tuple(self.recipes[item] for item in chosen))


def as_set(recipe: Recipe, field: Field, line: Dislocation | None) -> AtomisticSet:
    """Return a set of one crystal."""
    numbers = np.zeros(_DISLOCATION)
    if line is not None:
        numbers[:] = [*line.point_nm, *line.frame.ravel(), line.burgers_nm, line.edge, line.poisson_ratio]
    occupancy = np.rint(field.occupancy * FULL).clip(0, 255).astype(np.uint8)
    # What nobody will see need not be stored.
    displacement = np.where(occupancy > 0, field.displacement_nm, 0.0).astype(np.float16)
    return AtomisticSet(
        occupancy[None],
        displacement[None],
        field.grid.voxel_nm[None].astype(np.float32),
        field.grid.corner_nm[None].astype(np.float32),
        numbers[None].astype(np.float32),
        (recipe,),
    )


def load_set(path: Path) -> AtomisticSet:
    """Return the crystals of a folder that `make_set` filled, or of a file that `save_set` wrote.

    Parameters
    ----------
    path
        Folder or ``.npz`` file. A folder's crystals come in the order of their seeds.

    Raises
    ------
    InvalidInput
        If there is nothing, something else, or something of another version.
    """
    files = sorted(path.glob("crystal-*.npz")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise InvalidInput(f"a set of crystals is required, found none at {path}: make it with make_set")
    parts = [_load(file) for file in files]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
    }
    return AtomisticSet(**arrays, recipes=tuple(recipe for part in parts for recipe in part.recipes))


def save_set(crystals: AtomisticSet, file: Path) -> None:
    """Write crystals to one compressed ``.npz`` file."""
    described = json.dumps([asdict(recipe) for recipe in crystals.recipes])
    with replacing(file) as stream:
        np.savez_compressed(
            stream,
            version=VERSION,
            recipes=described,
            **{name: getattr(crystals, name) for name in _ARRAYS},
        )


def _load(file: Path) -> AtomisticSet:
    try:
        with np.load(file, allow_pickle=False) as stored:
            version = int(stored["version"])
            if version == VERSION:
                recipes = tuple(Recipe(**recipe) for recipe in json.loads(str(stored["recipes"])))
                arrays: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
                return AtomisticSet(**arrays, recipes=recipes)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInput(f"{file} must be a set of crystals, it can't be read as one: {error}") from error
    raise InvalidInput(f"crystals of version {VERSION} are required, got {version} in {file}: make them anew")

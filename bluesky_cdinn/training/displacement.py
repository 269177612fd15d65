"""From atoms to the continuum: how full each point of a grid is, and how far the lattice moved there."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.polyhedron import family

FloatArray = NDArray[np.float64]

# Width of the Gaussian that smears an atom, in lattice constants: at the lattice's first reflection it has
# fallen to exp(-(2 pi sqrt(3) 0.35)^2 / 2) = 7e-4, so that a perfect crystal comes out flat to that.
SIGMA_CELLS = 0.35
# Atoms that hopped falsify the mean that tells them, so it takes a few rounds.
_PASSES = 3
# The Gaussian is cut at this many widths.
_REACH = 4.0


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid along the coordinate axes.

    Parameters
    ----------
    side
        Points along each axis.
    voxel_nm
        Their distance along each axis, float64 (3,).
    corner_nm
        Where point (0, 0, 0) lies, float64 (3,).
    """

    side: int
    voxel_nm: FloatArray
    corner_nm: FloatArray

    @classmethod
    def around(cls, points_nm: FloatArray, side: int, margin: float = 1.5) -> "Grid":
        """Return the grid that reaches ``margin`` voxels beyond some points on all six sides."""
        low, high = points_nm.min(axis=0), points_nm.max(axis=0)
        voxel = (high - low) / (side - 1 - 2 * margin)
        return cls(side, voxel, low - margin * voxel)

    def points_nm(self) -> FloatArray:
        """Return all points, float64 (side, side, side, 3)."""
        steps = np.moveaxis(np.indices((self.side,) * 3), 0, -1)
        return self.corner_nm + steps * self.voxel_nm

    def sigma_nm(self, cell_nm: float) -> FloatArray:
        """Return a Gaussian's widths: half a voxel, and no less than `SIGMA_CELLS` of the lattice, (3,)."""
        return np.maximum(SIGMA_CELLS * cell_nm, self.voxel_nm / 2)


def smear(points_nm: FloatArray, values: FloatArray, grid: Grid, sigma_nm: FloatArray) -> FloatArray:
    """Return the sum over atoms of a value times a normalised Gaussian, at each point of a grid.

    Parameters
    ----------
    points_nm
        Where the atoms are, float64 (atoms, 3).
    values
        Float64 (atoms, channels).
    grid
        Where the sum is wanted.
    sigma_nm
        Widths of the Gaussian along the three axes, float64 (3,).

    Returns
    -------
    numpy.ndarray
        1/nm^3 times the values' unit, float64 (channels, side, side, side).

    Raises
    ------
    InvalidInput
        If atoms lie outside the grid.
    """
    place = (points_nm - grid.corner_nm) / grid.voxel_nm
    nearest = np.rint(place).astype(int)
    if nearest.min() < 0 or nearest.max() >= grid.side:
        raise InvalidInput(
            f"all atoms must lie on the grid, {grid.side} x {grid.voxel_nm} nm from {grid.corner_nm} nm: "
            "take a larger one"
        )
    width = sigma_nm / grid.voxel_nm
    reach = int(np.ceil(_REACH * width.max()))
    steps = np.arange(-reach, reach + 1)
    distance = (nearest - place)[:, :, None] + steps
    weight = np.exp(-0.5 * (distance / width[:, None]) ** 2)
    # What falls off the grid is collected beyond its end.
    padded = grid.side + 2 * reach
    flat = np.ravel_multi_index(tuple(nearest.T), (padded,) * 3)
    total = np.zeros((values.shape[1], padded**3))
    for i, j, k in product(range(len(steps)), repeat=3):
        share = weight[:, 0, i] * weight[:, 1, j] * weight[:, 2, k]
        index = flat + (i * padded + j) * padded + k
        for out, channel in zip(total, values.T, strict=True):
            out += np.bincount(index, share * channel, minlength=padded**3)
    inner = slice(reach, reach + grid.side)
    total = total.reshape(-1, padded, padded, padded)[:, inner, inner, inner]
    return total / ((2 * np.pi) ** 1.5 * np.prod(sigma_nm))


@dataclass(frozen=True, eq=False)
class Field:
    """A crystal's displacement on a grid, without the part that only moves its Bragg peaks.

    Parameters
    ----------
    occupancy
        Atoms as a share of a perfect lattice's, 1 inside, float64 (side, side, side).
    displacement_nm
        Mean displacement of the atoms near each point from the mean lattice, and, where there is one,
        from its dislocation's continuum field; zero where no atoms are; float64 (3, side, side, side).
    gradient
        Of the affine displacement that was taken out, u = gradient @ r, float64 (3, 3).
    grid
        Where the points are.
    """

    occupancy: FloatArray
    displacement_nm: FloatArray
    gradient: FloatArray
    grid: Grid


def remaining_displacement(
    positions_nm: FloatArray, displacement_nm: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Take the best-fit translation and affine deformation out of a displacement.

    They multiply the scattered wave by a constant and move the Bragg peak: Q . (G r) = (G^T Q) . r.

    Parameters
    ----------
    positions_nm
        Of the atoms, float64 (atoms, 3).
    displacement_nm
        Of the atoms, float64 (atoms, 3).

    Returns
    -------
    remaining, gradient : numpy.ndarray
        Float64 (atoms, 3) and (3, 3), with displacement = constant + gradient @ r + remaining.
    """
    design = np.column_stack([np.ones(len(positions_nm)), positions_nm])
    affine = np.linalg.lstsq(design, displacement_nm, rcond=None)[0].astype(float)
    return displacement_nm - design @ affine, affine[1:].T


def nearest_translation(displacement_nm: FloatArray, cell_nm: float) -> FloatArray:
    """Return the lattice vector, zero or one of the shortest twelve, that is nearest to a displacement.

    An atom that hopped to another site scatters as if it had stayed: exp(iQ.t) = 1.

    Parameters
    ----------
    displacement_nm
        Float64 (atoms, 3).
    cell_nm
        Edge of the cubic cell.

    Returns
    -------
    numpy.ndarray
        Float64 (atoms, 3).
    """
    translations = np.concatenate([np.zeros((1, 3)), family((1, 1, 0)) * cell_nm / np.sqrt(2)])
    # |d - t|^2 = |d|^2 - 2 d.t + |t|^2, and |d| is the same for all.
    gain = displacement_nm @ translations.T - (translations**2).sum(axis=1) / 2
    return translations[gain.argmax(axis=1)]


def coarse_grained(
    positions_nm: FloatArray, displacement_nm: FloatArray, cell_nm: float, grid: Grid
) -> Field:
    """Return what the continuum sees of atoms that are displaced from an FCC lattice.

    Parameters
    ----------
    positions_nm
        Where the atoms are, float64 (atoms, 3).
    displacement_nm
        How far from their lattice sites, float64 (atoms, 3).
    cell_nm
        Edge of the cubic cell, of four atoms.
    grid
        Where to.
    """
    remaining, gradient = remaining_displacement(positions_nm, displacement_nm)
    steps = ((positions_nm - grid.corner_nm) / grid.voxel_nm).T
    occupancy, mean = _averaged(positions_nm, remaining, cell_nm, grid)
    for _ in range(_PASSES):
        local = np.stack([ndimage.map_coordinates(part, steps, order=1) for part in mean], axis=-1)
        hopped = nearest_translation(remaining - local, cell_nm)
        if not hopped.any():
            break
        remaining = remaining - hopped
        occupancy, mean = _averaged(positions_nm, remaining, cell_nm, grid)
    return Field(occupancy, mean, gradient, grid)


def _averaged(
    positions_nm: FloatArray, displacement_nm: FloatArray, cell_nm: float, grid: Grid
) -> tuple[FloatArray, FloatArray]:
    """Return occupancy and mean displacement, float64 (n, n, n) and (3, n, n, n)."""
    channels = np.column_stack([np.ones(len(positions_nm)), displacement_nm])
    density, *moments = smear(positions_nm, channels, grid, grid.sigma_nm(cell_nm))
    occupancy = density * cell_nm**3 / 4
    # Below this nothing but the tail of a single atom is left.
    present = occupancy > 1e-3
    mean = np.where(present, np.stack(moments) / np.where(present, density, 1.0), 0.0)
    return np.where(present, occupancy, 0.0), mean

"""A crystal's surface: where its amplitude is half of what it is inside, as triangles in the lab."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface of triangles.

    Parameters
    ----------
    places
        Of the corners on the grid that it was cut from, voxels, fractions allowed, float64 (corners, 3).
    points_nm
        The same from voxel n // 2 in the lab, nm, float64 (corners, 3).
    normals
        Unit vectors outwards, float64 (corners, 3).
    triangles
        Three corners each, anticlockwise as seen from outside, int (triangles, 3).
    """

    places: NDArray[np.float64]
    points_nm: NDArray[np.float64]
    normals: NDArray[np.float64]
    triangles: NDArray[np.int_]


def isosurface(amplitude: FloatArray, level: float, basis: FloatArray) -> Surface:
    """Cut a volume where it is at a level (marching cubes; Lewiner et al. 2003).

    Parameters
    ----------
    amplitude
        float (n0, n1, n2).
    level
        Above it is inside.
    basis
        Columns are the steps of one voxel along each axis, nm, float64 (3, 3); oblique is allowed.

    Raises
    ------
    InvalidInput
        If nothing, or all, is inside.
    """
    # A border outside closes a surface that the grid's edge would leave open.
    padded = np.pad(amplitude, 1)
    if not padded.max() > level:
        raise InvalidInput(f"an isosurface must have something inside: nothing is above {level:g}")
    corners, triangles, _, _ = marching_cubes(padded, level, allow_degenerate=False)
    places = corners.astype(np.float64) - 1
    points = (places - np.array(amplitude.shape) // 2) @ np.asarray(basis).T
    triangles = triangles.astype(np.int_)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    facing = np.cross(b - a, c - a)
    # The volume inside a closed surface is positive if its triangles face outwards.
    if np.einsum("ij,ij->", a, facing) < 0:
        triangles, facing = triangles[:, ::-1].copy(), -facing
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], facing)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    return Surface(places, points, normals, triangles)


def values_at(surface: Surface, values: FloatArray) -> NDArray[np.float32]:
    """Return a map at a surface's corners, float32 (corners,).

    Interpolated from what is known of it: where it is NaN, as outside of the crystal, it goes on as at the
    nearest voxel where it isn't. NaN everywhere where nothing is known.
    """
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(surface.places), np.nan, np.float32)
    if not known.all():
        nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        values = values[tuple(np.asarray(nearest))]
    at = ndimage.map_coordinates(values, surface.places.T, order=1, mode="nearest")
    return np.asarray(at, dtype=np.float32)

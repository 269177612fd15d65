"""Convex faceted bodies, and how much of a voxel they fill."""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, HalfspaceIntersection
from scipy.spatial.transform import Rotation

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.float64]

# The facets that FCC crystals grow; the same families as in AutoPhaseNN's atomistic set (2022).
FCC_FAMILIES = ((1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1), (2, 2, 1))

# Centres of a voxel's eight parts, in units of its edges.
_OCTANTS = np.array(list(product((-0.25, 0.25), repeat=3)))


@dataclass(frozen=True, eq=False)
class Polyhedron:
    """The points r with normals @ r <= distances.

    Parameters
    ----------
    normals
        Outward unit normals, float64 (faces, 3).
    distances
        Of the faces from the origin, nm, float64 (faces,).
    """

    normals: FloatArray
    distances: FloatArray

    def vertices(self) -> FloatArray:
        """Return the corners, nm, float64 (vertices, 3).

        Raises
        ------
        InvalidInput
            If the origin lies outside.
        """
        if self.distances.min() <= 0:
            raise InvalidInput("a polyhedron must hold the origin: every face needs a distance above 0 nm")
        halfspaces = np.column_stack([self.normals, -self.distances])
        return np.unique(HalfspaceIntersection(halfspaces, np.zeros(3)).intersections.round(9), axis=0)

    def centroid(self) -> FloatArray:
        """Return the centre of mass, nm, float64 (3,)."""
        corners = self.vertices()
        cells = corners[Delaunay(corners, qhull_options="QJ").simplices]
        volumes = np.abs(np.linalg.det(cells[:, 1:] - cells[:, :1]))
        return volumes @ cells.mean(axis=1) / volumes.sum()

    def diameter(self) -> float:
        """Return the largest distance between two corners, nm."""
        corners = self.vertices()
        return float(np.linalg.norm(corners[:, None] - corners[None], axis=-1).max())

    def moved(self, shift_nm: FloatArray) -> "Polyhedron":
        """Return the body moved by a vector, nm (3,)."""
        return Polyhedron(self.normals, self.distances + self.normals @ shift_nm)

    def scaled(self, factor: float) -> "Polyhedron":
        """Return the body grown by a factor about the origin."""
        return Polyhedron(self.normals, self.distances * factor)

    def coverage(
        self, points_nm: FloatArray, voxel_nm: FloatArray | None = None, *, splits: int = 2
    ) -> FloatArray:
        """Return which part of the voxel round each point the body fills.

        Exact where one face cuts a voxel. Where several do, the voxel is split into eight, and again;
        in the last ones the product of the faces' parts is taken.

        Parameters
        ----------
        points_nm
            Voxel centres, float64 (..., 3).
        voxel_nm
            Columns are the voxel's edges, float64 (3, 3); None for points without extent.
        splits
            How often a voxel at an edge or a corner is split.

        Returns
        -------
        numpy.ndarray
            0 to 1, float64 (...).
        """
        depth = self._depth(points_nm)
        if voxel_nm is None:
            return (depth >= 0).astype(float)
        widths = np.abs(self.normals @ voxel_nm)
        filled = (depth > 0).astype(float)
        cut = np.abs(depth) < widths.sum(axis=1).max() / 2
        near = points_nm[cut]
        parts, cuts = np.ones(len(near)), np.zeros(len(near), dtype=int)
        for normal, distance, width in zip(self.normals, self.distances, widths, strict=True):
            below = distance - near @ normal
            touched = below < width.sum() / 2
            parts[touched] *= half_space_fraction(below[touched], width)
            cuts += touched
        several = (cuts > 1) & (parts > 0)
        if splits and several.any():
            centres = near[several][:, None] + _OCTANTS @ voxel_nm.T
            parts[several] = self.coverage(centres, voxel_nm / 2, splits=splits - 1).mean(axis=1)
        filled[cut] = parts
        return filled

    def _depth(self, points_nm: FloatArray) -> FloatArray:
        """Return how deep points (..., 3) lie under the face that is nearest, nm (...)."""
        points = points_nm.reshape(-1, 3)
        depth = np.empty(len(points))
        # By parts that stay in the processor's cache.
        for start in range(0, len(points), 8192):
            part = slice(start, start + 8192)
            depth[part] = (self.distances - points[part] @ self.normals.T).min(axis=1)
        return depth.reshape(points_nm.shape[:-1])


def half_space_fraction(depth_nm: FloatArray, widths_nm: FloatArray) -> FloatArray:
    """Return which part of a parallelepiped lies below a plane.

    The part is the distribution function of the sum of three independent uniform variables, since a
    point of the voxel is its centre plus a uniform part of each edge.

    Parameters
    ----------
    depth_nm
        Of the voxel's centre below the plane, float64 (...).
    widths_nm
        Extents of the voxel's three edges along the plane's normal, float64 (3,).

    Returns
    -------
    numpy.ndarray
        0 to 1, float64 (...).
    """
    widths = np.abs(widths_nm)
    # The formula divides by each width; an edge that lies in the plane gets a negligible tilt.
    widths = np.maximum(widths, 0.01 * widths.max())
    depth = np.clip(depth_nm, -widths.sum() / 2, widths.sum() / 2)
    total = np.zeros_like(depth)
    for signs in product((-1, 1), repeat=3):
        total += np.prod(signs) * np.maximum(depth + np.dot(signs, widths) / 2, 0.0) ** 3
    return np.clip(total / (6 * widths.prod()), 0.0, 1.0)


def family(indices: tuple[int, int, int]) -> FloatArray:
    """Return the unit normals of a cubic family <hkl>, float64 (planes, 3)."""
    members = {
        tuple(sign * index for sign, index in zip(signs, order, strict=True))
        for order in permutations(indices)
        for signs in product((-1, 1), repeat=3)
    }
    normals = np.array(sorted(members), dtype=float)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def random_polyhedron(rng: np.random.Generator, diameter_nm: float) -> Polyhedron:
    """Return a faceted FCC-like body in a random orientation, its centre of mass at the origin.

    Two or three families of facets, each at its own distance (a Wulff shape), and every facet grown a
    little further or less than its family, as real crystals are.

    Parameters
    ----------
    rng
        Makes the choices; the same state gives the same body.
    diameter_nm
        Largest distance between two corners.

    Returns
    -------
    Polyhedron
        The body.
    """
    count = int(rng.integers(2, 4))
    chosen = rng.choice(len(FCC_FAMILIES), size=count, replace=False)
    normals, distances = [], []
    for index in chosen:
        planes = family(FCC_FAMILIES[index])
        normals.append(planes)
        distances.append(rng.uniform(0.85, 1.1) * rng.uniform(0.88, 1.12, size=len(planes)))
    rotation = Rotation.random(rng=rng).as_matrix()
    body = Polyhedron(np.concatenate(normals) @ rotation.T, np.concatenate(distances))
    body = body.moved(-body.centroid())
    return body.scaled(diameter_nm / body.diameter())

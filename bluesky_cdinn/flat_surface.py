"""The surface of a crystal as triangles, and where it is flat.

The surface is the isosurface of the smoothed amplitude at half its typical value, in the lab frame.
Directions that much of it faces are facets; a plane is fitted to the flat part of each.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.quality import typical_amplitude

FloatArray = NDArray[np.float64]

# Of the amplitude before its surface is drawn, in voxels of mean size.
SMOOTHING = 1.0
# Width of the kernel that finds the directions, and how far a triangle of a facet may lean, and one of its
# flat part, deg.
KERNEL, LEAN, FLAT = 6.0, 22.0, 10.0
# A facet has at least this share of the surface, and this many voxels' faces.
LEAST_SHARE, LEAST_FACES = 0.005, 6.0
DIRECTIONS = 4000


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles of a crystal's surface in the lab frame.

    Parameters
    ----------
    corners
        Of all triangles, nm, float64 (corners, 3).
    triangles
        Which three each has, int (triangles, 3).
    normals
        Outward unit vectors, float64 (triangles, 3).
    areas
        nm^2, float64 (triangles,).
    """

    corners: FloatArray
    triangles: NDArray[np.int32]
    normals: FloatArray
    areas: FloatArray

    @cached_property
    def centres(self) -> FloatArray:
        """Of the triangles, nm, float64 (triangles, 3)."""
        return self.corners[self.triangles].mean(axis=1)


def crystal_surface(
    density: NDArray[np.complex64], support: NDArray[np.bool_], direct_basis: FloatArray
) -> Surface:
    """Return the surface of a crystal; what is hollow inside it doesn't count.

    A crystal so thin that nothing of it is left once smoothed, a voxel or two, has none: no triangle.

    Raises
    ------
    InvalidInput
        If the support is empty.
    """
    if not support.any():
        raise InvalidInput("facets need a crystal, the support has no voxel")
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    margin = 4
    inside, amplitude = np.pad(support[box], margin), np.pad(np.abs(density[box]) * support[box], margin)
    typical = typical_amplitude(amplitude.astype(np.complex64))
    # Holes, and what closing by two voxels fills: dislocation cores.
    whole = ndimage.binary_fill_holes(ndimage.binary_closing(inside, iterations=2))
    core = ndimage.binary_erosion(whole, iterations=2)
    edges = np.linalg.norm(direct_basis, axis=0)
    sigma = SMOOTHING * np.cbrt(np.prod(edges)) / edges
    even = np.where(core, typical, amplitude)
    # Beyond the box there is nothing, however far the smoothing of long voxels reaches.
    smooth = ndimage.gaussian_filter(even, sigma, mode="constant")
    if not smooth.max() > typical / 2:
        return Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int32), np.zeros((0, 3)), np.zeros(0))
    corners, triangles, _, _ = marching_cubes(smooth, typical / 2)
    first = np.array([part.start for part in box]) - margin - np.array(support.shape) // 2
    corners = (corners + first) @ direct_basis.T
    a, b, c = (corners[triangles[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    doubled = np.linalg.norm(across, axis=1)
    real = doubled > 0
    # Outwards, whatever the handedness of the voxels: a closed surface's volume is positive then.
    sign = np.sign(np.einsum("ij,ij", a - corners.mean(axis=0), across))
    normals = sign * across[real] / doubled[real, None]
    return Surface(corners, triangles[real], normals, doubled[real] / 2)


def flat_parts(surface: Surface, voxel_nm: float) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the facet of each triangle, -1 where it has none, and the facets' normals.

    Parameters
    ----------
    surface
        Of the crystal.
    voxel_nm
        Mean edge of a voxel.

    Returns
    -------
    tuple
        int64 (triangles,), and unit vectors float64 (facets, 3).
    """
    if not len(surface.areas):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 3))
    least = max(LEAST_SHARE * surface.areas.sum(), LEAST_FACES * voxel_nm**2)
    normals = _frequent_directions(surface, least)
    for _ in range(3):
        labels = _nearest(surface, normals)
        normals = np.array([_plane_normal(surface, labels == i, n) for i, n in enumerate(normals)])
        normals = _distinct(normals.reshape(-1, 3), np.bincount(labels[labels >= 0], minlength=len(normals)))
    parts = _connected(surface, _nearest(surface, normals))
    labels, fitted = np.full(len(parts), -1, dtype=np.int64), []
    for part in np.unique(parts[parts >= 0]):
        mine = parts == part
        mean = surface.areas[mine] @ surface.normals[mine]
        if np.linalg.norm(mean) >= least:
            labels[mine] = len(fitted)
            fitted.append(_plane_normal(surface, mine, mean / np.linalg.norm(mean)))
    return labels, np.array(fitted).reshape(-1, 3)


def facet_areas(surface: Surface, labels: NDArray[np.int64], normals: FloatArray) -> FloatArray:
    """Return the areas of the facets, with what of the edges between them faces each most; float64."""
    owner = np.where(labels >= 0, labels, _nearest(surface, normals, 45.0))
    projected = surface.areas * np.einsum("ij,ij->i", surface.normals, normals[owner])
    areas = np.bincount(owner[owner >= 0], weights=projected[owner >= 0], minlength=len(normals))
    return areas.astype(np.float64)


def flat_triangles(surface: Surface, mine: NDArray[np.bool_], normal: FloatArray) -> NDArray[np.bool_]:
    """Return which triangles of a facet lean little; all where none does."""
    flat = mine & (surface.normals @ normal > np.cos(np.radians(FLAT)))
    return flat if flat.any() else mine


def _frequent_directions(surface: Surface, least: float) -> FloatArray:
    """Return the directions that more of the surface faces than those about them, float64 (n, 3)."""
    tree, near = _sphere()
    directions = tree.data
    area = np.bincount(tree.query(surface.normals)[1], weights=surface.areas, minlength=DIRECTIONS)
    filled = np.flatnonzero(area)
    # Single precision: what is found here is only where planes are fitted from.
    cosines = directions.astype(np.float32) @ directions[filled].T.astype(np.float32)
    facing = np.exp((cosines - 1) / np.float32(np.radians(KERNEL) ** 2)) @ area[filled].astype(np.float32)
    top = [i for i in np.flatnonzero(facing > least) if facing[i] >= facing[near[i]].max()]
    return directions[top]


@cache
def _sphere() -> tuple[KDTree, NDArray[np.object_]]:
    """Return directions spread evenly, and of each those about it."""
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(DIRECTIONS)
    height = 1 - 2 * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
    ring = np.sqrt(1 - height**2)
    tree = KDTree(np.column_stack([ring * np.cos(turn), ring * np.sin(turn), height]))
    return tree, tree.query_ball_point(tree.data, 2 * np.sin(np.radians(1.5 * KERNEL) / 2))


def _nearest(surface: Surface, normals: FloatArray, lean_deg: float = LEAN) -> NDArray[np.int64]:
    """Return which normal each triangle's is nearest to, -1 where it leans more; int64 (triangles,)."""
    if not len(normals):
        return np.full(len(surface.areas), -1, dtype=np.int64)
    cosines = surface.normals @ normals.T
    return np.where(cosines.max(axis=1) > np.cos(np.radians(lean_deg)), cosines.argmax(axis=1), -1)


def _distinct(normals: FloatArray, sizes: NDArray[np.int64]) -> FloatArray:
    """Return normals of which no two are nearer than the kernel's width, the larger ones first."""
    kept: list[FloatArray] = []
    for i in np.argsort(-sizes):
        if sizes[i] and all(normals[i] @ other < np.cos(np.radians(1.5 * KERNEL)) for other in kept):
            kept.append(normals[i])
    return np.array(kept).reshape(-1, 3)


def _connected(surface: Surface, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels that tell apart parts of one direction which don't touch, -1 where there is none."""
    corners = len(surface.corners)
    # A corner is another one for each direction that meets there.
    place = surface.triangles + corners * labels[:, None]
    one, other = place[labels >= 0][:, [0, 1]].T, place[labels >= 0][:, [1, 2]].T
    rows, columns = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    size = corners * (int(labels.max(initial=0)) + 1)
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(size, size))
    _, part = connected_components(graph, directed=False)
    return np.where(labels >= 0, part[np.maximum(place[:, 0], 0)], -1)


def _plane_normal(surface: Surface, mine: NDArray[np.bool_], about: FloatArray) -> FloatArray:
    """Return the normal of the plane through the flat part of a facet; `about` where that is too little."""
    flat = flat_triangles(surface, mine, about)
    weights = surface.areas * flat
    if np.count_nonzero(weights) < 10:
        return about
    offsets = surface.centres - weights @ surface.centres / weights.sum()
    normal = np.linalg.eigh((offsets * weights[:, None]).T @ offsets)[1][:, 0]
    normal = normal * np.sign(normal @ about)
    # Points along a line have no plane.
    return normal if normal @ about > np.cos(np.radians(LEAN)) else about

"""How a cubic lattice stands in the lab, as Q and a crystal's facets tell it, and which planes those are."""

from collections.abc import Sequence
from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.float64]
Indices = tuple[int, int, int]

# Families that may be named, the plainest first; how many of them orient the lattice; how far off a normal
# may be, deg.
FAMILIES: tuple[Indices, ...] = ((1, 1, 1), (1, 0, 0), (1, 1, 0), (3, 1, 1), (2, 1, 0), (2, 1, 1), (2, 2, 1))
PLAIN, OFF = 3, 7.0


def name_families(
    normals: FloatArray, areas: FloatArray, q_vector: FloatArray, reflection: Sequence[int] | None
) -> list[Indices]:
    """Return the family of each facet by its angle to Q and to the other facets.

    Parameters
    ----------
    normals, areas
        Of the facets, float64 (facets, 3) and (facets,).
    q_vector
        Lab frame, float64 (3,).
    reflection
        Its Miller indices; nothing is named without.

    Returns
    -------
    list
        Miller indices from large to small, zeros where no plane is near.
    """
    if reflection is None or not any(reflection) or not len(normals):
        return [(0, 0, 0)] * len(normals)
    to_lab = lattice_orientation(normals, areas, q_vector, reflection)
    # The plainer of two that are equally near.
    off = np.array([_off(normals @ to_lab, family) for family in FAMILIES]) + 0.5 * np.arange(7)[:, None]
    best = off.argmin(axis=0)
    return [FAMILIES[i] if off[i, n] < OFF else (0, 0, 0) for n, i in enumerate(best)]


def lattice_orientation(
    normals: FloatArray, areas: FloatArray, q_vector: FloatArray, reflection: Sequence[int]
) -> FloatArray:
    """Return the rotation from a cubic lattice's axes to the lab, as Q and the facets tell it.

    Q leaves the azimuth about it open: the one is taken that brings most of the facets' area to planes of
    the first three `FAMILIES`. Up to the lattice's symmetries.

    Parameters
    ----------
    normals, areas, q_vector, reflection
        As in `name_families`.

    Returns
    -------
    numpy.ndarray
        Its columns are the lattice's axes in the lab, float64 (3, 3).
    """
    along = q_vector / np.linalg.norm(q_vector)
    first = Rotation.align_vectors(along[None], np.array(reflection, dtype=float)[None])[0]
    azimuths = Rotation.from_rotvec(np.radians(np.arange(360.0))[:, None] * along)
    turns = (azimuths * first).as_matrix()
    off = np.min([_off(normals @ turns, family) for family in FAMILIES[:PLAIN]], axis=0)
    score = (areas * np.exp(-((off / (OFF / 2)) ** 2) / 2)).sum(axis=1)
    return np.asarray(turns[int(score.argmax())], dtype=np.float64)


def _off(directions: FloatArray, family: Indices) -> FloatArray:
    """Return how far directions (..., 3) of the lattice are from the nearest member of a family, deg."""
    cosines = directions @ _members(family).T
    return np.degrees(np.arccos(np.clip(cosines.max(axis=-1), -1, 1)))


@cache
def _members(family: Indices) -> FloatArray:
    """Return the unit normals of a family, float64 (n, 3), some of them more than once."""
    signs, orders = product((-1, 1), repeat=3), list(permutations(family))
    members = np.array([np.multiply(sign, order) for sign in signs for order in orders], dtype=np.float64)
    return members / np.linalg.norm(members[0])

"""Gold crystals of known facets and strain, as a detector sees them: exact slices of their transform."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from bluesky_cdinn.geometry import bragg_vector
from bluesky_cdinn.records import Geometry, RockingCurve
from bluesky_cdinn.sim.crystal import Crystal, strained_crystal
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.diffraction import Diffraction
from bluesky_cdinn.sim.polyhedron import Polyhedron, family

FloatArray = NDArray[np.float64]

POINTS, STEP_DEG, PIXELS = 72, 0.012, (96, 96)
# Phase range inside the crystal, rad, peak to valley.
CLASSES = {"weak": (0.5, 2.0), "medium": (2.0, 4.0), "strong": (4.0, 2 * np.pi)}
COUNTS = (1e4, 1e5, 1e6)
BACKGROUND = 0.01


@dataclass(frozen=True, eq=False)
class Measured:
    """A crystal and what was counted of it.

    Parameters
    ----------
    name
        Tells it from all others.
    strain
        One of `CLASSES`.
    counts
        Expected in the brightest voxel.
    crystal
        The truth, in the lab frame.
    families
        Miller indices of the family of each face of the crystal's body.
    curve
        The rocking curve.
    """

    name: str
    strain: str
    counts: float
    crystal: Crystal
    families: tuple[tuple[int, int, int], ...]
    curve: RockingCurve


def wulff_body(
    rng: np.random.Generator, diameter_nm: float, q_vector: FloatArray
) -> tuple[Polyhedron, tuple[tuple[int, int, int], ...]]:
    """Return a faceted crystal whose [111] lies along a Bragg vector, and each face's family.

    Octahedra cut by {100}, a third of them by {110} too; every facet grown a little further or less than
    its family.
    """
    distances = {(1, 1, 1): 1.0, (1, 0, 0): rng.uniform(1.0, 1.3)}
    if rng.random() < 1 / 3:
        distances[(1, 1, 0)] = rng.uniform(0.98, 1.08)
    normals, reach, families = [], [], []
    for indices, distance in distances.items():
        planes = family(indices)
        normals.append(planes)
        reach.append(distance * rng.uniform(0.93, 1.07, size=len(planes)))
        families += [indices] * len(planes)
    along = q_vector / np.linalg.norm(q_vector)
    turn = Rotation.align_vectors(along[None], np.ones((1, 3)) / np.sqrt(3))[0]
    turn = Rotation.from_rotvec(rng.uniform(0, 2 * np.pi) * along) * turn
    body = Polyhedron(turn.apply(np.concatenate(normals)), np.concatenate(reach))
    body = body.moved(-body.centroid())
    return body.scaled(diameter_nm / body.diameter()), tuple(families)


def measured_crystals(
    first_seed: int, per_class: int, counts: tuple[float, ...] = COUNTS
) -> Iterator[Measured]:
    """Yield crystals of every class of strain, each at every number of counts.

    Parameters
    ----------
    first_seed
        The same one gives the same crystals.
    per_class
        Crystals of each class, their phase ranges evenly over it.
    counts
        Expected in the brightest voxel.
    """
    geometry = gold_geometry(PIXELS)
    # The classes in turn, so that any part of the crystals has them all.
    for i, (number, (strain, (low, high))) in product(range(per_class), enumerate(CLASSES.items())):
        seed = first_seed + 1000 * number + i
        rng = np.random.default_rng(seed)
        body, families = wulff_body(rng, rng.uniform(250.0, 400.0), bragg_vector(geometry))
        crystal = strained_crystal(rng, body, low + (high - low) * (i + 0.5) / per_class)
        expected = rocking_frames(crystal, geometry)
        for level in counts:
            name = f"{strain}-{seed}-1e{round(np.log10(level))}"
            curve = counted(expected, level, geometry, np.random.default_rng([seed, int(level)]))
            yield Measured(name, strain, level, crystal, families, curve)


def rocking_frames(crystal: Crystal, geometry: Geometry) -> NDArray[np.float32]:
    """Return what a detector sees at each rocking angle, in units of the peak: float32, 3D."""
    offsets = offsets_deg()
    return Diffraction(crystal, geometry, PIXELS, half_range_deg=float(np.abs(offsets).max())).frames(offsets)


def offsets_deg() -> FloatArray:
    """Return the rocking angles from the curve's centre, float64 (points,)."""
    return (np.arange(POINTS, dtype=np.float64) - POINTS // 2) * STEP_DEG


def counted(
    expected: NDArray[np.float32], counts: float, geometry: Geometry, rng: np.random.Generator
) -> RockingCurve:
    """Return a rocking curve with counting noise and a little background."""
    frames = rng.poisson(counts / expected.max() * expected + BACKGROUND).astype(np.uint32)
    return RockingCurve(frames, 20 + offsets_deg(), np.ones(POINTS), geometry=geometry)


def faces(body: Polyhedron) -> tuple[FloatArray, FloatArray]:
    """Return the area of each face, nm^2, and the distance of the body's centroid to it, nm."""
    corners, areas = body.vertices(), np.zeros(len(body.normals))
    for i, (normal, distance) in enumerate(zip(body.normals, body.distances, strict=True)):
        on = corners[np.abs(corners @ normal - distance) < 1e-6 * distance]
        if len(on) > 2:
            across = np.linalg.svd(normal[None])[2][1:]
            areas[i] = ConvexHull(on @ across.T).volume
    return areas, body.distances - body.normals @ body.centroid()

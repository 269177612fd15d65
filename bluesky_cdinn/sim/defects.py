"""What can be wrong in a crystal: a void, a dislocation, a domain wall."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.sim.polyhedron import Polyhedron, family

FloatArray = NDArray[np.float64]
DefectName = Literal["void", "dislocation", "domain_wall"]

# Poisson's ratio of gold.
POISSON_RATIO = 0.42


class Defect(Protocol):
    """A factor on the amplitude and a term of the phase, both defined at every point."""

    def amplitude(self, points_nm: FloatArray, voxel_nm: FloatArray | None = None) -> FloatArray:
        """Return the factor on the amplitude at points (..., 3), averaged over voxels where given."""
        ...

    def phase(self, points_nm: FloatArray) -> FloatArray:
        """Return the term Q . u of the phase at points (..., 3), rad."""
        ...


@dataclass(frozen=True, eq=False)
class Void:
    """A faceted hole: vacancies that came together.

    Parameters
    ----------
    body
        What is missing, with its centre at the origin.
    centre_nm
        Where it lies, float64 (3,).
    """

    body: Polyhedron
    centre_nm: FloatArray

    def amplitude(self, points_nm: FloatArray, voxel_nm: FloatArray | None = None) -> FloatArray:
        """Return 0 inside the hole and 1 outside."""
        return 1.0 - self.body.coverage(points_nm - self.centre_nm, voxel_nm)

    def phase(self, points_nm: FloatArray) -> FloatArray:
        """Return zeros: a relaxed hole strains nothing."""
        return np.zeros(points_nm.shape[:-1])


@dataclass(frozen=True, eq=False)
class Dislocation:
    """A straight dislocation in an isotropic medium, Q along its Burgers vector.

    Hirth and Lothe, Theory of Dislocations (1982), sections 3.2 and 3.4: a screw's displacement is
    b theta / 2 pi; along b, an edge's is b / 2 pi (theta + sin(2 theta) / (4 (1 - nu))).

    Parameters
    ----------
    point_nm
        A point of the line, float64 (3,).
    frame
        Orthonormal rows: theta's zero (for an edge, b's direction), theta's 90 degrees, and the line
        itself, float64 (3, 3).
    order
        Q . b / 2 pi: by how many turns the phase winds about the line.
    edge
        True for an edge, False for a screw.
    core_nm
        Radius within which the lattice is too disordered to diffract.
    """

    point_nm: FloatArray
    frame: FloatArray
    order: int = 1
    edge: bool = True
    core_nm: float = 1.0

    def _plane(self, points_nm: FloatArray) -> tuple[FloatArray, FloatArray]:
        along = (points_nm - self.point_nm) @ self.frame.T
        return along[..., 0], along[..., 1]

    def amplitude(self, points_nm: FloatArray, voxel_nm: FloatArray | None = None) -> FloatArray:
        """Return a factor that vanishes at the line, over the core or a voxel, whichever is wider."""
        x, y = self._plane(points_nm)
        voxel = 0.0 if voxel_nm is None else np.cbrt(abs(np.linalg.det(voxel_nm))) / 2
        core = max(self.core_nm, float(voxel))
        return 1.0 - np.exp(-(x**2 + y**2) / core**2)

    def phase(self, points_nm: FloatArray) -> FloatArray:
        """Return the winding phase, with its cut on theta = pi, where it is a multiple of 2 pi."""
        x, y = self._plane(points_nm)
        theta = np.arctan2(y, x)
        bend = np.sin(2 * theta) / (4 * (1 - POISSON_RATIO)) if self.edge else 0.0
        return self.order * (theta + bend)


@dataclass(frozen=True, eq=False)
class DomainWall:
    """A plane on whose two sides the lattice is shifted: a stacking fault, a twin, an antiphase wall.

    Parameters
    ----------
    normal
        Unit vector, float64 (3,).
    distance_nm
        Of the wall from the origin along the normal.
    step_rad
        Q . (shift of the far side).
    width_nm
        Over which the shift happens.
    """

    normal: FloatArray
    distance_nm: float
    step_rad: float
    width_nm: float = 0.5

    def amplitude(self, points_nm: FloatArray, voxel_nm: FloatArray | None = None) -> FloatArray:
        """Return ones: a wall diffracts as the rest does."""
        return np.ones(points_nm.shape[:-1])

    def phase(self, points_nm: FloatArray) -> FloatArray:
        """Return a step, symmetric about zero."""
        return self.step_rad / 2 * np.tanh((points_nm @ self.normal - self.distance_nm) / self.width_nm)


def random_defect(rng: np.random.Generator, name: DefectName, body: Polyhedron) -> Defect:
    """Return a defect of the named kind somewhere in the middle of a crystal.

    Parameters
    ----------
    rng
        Makes the choices.
    name
        Which kind.
    body
        The crystal's shape, its centre of mass at the origin.

    Returns
    -------
    Defect
        The defect.
    """
    radius = float(body.distances.min())
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0].T
    place = rng.uniform(0.0, 0.4) * radius * axes[0]
    if name == "void":
        planes = family((1, 1, 1))
        hole = Polyhedron(planes @ axes, np.full(len(planes), rng.uniform(0.2, 0.3) * radius))
        return Void(hole, place)
    if name == "dislocation":
        return Dislocation(place, axes, edge=bool(rng.integers(2)), core_nm=0.02 * radius)
    return DomainWall(axes[0], float(axes[0] @ place), rng.uniform(0.5, 1.0) * np.pi, 0.02 * radius)

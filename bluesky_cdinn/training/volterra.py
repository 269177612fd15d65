"""The dislocations of FCC metals, as the elastic continuum has them, for atoms to relax from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dislocation:
    """A straight dislocation with the Burgers vector a/2<110> in an isotropic medium.

    Parameters
    ----------
    point_nm
        A point of its line, float64 (3,).
    frame
        Orthonormal rows: in the glide plane and normal to the line; the glide plane's normal, <111>; the
        line. float64 (3, 3).
    burgers_nm
        Length of the Burgers vector.
    edge
        True: the vector is the frame's first row; False, a screw: it is the line.
    poisson_ratio
        Of the medium.
    """

    point_nm: FloatArray
    frame: FloatArray
    burgers_nm: float
    edge: bool
    poisson_ratio: float

    def displacement(self, points_nm: FloatArray) -> FloatArray:
        """Return the displacement at points (..., 3), nm, float64 (..., 3).

        Hirth and Lothe, Theory of Dislocations (1982), equations 3-45, 3-46 and 3-3. It jumps by the
        Burgers vector across the half of the glide plane that the crystal slipped on, where the two sides
        still fit each other.
        """
        x, y, _ = np.moveaxis((points_nm - self.point_nm) @ self.frame.T, -1, 0)
        theta = np.arctan2(y, x)
        nothing = np.zeros_like(theta)
        if self.edge:
            stiff = 4 * (1 - self.poisson_ratio)
            # The logarithm's unit of length moves the whole crystal and nothing else.
            log = np.log(np.maximum(x**2 + y**2, (self.burgers_nm / 4) ** 2))
            along = theta + np.sin(2 * theta) / stiff
            across = -((1 - 2 * self.poisson_ratio) * log + np.cos(2 * theta)) / stiff
            local = np.stack([along, across, nothing], axis=-1)
        else:
            local = np.stack([nothing, nothing, theta], axis=-1)
        return self.burgers_nm / (2 * np.pi) * local @ self.frame


def random_dislocation(
    rng: np.random.Generator,
    edge: bool,
    cell_nm: float,
    origin_nm: FloatArray,
    radius_nm: float,
    poisson_ratio: float,
) -> Dislocation:
    """Return a dislocation of one of the twelve slip systems, somewhere in the middle of a crystal.

    Parameters
    ----------
    rng
        Makes the choices.
    edge
        An edge, or a screw.
    cell_nm
        Edge of the cubic cell.
    origin_nm
        A lattice site, float64 (3,): the line runs midway between two layers of atoms.
    radius_nm
        Of the largest sphere in the crystal.
    poisson_ratio
        Of the medium.
    """
    # One of the cube's symmetries, mirrors included: it takes one slip system to another.
    turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], size=3)
    normal = np.array([1.0, 1.0, 1.0]) @ turn / np.sqrt(3)
    burgers = np.array([1.0, -1.0, 0.0]) @ turn / np.sqrt(2)
    third = np.cross(burgers, normal)
    frame = np.stack([burgers, normal, third] if edge else [third, normal, burgers])
    place = rng.uniform(-0.35, 0.35, size=3) * radius_nm
    spacing = cell_nm / np.sqrt(3)
    height = (place - origin_nm) @ normal / spacing
    place = place + (np.floor(height) + 0.5 - height) * spacing * normal
    return Dislocation(place, frame, cell_nm / np.sqrt(2), edge, poisson_ratio)

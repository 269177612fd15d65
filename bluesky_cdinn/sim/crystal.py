"""A strained nanocrystal, defined at every point of space, so that it can be sampled on any grid."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.defects import Defect, DefectName, random_defect
from bluesky_cdinn.sim.polyhedron import Polyhedron, random_polyhedron

FloatArray = NDArray[np.float64]

# Exponents (i, j, k) of x**i y**j z**k up to the third degree; the first four are offset and ramp.
_EXPONENTS = np.array(
    sorted((e for e in product(range(4), repeat=3) if sum(e) <= 3), key=lambda e: (sum(e), e))
)
_WAVES = 8
# Points computed at once; bounds the memory.
_BATCH = 100_000


@dataclass(frozen=True, eq=False)
class SmoothField:
    """A phase that varies slowly: a cubic polynomial and a few long waves.

    Parameters
    ----------
    length_nm
        Unit of length of the polynomial and the waves.
    coefficients
        Of the 20 monomials up to the third degree, rad, float64 (20,).
    wavevectors
        Rad a length unit, float64 (waves, 3).
    heights, starts
        Of the waves: rad, and rad at the origin, float64 (waves,).
    """

    length_nm: float
    coefficients: FloatArray
    wavevectors: FloatArray
    heights: FloatArray
    starts: FloatArray

    def __call__(self, points_nm: FloatArray) -> FloatArray:
        """Return the phase at points (..., 3), rad, float64 (...)."""
        scaled = points_nm / self.length_nm
        powers = scaled[..., None, :] ** np.arange(4)[:, None]
        phase = np.zeros(points_nm.shape[:-1])
        for (i, j, k), coefficient in zip(_EXPONENTS, self.coefficients, strict=True):
            if coefficient:
                phase += coefficient * powers[..., i, 0] * powers[..., j, 1] * powers[..., k, 2]
        for wave, height, start in zip(self.wavevectors, self.heights, self.starts, strict=True):
            phase += height * np.cos(scaled @ wave + start)
        return phase


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal as one Bragg reflection sees it, in the lab frame at the rocking curve's centre.

    Parameters
    ----------
    body
        Its shape; the amplitude is 1 inside.
    field
        The smooth part of Q . u.
    defects
        What is wrong in it.
    """

    body: Polyhedron
    field: SmoothField
    defects: tuple[Defect, ...] = ()

    def amplitude(self, points_nm: FloatArray, voxel_nm: FloatArray | None = None) -> FloatArray:
        """Return the amplitude at points (..., 3), averaged over a voxel (3, 3) where one is given."""
        amplitude = self.body.coverage(points_nm, voxel_nm)
        for defect in self.defects:
            amplitude *= defect.amplitude(points_nm, voxel_nm)
        return amplitude

    def phase(self, points_nm: FloatArray) -> FloatArray:
        """Return Q . u at points (..., 3), rad, inside and outside, wrapped only where a defect winds."""
        return self.field(points_nm) + sum(defect.phase(points_nm) for defect in self.defects)

    def half_extent_nm(self) -> FloatArray:
        """Return how far it reaches from the origin along each lab axis, float64 (3,)."""
        return np.abs(self.body.vertices()).max(axis=0)


def random_crystal(
    rng: np.random.Generator,
    size_nm: float,
    phase_range_rad: float,
    *,
    defect: DefectName | None = None,
) -> Crystal:
    """Return a faceted crystal with a smooth random strain field.

    Parameters
    ----------
    rng
        Makes the choices; the same state gives the same crystal.
    size_nm
        Largest distance between two corners.
    phase_range_rad
        Peak to valley of the smooth field inside the crystal. Its mean and its best-fit ramp there are
        zero, since a ramp only moves the Bragg peak.
    defect
        A kind of defect to put in; its own phase comes on top.

    Returns
    -------
    Crystal
        With its centre of mass (without the defect) at the origin.

    Raises
    ------
    InvalidInput
        If the size or the range is out of bounds, or the defect unknown.
    """
    if not size_nm > 0:
        raise InvalidInput(f"size_nm must be above 0, got {size_nm}")
    _check(phase_range_rad, defect)
    return _strained(rng, random_polyhedron(rng, size_nm), size_nm / 2, phase_range_rad, defect)


def strained_crystal(
    rng: np.random.Generator,
    body: Polyhedron,
    phase_range_rad: float,
    *,
    defect: DefectName | None = None,
) -> Crystal:
    """Return a crystal of a given shape with a smooth random strain field, as `random_crystal` does.

    Parameters
    ----------
    rng, phase_range_rad, defect
        As in `random_crystal`.
    body
        Its shape, with the centre of mass at the origin.

    Raises
    ------
    InvalidInput
        If the range is out of bounds, or the defect unknown.
    """
    _check(phase_range_rad, defect)
    return _strained(rng, body, body.diameter() / 2, phase_range_rad, defect)


def _strained(
    rng: np.random.Generator,
    body: Polyhedron,
    reach_nm: float,
    phase_range_rad: float,
    defect: DefectName | None,
) -> Crystal:
    field = _random_field(rng, body, reach_nm, phase_range_rad)
    return Crystal(body, field, (random_defect(rng, defect, body),) if defect else ())


def _check(phase_range_rad: float, defect: str | None) -> None:
    if not phase_range_rad >= 0:
        raise InvalidInput(f"phase_range_rad must be 0 or more, got {phase_range_rad}")
    if defect not in (None, "void", "dislocation", "domain_wall"):
        raise InvalidInput(f"defect must be void, dislocation, domain_wall or None, got {defect!r}")


def _random_field(
    rng: np.random.Generator, body: Polyhedron, length_nm: float, phase_range_rad: float
) -> SmoothField:
    degrees = _EXPONENTS.sum(axis=1)
    coefficients = np.where(degrees >= 2, rng.normal(size=len(degrees)), 0.0)
    # Waves from one to half a crystal long, the short ones weak, as elastic relaxation makes them.
    directions = rng.normal(size=(_WAVES, 3))
    numbers = rng.uniform(np.pi, 2 * np.pi, size=_WAVES)
    wavevectors = directions * (numbers / np.linalg.norm(directions, axis=1))[:, None]
    heights = 0.7 * rng.normal(size=_WAVES) * (np.pi / numbers) ** 2
    starts = rng.uniform(0, 2 * np.pi, size=_WAVES)
    raw = SmoothField(length_nm, coefficients, wavevectors, heights, starts)

    points = interior_points(body)
    values = raw(points)
    design = np.column_stack([np.ones(len(points)), points / length_nm])
    ramp = np.linalg.lstsq(design, values, rcond=None)[0]
    values = values - design @ ramp
    factor = phase_range_rad / np.ptp(values)
    # Monomials are sorted by degree, then exponents: 1, z, y, x.
    coefficients[:4] = -ramp[[0, 3, 2, 1]]
    return SmoothField(length_nm, coefficients * factor, wavevectors, heights * factor, starts)


def interior_points(body: Polyhedron, across: int = 40) -> FloatArray:
    """Return points of a regular grid that lie inside a body, nm, float64 (points, 3)."""
    corners = body.vertices()
    axes = [np.linspace(low, high, across) for low, high in zip(corners.min(0), corners.max(0), strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid[body.coverage(grid) > 0]


def sample(crystal: Crystal, direct_basis: FloatArray, shape: tuple[int, int, int]) -> NDArray[np.complex64]:
    """Return the crystal on a grid, each voxel filled as far as the crystal reaches into it.

    Parameters
    ----------
    crystal
        What to sample.
    direct_basis
        Columns are the lab-frame steps of one voxel along each axis, nm, float64 (3, 3);
        ``voxel_nm * numpy.eye(3)`` for a cubic grid.
    shape
        Of the grid; voxel n//2 is the crystal's centre.

    Returns
    -------
    numpy.ndarray
        amplitude * exp(i phase), complex64, of the given shape.
    """
    basis = np.asarray(direct_basis, dtype=float)
    density = np.zeros(shape, dtype=np.complex64)
    # The crystal fills a small part of an oversampled grid: visit the voxels within its bounds.
    corners = np.linalg.solve(basis, crystal.body.vertices().T).T
    centre = np.array(shape) // 2
    low = np.clip(np.floor(corners.min(axis=0) - 1).astype(int) + centre, 0, shape)
    high = np.clip(np.ceil(corners.max(axis=0) + 2).astype(int) + centre, 0, shape)
    spans = [np.arange(first, last) for first, last in zip(low, high, strict=True)]
    slabs = np.array_split(spans[0], max(1, np.prod([len(span) for span in spans]) // _BATCH))
    for slab in slabs:
        box = np.ix_(slab, spans[1], spans[2])
        indices = np.stack(np.broadcast_arrays(*box), axis=-1) - centre
        points = indices.reshape(-1, 3) @ basis.T
        amplitude = crystal.amplitude(points, basis)
        inside = amplitude > 0
        values = np.zeros(len(points), dtype=np.complex64)
        values[inside] = amplitude[inside] * np.exp(1j * crystal.phase(points[inside]))
        density[box] = values.reshape(indices.shape[:3])
    return density

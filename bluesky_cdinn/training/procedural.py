"""Crystals without end: faceted bodies with random strain, drawn in one batch on the device that trains.

They are drawn on a grid half as fine again as the one they are measured on, so that what a detector's window
cuts off is missing from the measurement for the reason it is in an experiment.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdinn.sim.polyhedron import FCC_FAMILIES, family

# Fine grid over measured grid, and the part of the fine grid's side that a body may fill.
FINENESS, FILLED = 1.5, 0.6
# Facets a body has besides the cube that bounds it; the least is one family's half.
FACETS = (6, 20)
# The cube's half side in units of the typical distance of a facet.
BOUND = 1.35
WAVES = 10
# The body is looked for on this many points an axis before it is drawn.
PROBE = 24


@dataclass(frozen=True)
class Recipe:
    """What crystals are drawn, each range uniform and each defect with its probability.

    Parameters
    ----------
    phase_range_rad
        Peak to valley of the smooth phase.
    oversampling
        Side of the box over the crystal's extent, drawn for each axis by itself about a common one.
    dislocation, domain, void
        Probabilities.
    """

    phase_range_rad: tuple[float, float] = (0.2, 9.0)
    oversampling: tuple[float, float] = (2.0, 3.5)
    dislocation: float = 0.12
    domain: float = 0.06
    void: float = 0.08


@dataclass(eq=False)
class Crystals:
    """A batch of crystals on a fine grid.

    Parameters
    ----------
    density
        complex64 (batch, m, m, m), origin at n // 2, amplitude 1 in a whole crystal.
    phase_range_rad, oversampling
        Of each, float32 (batch,).
    """

    density: Tensor
    phase_range_rad: Tensor
    oversampling: Tensor


def procedural_crystals(count: int, side: int, generator: torch.Generator, recipe: Recipe) -> Crystals:
    """Return random crystals for a measurement of ``side`` voxels an axis.

    Returns
    -------
    Crystals
        On a grid of ``fine_side(side)`` points an axis, on the generator's device; centred on their mass,
        without a ramp or an offset of the phase.
    """
    draw = Draw(count, generator)
    fine = fine_side(side)
    width = 2 * round(FILLED * fine / 2)
    body = Bodies.random(draw)
    oversampling = draw.uniform(*recipe.oversampling)[:, None]
    oversampling = (oversampling * draw.uniform(1.0, 1.3, 3)).clamp(*recipe.oversampling)
    steps = (torch.arange(width, device=draw.device) - width // 2) / fine
    axes = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    # From the box, whose side is 1, to the body's own units, along each axis.
    points = body.centre[:, None] + axes * (body.extent * oversampling)[:, None]
    depth = body.depths(points)
    edge = (body.extent * oversampling).mean(1)[:, None] / fine
    amplitude = (depth.amin(-1) / edge + 0.5).clamp(0, 1)
    amplitude = amplitude * _voids(draw, body, points, recipe.void)
    inside = amplitude > 0.5
    scaled = (points - body.centre[:, None]) / (0.5 * body.extent.amax(1))[:, None, None]
    phase = _smooth_phase(draw, scaled) + _surface_phase(draw, body, depth)
    phase = _without_ramp(phase, scaled, inside)
    # Weak phases are as frequent as strong ones: uniform in the range itself.
    wanted = draw.uniform(*recipe.phase_range_rad)
    phase = phase * (wanted / _peak_to_valley(phase, inside))[:, None]
    phase = phase + _dislocation(draw, body, scaled, recipe.dislocation)
    phase = phase + _domains(draw, scaled, recipe.domain)
    phase = _without_ramp(phase, scaled, inside)
    whole = torch.zeros((count, fine, fine, fine), dtype=torch.complex64, device=draw.device)
    low = fine // 2 - width // 2
    box = (slice(None), *[slice(low, low + width)] * 3)
    whole[box] = torch.polar(amplitude, phase).reshape(count, width, width, width)
    return Crystals(whole, wanted, oversampling.amin(1))


def fine_side(side: int) -> int:
    """Return the side of the grid that crystals for a measurement of ``side`` voxels are drawn on."""
    return 2 * round(FINENESS * side / 2)


class Draw:
    """Random numbers for a batch, on the generator's device."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator, self.device = count, generator, generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return float32 ``(count, *shape)``, uniform between two numbers."""
        numbers = torch.rand((self.count, *shape), generator=self.generator, device=self.device)
        return low + (high - low) * numbers

    def normal(self, *shape: int) -> Tensor:
        """Return float32 ``(count, *shape)``, normal."""
        return torch.randn((self.count, *shape), generator=self.generator, device=self.device)

    def chance(self, probability: float) -> Tensor:
        """Return bool (count,), each True with a probability."""
        return self.uniform(0, 1) < probability

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return int64 ``(count, *shape)``, from ``low`` to below ``high``."""
        return torch.randint(low, high, (self.count, *shape), generator=self.generator, device=self.device)

    def rotations(self) -> Tensor:
        """Return rotation matrices, uniform (Shoemake 1992), float32 (count, 3, 3)."""
        w, x, y, z = torch.nn.functional.normalize(self.normal(4), dim=1).unbind(1)
        rows = [
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)


@dataclass(frozen=True, eq=False)
class Bodies:
    """Convex bodies: the points r with normals @ r <= distances.

    Parameters
    ----------
    normals, distances
        float32 (batch, faces, 3) and (batch, faces).
    centre, extent
        Centre of mass, and size along each axis, float32 (batch, 3).
    """

    normals: Tensor
    distances: Tensor
    centre: Tensor
    extent: Tensor

    @classmethod
    def random(cls, draw: Draw) -> "Bodies":
        """Return bodies cut by planes of the low-index families, in random frames.

        The frame's shear and stretch stand for platelets and rods, and for the measured grid's own axes,
        which are not at right angles.
        """
        pool = torch.cat([torch.from_numpy(family(indices)) for indices in FCC_FAMILIES]).float()
        pool = pool.to(draw.device)
        slots = FACETS[1]
        normals = pool[draw.integers(0, len(pool), slots)]
        distances = draw.uniform(0.65, 1.1, slots)
        # Facets beyond a body's number are moved out of the way.
        unused = torch.arange(slots, device=draw.device) >= draw.integers(FACETS[0], slots + 1, 1)
        distances = torch.where(unused, 10.0, distances)
        cube = torch.cat([torch.eye(3), -torch.eye(3)]).to(draw.device).expand(draw.count, 6, 3)
        normals = torch.cat([normals, cube], 1)
        distances = torch.cat([distances, BOUND * draw.uniform(0.8, 1.0, 6)], 1)
        frame = torch.eye(3, device=draw.device) + draw.uniform(-0.2, 0.2, 3, 3)
        normals = normals @ (draw.rotations() @ frame)
        length = normals.norm(dim=-1)
        normals, distances = normals / length[..., None], distances / length
        return cls._measured(normals, distances)

    @classmethod
    def _measured(cls, normals: Tensor, distances: Tensor) -> "Bodies":
        line = torch.linspace(-1, 1, PROBE, device=normals.device)
        # A sheared cube of half side BOUND reaches further along an axis than the cube.
        grid = 2.6 * torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
        inside = (grid @ normals.mT <= distances[:, None]).all(-1)
        weight = inside / inside.sum(1, keepdim=True)
        points = torch.where(inside[..., None], grid, torch.zeros_like(grid))
        step = 5.2 / (PROBE - 1)
        extent = points.amax(1) - points.amin(1) + step
        return cls(normals, distances, (weight[..., None] * grid).sum(1), extent)

    def depths(self, points: Tensor) -> Tensor:
        """Return how deep points (batch, m, 3) lie below each face, float32 (batch, m, faces)."""
        return self.distances[:, None] - points @ self.normals.mT


def _smooth_phase(draw: Draw, points: Tensor) -> Tensor:
    """Return a cubic polynomial and waves of half a crystal and longer, float32 (batch, m)."""
    x, y, z = points.unbind(-1)
    squares = [x * x, y * y, z * z, x * y, y * z, z * x]
    monomials = torch.stack([*squares, *(s * axis for s in squares[:3] for axis in (x, y, z)), x * y * z], -1)
    weights = draw.normal(monomials.shape[-1])
    weights[:, 6:] *= draw.uniform(0, 1, 1)
    phase = (monomials @ weights[..., None])[..., 0]
    directions = torch.nn.functional.normalize(draw.normal(3, WAVES), dim=1)
    numbers = draw.uniform(2.0, 10.0, WAVES)
    waves = points @ (directions * numbers[:, None]) + draw.uniform(0, 2 * torch.pi, 1, WAVES)
    # Short waves are weak, as elastic relaxation makes them.
    heights = draw.normal(WAVES) * (torch.pi / numbers) ** 1.5 * draw.uniform(0.2, 1.6, 1)
    return phase + (waves.cos() @ heights[..., None])[..., 0]


def _surface_phase(draw: Draw, body: Bodies, depth: Tensor) -> Tensor:
    """Return the relaxation of the surface: each facet moves by its own amount, and less with depth.

    Where facets meet, their movements add up, as at the corners and edges of relaxed crystals.
    """
    reach = draw.uniform(0.04, 0.2, 1, 1) * body.extent.mean(1)[:, None, None]
    along = (body.normals @ draw.normal(3, 1))[..., 0] + 0.7 * draw.normal(body.normals.shape[1])
    strength = draw.uniform(0, 2.5, 1) * draw.chance(0.85)[:, None]
    return (torch.exp(-depth.clamp_min(0) / reach) @ (along * strength)[..., None])[..., 0]


def _without_ramp(phase: Tensor, points: Tensor, inside: Tensor) -> Tensor:
    """Return the phase less its best-fit offset and ramp inside: they move the peak and mean nothing."""
    basis = torch.cat([torch.ones_like(points[..., :1]), points], -1)
    weighted = basis * inside[..., None]
    fit = torch.linalg.solve(weighted.mT @ basis, weighted.mT @ phase[..., None])
    return phase - (basis @ fit)[..., 0]


def _peak_to_valley(phase: Tensor, inside: Tensor) -> Tensor:
    high = torch.where(inside, phase, -torch.inf).amax(1)
    low = torch.where(inside, phase, torch.inf).amin(1)
    return (high - low).clamp_min(1e-3)


def _dislocation(draw: Draw, body: Bodies, points: Tensor, probability: float) -> Tensor:
    """Return the phase of one straight dislocation through some crystals: Q . b of 2 pi, or less.

    An edge's displacement has a second, smooth part beside the winding (Hirth and Lothe 1982, 3.4).
    """
    rotated = (points - draw.uniform(-0.35, 0.35, 1, 3)) @ draw.rotations()
    angle = torch.atan2(rotated[..., 1], rotated[..., 0])
    edge = draw.uniform(0, 0.45, 1) * torch.sin(2 * angle)
    # Only whole windings keep the phase continuous across the cut.
    sign = torch.where(draw.chance(0.5), 1.0, -1.0) * draw.chance(probability)
    return sign[:, None] * (angle + edge)


def _domains(draw: Draw, points: Tensor, probability: float) -> Tensor:
    """Return a step of the phase across a plane through some crystals."""
    normal = torch.nn.functional.normalize(draw.normal(3, 1), dim=1)
    beyond = (points @ normal)[..., 0] > draw.uniform(-0.4, 0.4, 1)
    return draw.uniform(1.0, 3.14159, 1) * draw.chance(probability)[:, None] * beyond


def _voids(draw: Draw, body: Bodies, points: Tensor, probability: float) -> Tensor:
    """Return the factor on the amplitude of an ellipsoidal hole in some crystals."""
    size = body.extent.mean(1)[:, None, None]
    rotated = (points - body.centre[:, None] - draw.uniform(-0.25, 0.25, 1, 3) * size) @ draw.rotations()
    distance = (rotated / (size * draw.uniform(0.08, 0.2, 1, 3))).norm(dim=-1)
    hole = (distance > 1) | ~draw.chance(probability)[:, None]
    return hole.to(torch.float32)

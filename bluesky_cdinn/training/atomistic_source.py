"""Relaxed crystals as training and evaluation see them: any reflection, orientation, size and sampling."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample

from bluesky_cdinn.training.atomistic import MATERIALS
from bluesky_cdinn.training.atomistic_set import FULL, AtomisticSet
from bluesky_cdinn.training.procedural import FILLED, Crystals, Draw, fine_side

# Edges are stored over about a voxel and a half; in a larger crystal they are sharper by its size.
SHARPENING = 2.0
# A dislocation's core doesn't grow with the crystal: beyond this scale it would no longer be one.
MOST_WITH_DISLOCATION = 3.0
# Share of the crystal left out at either end of the phase range: single atoms at corners.
TAIL = 0.005
# How far the measured grid's axes are from right angles and equal steps.
SHEAR = 0.2
BINOMIAL = (0.25, 0.5, 0.25)


@dataclass(frozen=True)
class Views:
    """How crystals are looked at, each range uniform.

    Parameters
    ----------
    phase_range_rad
        Of the elastic phase, without a dislocation's winding: what holds 99 % of the crystal.
    oversampling
        Side of the box over the crystal's extent, drawn for each axis by itself about a common one.
    reflections
        Miller indices, taken in turn at random with all permutations and signs.
    """

    phase_range_rad: tuple[float, float] = (0.3, 2.2 * np.pi)
    oversampling: tuple[float, float] = (2.0, 5.0)
    reflections: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 0, 0), (2, 2, 0))


@dataclass(frozen=True, eq=False)
class Shelf:
    """A set's crystals as tensors on a device, ready to be drawn from.

    Parameters
    ----------
    occupancy
        float32 (crystals, side, side, side), 1 inside.
    displacement_nm
        Continued to the outside of the crystals, float32 (crystals, 3, side, side, side).
    voxel_nm, corner_nm
        Of the grids, float32 (crystals, 3).
    dislocation
        As `AtomisticSet` has it, float32 (crystals, 15).
    lattice_nm
        Edge of the cubic cell, float32 (crystals,).
    """

    occupancy: Tensor
    displacement_nm: Tensor
    voxel_nm: Tensor
    corner_nm: Tensor
    dislocation: Tensor
    lattice_nm: Tensor

    @classmethod
    def of(cls, crystals: AtomisticSet, device: torch.device | str = "cpu") -> "Shelf":
        """Return a set as tensors.

        Displacements are averaged over the neighbouring voxels: a crystal ten times larger has as many
        voxels, each with a thousand times the atoms, so that what single surface atoms do is lost in it.
        """
        occupancy = crystals.occupancy.astype(np.float32) / FULL
        displacement = np.stack(
            [_continued(u, o) for u, o in zip(crystals.displacement_nm, occupancy, strict=True)]
        )
        lattice = [MATERIALS[recipe.material].lattice_nm for recipe in crystals.recipes]
        arrays = (
            occupancy,
            displacement,
            crystals.voxel_nm,
            crystals.corner_nm,
            crystals.dislocation,
            lattice,
        )
        return cls(*(torch.as_tensor(a, dtype=torch.float32, device=device) for a in arrays))

    def __len__(self) -> int:
        return len(self.occupancy)

    def take(self, items: Tensor) -> "Shelf":
        """Return the crystals of some indices, with repetition as given."""
        return Shelf(*(getattr(self, name)[items] for name in self.__dataclass_fields__))

    def points_nm(self) -> Tensor:
        """Return where the voxels lie, along the cube's axes, float32 (crystals, side**3, 3)."""
        steps = torch.arange(self.occupancy.shape[-1], dtype=torch.float32, device=self.occupancy.device)
        grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        return self.corner_nm[:, None] + grid * self.voxel_nm[:, None]


def atomistic_crystals(
    shelf: Shelf,
    count: int,
    side: int,
    generator: torch.Generator,
    views: Views,
    items: Tensor | None = None,
) -> Crystals:
    """Return views of stored crystals for a measurement of ``side`` voxels an axis.

    Parameters
    ----------
    shelf
        What to draw from, on the generator's device.
    count
        How many views.
    side
        Of the measurement.
    generator
        Chooses crystal, reflection, frame, size and strain; the same state gives the same views.
    views
        The ranges it chooses from.
    items
        Which crystals, int64 (count,), instead of random ones.

    Returns
    -------
    Crystals
        On a grid of ``fine_side(side)`` points an axis, centred on their mass, without a ramp or an offset
        of the phase.
    """
    draw = Draw(count, generator)
    chosen = draw.integers(0, len(shelf))
    shelf = shelf.take(chosen if items is None else items)
    points = shelf.points_nm()
    weight = sharpened(shelf.occupancy.flatten(1))
    inside = weight > 0.5
    centre = (weight[..., None] * points).sum(1, keepdim=True) / weight.sum(1)[:, None, None]
    wavevector = _wavevectors(draw, views) * (2 * torch.pi / shelf.lattice_nm[:, None])
    elastic, phase_range = _elastic_phase(draw, shelf, wavevector, points - centre, inside, views)
    slope = _slope(elastic + _winding(shelf.dislocation, points, wavevector), points - centre, inside)
    frame, oversampling = _frames(draw, points - centre, inside, views)

    fine = fine_side(side)
    width = 2 * round(FILLED * fine / 2)
    steps = (torch.arange(width, device=draw.device) - width // 2) / fine
    box = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    there = box @ frame.mT
    occupancy, phase = _interpolated(shelf, elastic, there + centre)
    phase = phase + _winding(shelf.dislocation, there + centre, wavevector) - _plane(slope, there)
    whole = torch.zeros((count, fine, fine, fine), dtype=torch.complex64, device=draw.device)
    low = fine // 2 - width // 2
    part = (slice(None), *[slice(low, low + width)] * 3)
    whole[part] = torch.polar(sharpened(occupancy), phase).reshape(count, width, width, width)
    return Crystals(whole, phase_range, oversampling.amin(1))


def sharpened(occupancy: Tensor) -> Tensor:
    """Return an occupancy with narrower edges at the same places, 1 in a whole crystal."""
    return (SHARPENING * (occupancy - 0.5) + 0.5).clamp(0, 1)


def _continued(displacement: NDArray[np.float16], occupancy: NDArray[np.float32]) -> NDArray[np.floating]:
    """Average (3, n, n, n) over neighbours within the crystal, and continue it outwards by the nearest."""
    weight = np.where(occupancy > 0.1, occupancy, 0.0)
    smooth = np.stack([_binomial(part) for part in (weight, *(weight * displacement.astype(np.float32)))])
    known = occupancy > 0.3
    mean = smooth[1:] / np.where(known, smooth[0], 1.0)
    nearest = np.empty((3, *known.shape), dtype=np.int32)
    ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True, indices=nearest)
    return mean[(slice(None), *nearest)]


def _binomial(values: NDArray[np.floating]) -> NDArray[np.floating]:
    for axis in range(3):
        values = ndimage.correlate1d(values, BINOMIAL, axis=axis, mode="constant")
    return values


def _wavevectors(draw: Draw, views: Views) -> Tensor:
    """Return Miller indices of a random family, in random order and with random signs, (count, 3)."""
    families = torch.tensor(views.reflections, dtype=torch.float32, device=draw.device)
    chosen = families[draw.integers(0, len(families))]
    order = draw.uniform(0, 1, 3).argsort(1)
    signs = torch.where(draw.uniform(0, 1, 3) < 0.5, -1.0, 1.0)
    return chosen.gather(1, order) * signs


def _elastic_phase(
    draw: Draw, shelf: Shelf, wavevector: Tensor, points: Tensor, inside: Tensor, views: Views
) -> tuple[Tensor, Tensor]:
    """Return Q . u of the stored displacement at the grid's points, scaled to a drawn range, and its range.

    Returns
    -------
    phase, phase_range
        Without offset and ramp, float32 (count, side**3); rad, float32 (count,).
    """
    phase = torch.einsum("bc,bcxyz->bxyz", wavevector, shelf.displacement_nm).flatten(1)
    phase = phase - _plane(_slope(phase, points, inside), points)
    spread = _spread(phase, inside)
    scale = draw.uniform(*views.phase_range_rad) / spread
    winding = shelf.dislocation.abs().sum(1) > 0
    scale = torch.where(winding, scale.clamp_max(MOST_WITH_DISLOCATION), scale)
    return phase * scale[:, None], scale * spread


def _slope(phase: Tensor, points: Tensor, inside: Tensor) -> Tensor:
    """Return offset and gradient of the plane that fits a phase best inside, (count, 4)."""
    basis = torch.cat([torch.ones_like(points[..., :1]), points], -1)
    weighted = basis * inside[..., None]
    return torch.linalg.solve(weighted.mT @ basis, weighted.mT @ phase[..., None])[..., 0]


def _plane(slope: Tensor, points: Tensor) -> Tensor:
    """Return the plane at points (count, m, 3), float32 (count, m)."""
    return slope[:, :1] + (points @ slope[:, 1:, None])[..., 0]


def _spread(phase: Tensor, inside: Tensor) -> Tensor:
    """Return the range that holds all but the tails of a phase inside, (count,)."""
    ordered = torch.where(inside, phase, torch.inf).sort(1).values
    number = inside.sum(1, keepdim=True)
    low = (TAIL * (number - 1)).round().long()
    ends = ordered.gather(1, torch.cat([low, number - 1 - low], 1))
    return (ends[:, 1] - ends[:, 0]).clamp_min(1e-3)


def _winding(dislocation: Tensor, points: Tensor, wavevector: Tensor) -> Tensor:
    """Return Q . u of the dislocations' continuum fields at points (count, m, 3), as `volterra` has them."""
    frame = dislocation[:, 3:12].reshape(-1, 3, 3)
    burgers, edge, poisson = dislocation[:, 12:].unbind(1)
    if not burgers.any():
        return torch.zeros_like(points[..., 0])
    x, y, _ = ((points - dislocation[:, None, :3]) @ frame.mT).unbind(-1)
    theta = torch.atan2(y, x)
    stiff, poisson = 4 * (1 - poisson[:, None]), poisson[:, None]
    distance = torch.maximum(x.square() + y.square(), (burgers[:, None] / 4).square().clamp_min(1e-12))
    along = theta + torch.sin(2 * theta) / stiff
    across = -((1 - 2 * poisson) * distance.log() + torch.cos(2 * theta)) / stiff
    local = (frame @ wavevector[..., None])[..., 0] * burgers[:, None] / (2 * torch.pi)
    of_edge = local[:, :1] * along + local[:, 1:2] * across
    return torch.where(edge[:, None] > 0.5, of_edge, local[:, 2:] * theta)


def _frames(draw: Draw, points: Tensor, inside: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Return what takes a place in the box, whose side is 1, to one in the crystal; and the oversampling.

    Returns
    -------
    frame, oversampling
        Columns are the box's edges, nm, float32 (count, 3, 3); float32 (count, 3).
    """
    shear = torch.eye(3, device=draw.device) + draw.uniform(-SHEAR, SHEAR, 3, 3)
    axes = draw.rotations() @ shear
    seen = torch.where(inside[..., None], torch.linalg.solve(axes, points.mT).mT, 0.0)
    low, high = seen.amin(1), seen.amax(1)
    oversampling = draw.uniform(*views.oversampling)[:, None] * draw.uniform(1.0, 1.3, 3)
    oversampling = oversampling.clamp(*views.oversampling)
    # The mass of a pointed crystal lies off its middle, and the box is centred on the mass.
    edge = torch.maximum((high - low) * oversampling, torch.maximum(high, -low) / (FILLED / 2 - 0.01))
    return axes * edge[:, None], edge / (high - low)


def _interpolated(shelf: Shelf, phase: Tensor, places_nm: Tensor) -> tuple[Tensor, Tensor]:
    """Return occupancy and phase at places (count, m, 3), float32 (count, m) each."""
    side = shelf.occupancy.shape[-1]
    volume = torch.stack([shelf.occupancy, phase.unflatten(-1, (side, side, side))], 1)
    steps = (places_nm - shelf.corner_nm[:, None]) / shelf.voxel_nm[:, None]
    # grid_sample counts from -1 to 1, last axis first.
    where = (2 * steps / (side - 1) - 1).flip(-1)[:, None, None]
    found = grid_sample(volume, where, mode="bilinear", padding_mode="zeros", align_corners=True)
    occupancy, interpolated = found[:, :, 0, 0].unbind(1)
    return occupancy, interpolated

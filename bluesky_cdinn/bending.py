"""How much a density bends inside the crystal: what the last fit prefers to be little."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import pad

from bluesky_cdinn.forward import AXES
from bluesky_cdinn.support import TINY, gaussian_blur, typical_amplitude


@dataclass(eq=False)
class Bending:
    """The squared second differences of a density along its axes, inside the crystal.

    Parameters
    ----------
    box
        The part of the grid that holds all objects, which keeps the cost small.
    inside
        For each axis, 1 where a voxel and both its neighbours are in the interior, float (starts, box).
    weight
        Of the squares against chi2, float (starts, 1, 1, 1).
    """

    box: tuple[slice, slice, slice]
    inside: list[Tensor]
    weight: Tensor

    # Voxels of over this share of the typical amplitude are the interior.
    LEVEL: ClassVar[float] = 0.8
    # More would slow the descent more than it would smooth.
    MOST: ClassVar[float] = 0.3

    @classmethod
    def of(cls, density: Tensor, smoothness: float, least: float = 0.0) -> "Bending":
        """Return the bending of objects whose interior is where they are even now."""
        amplitude = density.abs()
        typical = typical_amplitude(amplitude)
        # The blur is periodic: a margin keeps what lies at opposite sides apart.
        blurred = gaussian_blur(pad(amplitude, (2,) * 6), 0.5)[:, 2:-2, 2:-2, 2:-2]
        interior = blurred > cls.LEVEL * typical
        occupied = interior.any(dim=0)
        box = []
        for axis in range(3):
            along = occupied.any(dim=tuple(a for a in range(3) if a != axis)).nonzero()
            box.append(slice(int(along.min()), int(along.max()) + 1) if len(along) else slice(0, 1))
        inner = interior[:, box[0], box[1], box[2]].to(amplitude.dtype)
        inside = [_middle(inner, a) * _ahead(inner, a) * _behind(inner, a) for a in AXES]
        # Counting noise of sqrt(counts) has variance 1/4 wherever counts are not few (Anscombe 1948).
        weight = (smoothness / typical.square().clamp_min(TINY)).clamp(least, cls.MOST)
        return cls((box[0], box[1], box[2]), inside, weight)

    def add_gradient(self, density: Tensor, gradient: Tensor) -> None:
        """Add the gradient of half the weighted sum of squares to ``gradient``, in place."""
        part, target = density[:, *self.box], gradient[:, *self.box]
        for axis, inside in zip(AXES, self.inside, strict=True):
            bent = _ahead(part, axis) + _behind(part, axis) - 2 * _middle(part, axis)
            bent.mul_(inside * self.weight)
            _ahead(target, axis).add_(bent)
            _behind(target, axis).add_(bent)
            _middle(target, axis).sub_(bent, alpha=2)


def _ahead(values: Tensor, axis: int) -> Tensor:
    return values.narrow(axis, min(2, values.shape[axis]), max(values.shape[axis] - 2, 0))


def _middle(values: Tensor, axis: int) -> Tensor:
    return values.narrow(axis, min(1, values.shape[axis]), max(values.shape[axis] - 2, 0))


def _behind(values: Tensor, axis: int) -> Tensor:
    return values.narrow(axis, 0, max(values.shape[axis] - 2, 0))

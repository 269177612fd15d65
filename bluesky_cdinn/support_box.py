"""The part of a grid that holds the objects: a few percent of it, where most of the work is done.

Arrays have their origin at index 0 (`forward.to_corner`), and objects may lie across the grid's edge.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SupportBox:
    """The smallest periodic box that holds the supports of all starts.

    Parameters
    ----------
    places
        Index of each of its voxels in the flattened grids, int64 ``(starts, *sides)``. Gathering by index
        costs what slices do and, across the grid's edge, an eighth.
    """

    places: Tensor

    @classmethod
    def of(cls, support: Tensor) -> "SupportBox":
        """Return the box of a support, (starts, n0, n1, n2), non-zero inside; one voxel if there is none."""
        occupied = (support != 0).any(dim=0)
        places = torch.arange(len(support), device=support.device)
        for axis, n in enumerate(occupied.shape):
            first, side = span(occupied.any(dim=tuple(a for a in range(3) if a != axis)))
            along = torch.arange(first, first + side, device=support.device) % n
            places = places[..., None] * n + along
        return cls(places)

    def cut(self, grid: Tensor) -> Tensor:
        """Return a copy of the box, ``(k, *sides)``, from the grids of k starts, (k, n0, n1, n2)."""
        return grid.take(self.places[: len(grid)])

    def paste(self, box: Tensor, grid: Tensor) -> None:
        """Write ``(k, *sides)`` to its place in the grids of k starts, (k, n0, n1, n2)."""
        grid.put_(self.places[: len(grid)], box)


def span(occupied: Tensor) -> tuple[int, int]:
    """Return the first index and the length of the shortest periodic run that holds all of a line's True."""
    places = occupied.nonzero()[:, 0].tolist()
    if not places:
        return 0, 1
    n = len(occupied)
    # The run begins after the longest gap.
    gaps = [(place - before - 1) % n for place, before in zip(places, [places[-1], *places], strict=False)]
    longest = max(range(len(gaps)), key=gaps.__getitem__)
    return places[longest], n - gaps[longest]

"""Objects without the empty part of their grids, which is most of it, to keep while others are fitted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdinn.refine import Objects
from bluesky_cdinn.support_box import SupportBox


@dataclass(frozen=True, eq=False)
class Boxed:
    """Objects cut out of their grids.

    Parameters
    ----------
    density
        complex64 ``(starts, *sides)``.
    support
        float32, the same shape.
    chi2
        Of each, float32 (starts,).
    box
        Their place in the grids.
    shape
        Of the grids.
    """

    density: Tensor
    support: Tensor
    chi2: Tensor
    box: SupportBox
    shape: torch.Size

    @classmethod
    def of(cls, objects: Objects) -> "Boxed":
        """Return objects, which are zero outside their supports, cut out."""
        box = SupportBox.of(objects.support)
        shape = objects.support.shape[1:]
        return cls(box.cut(objects.density), box.cut(objects.support), objects.chi2, box, shape)

    def whole(self, number: int, scale: float = 1.0) -> Objects:
        """Return one of the objects on its grid, times a number."""
        one = slice(number, number + 1)
        return self._on_grid(self.density[one] * scale, self.support[one], self.chi2[one])

    def all_whole(self) -> Objects:
        """Return the objects on their grids."""
        return self._on_grid(self.density, self.support, self.chi2)

    def _on_grid(self, density: Tensor, support: Tensor, chi2: Tensor) -> Objects:
        grids = (len(density), *self.shape)
        objects = Objects(density.new_zeros(grids), support.new_zeros(grids), chi2.clone())
        self.box.paste(density, objects.density)
        self.box.paste(support, objects.support)
        return objects

"""Where batches come from: random crystals, measured under random conditions."""

from dataclasses import dataclass, field

import torch

from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.measuring import Conditions, measure
from bluesky_cdinn.training.procedural import Crystals, Recipe, procedural_crystals


@dataclass(frozen=True)
class CrystalSource:
    """Makes batches of procedural crystals; a `batch.Source`.

    Parameters
    ----------
    side
        Of the measured grid, voxels.
    count
        Crystals a batch.
    recipe, conditions
        What crystals, and how they are measured.
    measurements
        Of each crystal, under conditions of its own: drawing a crystal costs more than measuring it.
    """

    side: int = 32
    count: int = 16
    recipe: Recipe = field(default_factory=Recipe)
    conditions: Conditions = field(default_factory=Conditions)
    measurements: int = 2

    def __call__(self, generator: torch.Generator) -> Batch:
        """Return the batch that a generator's state says."""
        each = max(1, self.count // self.measurements)
        crystals = procedural_crystals(each, self.side, generator, self.recipe)
        return measure(repeated(crystals, self.measurements), self.side, generator, self.conditions)


def repeated(crystals: Crystals, times: int) -> Crystals:
    """Return a batch that has each crystal several times."""
    parts = (crystals.density, crystals.phase_range_rad, crystals.oversampling)
    return Crystals(*(part.repeat_interleave(times, 0) for part in parts))

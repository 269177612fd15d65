"""What training sees: procedural and relaxed crystals together, measured alike."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bluesky_cdinn.training.atomistic_set import load_set
from bluesky_cdinn.training.atomistic_source import Shelf, Views, atomistic_crystals
from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.measuring import Conditions, measure
from bluesky_cdinn.training.procedural import Crystals, Recipe, procedural_crystals


@dataclass(frozen=True)
class Mixture:
    """A source of batches (`batch.Source`) that can be sent to another process.

    Parameters
    ----------
    side
        Of the measured grid, voxels.
    count
        Measurements a batch, on that grid.
    larger
        Other grids, each with the share of batches that are on it; of these a batch has as many fewer
        crystals as the grid has more voxels.
    recipe, conditions
        What procedural crystals are drawn, and how all crystals are measured.
    measurements
        Of each crystal, under conditions of its own: drawing a crystal costs more than measuring it.
    atomistic
        A stored set of relaxed crystals (`atomistic_set`); None for procedural ones only.
    share
        Part of the crystals that comes from the stored set, in the mean over batches.
    views
        How those are looked at.
    """

    side: int = 32
    count: int = 16
    recipe: Recipe = field(default_factory=Recipe)
    conditions: Conditions = field(default_factory=Conditions)
    measurements: int = 2
    atomistic: Path | None = None
    share: float = 0.3
    views: Views = field(default_factory=Views)
    larger: tuple[tuple[int, float], ...] = ()

    def __call__(self, generator: torch.Generator) -> Batch:
        """Return the batch of a generator's state, on its device."""
        side = self._side(generator)
        count = round(self.count * (self.side / side) ** 3)
        each = max(1, count // self.measurements)
        stored = self._stored(each, generator) if self.atomistic else 0
        parts = []
        if stored < each:
            parts.append(procedural_crystals(each - stored, side, generator, self.recipe))
        if self.atomistic is not None and stored:
            shelf = _shelf(self.atomistic, generator.device)
            parts.append(atomistic_crystals(shelf, stored, side, generator, self.views))
        crystals = repeated(_joined(parts), self.measurements)
        return measure(crystals, side, generator, self.conditions)

    def _stored(self, each: int, generator: torch.Generator) -> int:
        """Return how many of a batch's crystals are relaxed ones; what isn't a whole number, by chance."""
        whole, rest = divmod(self.share * each, 1)
        if rest:
            whole += float(torch.rand((), generator=generator, device=generator.device)) < rest
        return int(whole)

    def _side(self, generator: torch.Generator) -> int:
        if not self.larger:
            return self.side
        drawn = float(torch.rand((), generator=generator, device=generator.device))
        for side, share in self.larger:
            if drawn < share:
                return side
            drawn -= share
        return self.side


@functools.lru_cache(maxsize=2)
def _shelf(path: Path, device: torch.device) -> Shelf:
    """Return a stored set, read once a process."""
    return Shelf.of(load_set(path), device)


def repeated(crystals: Crystals, times: int) -> Crystals:
    """Return a batch that has each crystal several times."""
    parts = (crystals.density, crystals.phase_range_rad, crystals.oversampling)
    return Crystals(*(part.repeat_interleave(times, 0) for part in parts))


def _joined(parts: list[Crystals]) -> Crystals:
    names = ("density", "phase_range_rad", "oversampling")
    return Crystals(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

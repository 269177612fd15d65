"""Crystals that the learning curve is judged on: never trained on, the same ones each time."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from bluesky_cdinn.forward import to_corner
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.feed import step_generator
from bluesky_cdinn.training.measuring import Conditions, measure
from bluesky_cdinn.training.objective import aligned, correlation, objective, random_states
from bluesky_cdinn.training.procedural import Recipe, procedural_crystals
from bluesky_cdinn.training.trainee import Objective

# Random numbers for these are drawn as for no training step, whatever its seed.
DATA, START = 2, 3
# Of phase retrieval, to compare with.
ITERATIONS = 100

WHOLE = Recipe(dislocation=0, domain=0, void=0)
IDEAL = Conditions((1e6, 1e6), background=0, blurred=0, gap=0, frames=0, beamstop=0, displaced=0)
# What is changed of a whole crystal under ideal conditions; phase ranges in rad, peak to valley.
KINDS: dict[str, dict[str, Any]] = {
    "weak": {"phase_range_rad": (0.3, 1.6)},
    "medium": {"phase_range_rad": (1.6, 3.1)},
    "strong": {"phase_range_rad": (3.1, 6.3)},
    "very strong": {"phase_range_rad": (6.3, 12.6)},
    "1e4 counts": {"phase_range_rad": (3.1, 6.3), "counts": (1e4, 1e4)},
    "1e3 counts": {"phase_range_rad": (3.1, 6.3), "counts": (1e3, 1e3)},
    "dislocation": {"phase_range_rad": (1.0, 5.0), "dislocation": 1.0},
    "gap": {"phase_range_rad": (1.0, 6.3), "gap": 1.0},
    "blurred": {"phase_range_rad": (1.0, 6.3), "blurred": 1.0},
}


@dataclass(frozen=True)
class Validation:
    """Says how well a network does on crystals of every kind.

    How far phase retrieval has come when the network looks is drawn for each kind by itself, the same each
    time: one kind's figure tells how training goes on, not how kinds compare.

    Parameters
    ----------
    side
        Of the measured grid, voxels.
    count
        Crystals of each kind.
    objective
        What the network is asked for; the last of its scores that is a correlation counts.
    device
        Of the network.
    """

    side: int = 32
    count: int = 16
    objective: Objective = objective
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return a network's mean complex correlation with the crystals of each kind, 0 to 1."""
        figures = {}
        for number, (name, batch) in enumerate(self.batches.items()):
            _, scores = self.objective(network, batch, self._generator(number, START))
            figures[name] = [value for score, value in scores.items() if score.startswith("correlation")][-1]
        return figures

    @torch.no_grad()
    def without(self) -> dict[str, float]:
        """Return the same for phase retrieval from random phases with no network."""
        figures = {}
        for number, (name, batch) in enumerate(self.batches.items()):
            measurement = Measurement(batch.magnitude, batch.measured)
            objects = random_states(measurement, self._generator(number, START), ITERATIONS)
            found = objects.density * objects.support
            figures[name] = float(correlation(found, aligned(to_corner(batch.truth), found)).mean())
        return figures

    @cached_property
    def batches(self) -> dict[str, Batch]:
        """The crystals of each kind, the same on every machine."""
        return {name: self._batch(number, KINDS[name]) for number, name in enumerate(KINDS)}

    def _batch(self, number: int, changes: dict[str, Any]) -> Batch:
        # Drawn on the CPU, as a GPU's random numbers are its own.
        generator = step_generator(number, 0, 0, purpose=DATA)
        of_crystal = {key: value for key, value in changes.items() if hasattr(WHOLE, key)}
        recipe = replace(WHOLE, **of_crystal)
        conditions = replace(IDEAL, **{key: value for key, value in changes.items() if key not in of_crystal})
        crystals = procedural_crystals(self.count, self.side, generator, recipe)
        return measure(crystals, self.side, generator, conditions).to(self.device)

    def _generator(self, number: int, purpose: int) -> torch.Generator:
        return step_generator(number, 0, 0, self.device, purpose)

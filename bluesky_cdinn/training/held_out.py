"""Crystals that judge a start, never trained or tuned on.

The procedural ones come from another generator than training's (`sim.crystal`), the atomistic ones from a set
of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_cdinn import quality
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.forward import backpropagate, propagate, to_corner
from bluesky_cdinn.grid import fill_invalid, window_on_grid
from bluesky_cdinn.posing import centre_peak
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.sim.crystal import random_crystal, sample
from bluesky_cdinn.sim.defects import DefectName
from bluesky_cdinn.training.atomistic_set import load_set
from bluesky_cdinn.training.atomistic_source import Shelf, Views, atomistic_crystals

SIDE = 64
# Seeds from here on belong to the evaluation: training, tuning and tests stay below.
FIRST_SEED, ATOMISTIC = 800_000, 50_000
# Phase range inside the crystal, rad, peak to valley.
CLASSES = {
    "weak": (0.3, np.pi / 2),
    "medium": (np.pi / 2, np.pi),
    "strong": (np.pi, 2 * np.pi),
    "very strong": (2 * np.pi, 4 * np.pi),
}
COUNTS = (1e4, 1e6)
# Side of the box over the crystal's extent, along each axis.
OVERSAMPLING = (2.0, 3.5)
DEFECTS: tuple[DefectName, ...] = ("void", "dislocation", "domain_wall")
# In turn: a third whole and fully measured, a third behind a gap, a third with a defect.
TROUBLES = ("none", "gap", "void", "none", "gap", "dislocation", "none", "gap", "domain_wall")
GAP_PIXELS = 4


@dataclass(frozen=True, eq=False)
class Case:
    """A measurement and the object that made it, origins at n // 2.

    Parameters
    ----------
    name
        Tells it from all others.
    kind
        "procedural" or "atomistic".
    strain
        One of `CLASSES`.
    intensity
        Counts, float32 (n0, n1, n2); zero where not valid.
    valid
        bool, the same shape.
    truth
        The object, complex64, in the intensity's scale: ``abs(propagate(truth))**2`` is expected.
    facts
        Seed, phase range (rad), counts in the brightest voxel, oversampling, trouble.
    """

    name: str
    kind: str
    strain: str
    intensity: NDArray[np.float32]
    valid: NDArray[np.bool_]
    truth: NDArray[np.complex64]
    facts: dict[str, Any] = field(default_factory=dict)

    def measurement(self) -> Measurement:
        """Return what a start and a refinement get to see, with gaps filled as the pipeline fills them."""
        magnitude = to_corner(torch.from_numpy(np.sqrt(self.intensity)))
        if self.valid.all():
            return Measurement(magnitude)
        filled = fill_invalid(self.intensity, self.valid)
        return Measurement(
            magnitude, to_corner(torch.from_numpy(self.valid)), filled=to_corner(torch.from_numpy(filled))
        )

    def at(self, side: int) -> "Case":
        """Return the same crystal seen in the central window of the pattern: in coarser voxels."""
        window = window_on_grid(self.intensity.shape, (side,) * 3)
        coarse = backpropagate(propagate(torch.from_numpy(self.truth))[window]).numpy()
        return replace(self, intensity=self.intensity[window], valid=self.valid[window], truth=coarse)


def strain_class(phase_range_rad: float) -> str:
    """Return the class of a phase range, peak to valley; what exceeds the last one belongs to it."""
    return next((name for name, (_, high) in CLASSES.items() if phase_range_rad < high), list(CLASSES)[-1])


def procedural_cases(per_class: int = 6, counts: tuple[float, ...] = COUNTS) -> Iterator[Case]:
    """Yield crystals of every class evenly over its phase ranges, each at every number of counts.

    Parameters
    ----------
    per_class
        Crystals of each class; every third is behind a gap, every third has a defect.
    counts
        Expected in the brightest voxel.
    """
    for number, (strain, (low, high)) in enumerate(CLASSES.items()):
        for i in range(per_class):
            phase_range = low + (high - low) * (i + 0.5) / per_class
            for expected in counts:
                seed = FIRST_SEED + 1000 * number + i
                trouble = TROUBLES[i % len(TROUBLES)]
                yield procedural_case(_name(strain, i, expected), seed, phase_range, expected, trouble)


def atomistic_cases(path: Path, per_class: int = 4, counts: tuple[float, ...] = COUNTS) -> Iterator[Case]:
    """Yield views of relaxed crystals for every class, each at every number of counts.

    Parameters
    ----------
    path
        A set that judges (`atomistic_set.load_set`), taken in turn.
    per_class
        Views of each class; every third is behind a gap.
    counts
        Expected in the brightest voxel.
    """
    shelf = Shelf.of(load_set(path))
    for number, (strain, phases) in enumerate(CLASSES.items()):
        views = Views(phase_range_rad=phases, oversampling=OVERSAMPLING)
        for i in range(per_class):
            item = (number * per_class + i) % len(shelf)
            seed = FIRST_SEED + ATOMISTIC + 1000 * number + i
            generator = torch.Generator().manual_seed(seed)
            seen = atomistic_crystals(shelf, 1, SIDE, generator, views, torch.tensor([item]))
            # Drawn on a finer grid than it is measured on.
            field_there = propagate(seen.density[0])[window_on_grid(seen.density.shape[1:], (SIDE,) * 3)]
            density = backpropagate(field_there).numpy()
            for expected in counts:
                rng = np.random.default_rng(seed)
                facts = {
                    "seed": seed,
                    "item": item,
                    "phase_range_rad": float(seen.phase_range_rad[0]),
                    "oversampling": round(float(seen.oversampling[0]), 2),
                    "trouble": "gap" if i % 3 == 1 else "none",
                }
                name = _name(f"atomistic-{strain}", i, expected)
                case = measured(name, "atomistic", density, expected, rng, facts)
                yield behind_gap(case, rng) if facts["trouble"] == "gap" else case


def _name(strain: str, number: int, counts: float) -> str:
    return f"{strain.replace(' ', '-')}-{number:02d}-1e{round(np.log10(counts))}"


def procedural_case(
    name: str, seed: int, phase_range_rad: float, counts: float, trouble: str = "none"
) -> Case:
    """Return a random crystal's pattern.

    The crystal takes 1/2 to 1/3.5 of each axis, each on its own; it lies anywhere within a voxel.

    Parameters
    ----------
    name
        Of the case.
    seed
        The same one gives the same crystal, whatever the counts.
    phase_range_rad
        Of the smooth strain, peak to valley; a defect's comes on top.
    counts
        Expected in the brightest voxel.
    trouble
        "none", "gap" or a defect's name.

    Raises
    ------
    InvalidInput
        If there is no such trouble.
    """
    rng = np.random.default_rng(seed)
    defect: DefectName | None = next((d for d in DEFECTS if d == trouble), None)
    if defect is None and trouble not in ("none", "gap"):
        raise InvalidInput(f"trouble must be none, gap, {', '.join(DEFECTS)}, got {trouble!r}")
    crystal = random_crystal(rng, 100.0, phase_range_rad, defect=defect)
    oversampling = rng.uniform(*OVERSAMPLING, 3)
    voxels_nm = np.ptp(crystal.body.vertices(), axis=0) * oversampling / SIDE
    placed = replace(crystal, body=crystal.body.moved(rng.uniform(-0.5, 0.5, 3) * voxels_nm))
    density = sample(placed, np.diag(voxels_nm), (SIDE, SIDE, SIDE))
    facts = {
        "seed": seed,
        "phase_range_rad": float(phase_range_rad),
        "oversampling": oversampling.round(2).tolist(),
        "trouble": trouble,
    }
    case = measured(name, "procedural", density, counts, rng, facts)
    return behind_gap(case, rng) if trouble == "gap" else case


def measured(
    name: str,
    kind: str,
    density: NDArray[np.complex64],
    counts: float,
    rng: np.random.Generator,
    facts: dict[str, Any],
) -> Case:
    """Return an object's pattern with counting noise, its peak centred as the pipeline centres it.

    Parameters
    ----------
    name, kind
        Of the case.
    density
        complex64 (n0, n1, n2), origin at n // 2, in any scale.
    counts
        Expected in the brightest voxel.
    rng
        Of the counting noise.
    facts
        With ``phase_range_rad``, which chooses the class.
    """
    field_there = propagate(torch.from_numpy(density)).numpy()
    scale = np.sqrt(counts) / np.abs(field_there).max()
    intensity = rng.poisson(np.abs(scale * field_there) ** 2).astype(np.float32)
    volume, roll = centre_peak(DiffractionVolume(intensity, np.ones(intensity.shape, dtype=np.bool_)))
    # A pattern that is moved by whole voxels is that of the object with a phase ramp.
    truth = (density * quality.ramp(density.shape, roll) * scale).astype(np.complex64)
    strain = strain_class(facts["phase_range_rad"])
    return Case(name, kind, strain, volume.intensity, volume.valid, truth, {**facts, "counts": counts})


def behind_gap(case: Case, rng: np.random.Generator) -> Case:
    """Return the case as a detector with dead pixels and a gap close to the peak sees it."""
    rows, columns = case.valid.shape[1:]
    good = np.ones((rows, columns), dtype=np.bool_)
    first = columns // 2 + int(rng.integers(3, 9)) * int(rng.choice([-1, 1]))
    good[:, first : first + GAP_PIXELS] = False
    good[rng.integers(0, rows, 40), rng.integers(0, columns, 40)] = False
    valid = np.broadcast_to(good, case.valid.shape).copy()
    return replace(case, intensity=np.where(valid, case.intensity, 0).astype(np.float32), valid=valid)

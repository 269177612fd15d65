"""How good is a start: alone, and as what a refinement begins with.

Every start is judged alike: it gets a `refine.Measurement`, gives `refine.Objects`, and these are compared
with the truth after what diffraction can't tell (twin, place, global phase) was removed.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdinn import quality
from bluesky_cdinn.forward import AXES, to_centre, to_corner
from bluesky_cdinn.refine import Measurement, Objects, Step, run
from bluesky_cdinn.starts import Start
from bluesky_cdinn.training.held_out import Case

Row = dict[str, Any]

# An object is found when both hold: the refinement has nothing left to search then, only to settle.
FOUND_IOU, FOUND_RMSE = 0.9, 0.2
# Objects that correlate less, at the best whole-voxel shift, can't be found ones: those that are reach
# 0.85 even half a voxel off along each axis. It spares the costly comparison.
PROMISING = 0.8


@dataclass(frozen=True)
class Score:
    """How far an object is from the truth.

    Parameters
    ----------
    chi2
        Of its diffraction from the counts on all valid voxels, at the scale that fits best.
    iou
        Intersection over union of the supports, at half the typical amplitude.
    phase_rmse
        rms difference of phase where both have their support, rad; NaN where they share none.
    correlation
        Normalised complex correlation, 0 to 1.
    """

    chi2: float
    iou: float
    phase_rmse: float
    correlation: float

    @property
    def found(self) -> bool:
        """Whether the object is the crystal: support and phase nearly right."""
        return self.iou > FOUND_IOU and self.phase_rmse < FOUND_RMSE


def score(density: Tensor, measurement: Measurement, case: Case) -> Score:
    """Compare an object with the truth of a case.

    Parameters
    ----------
    density
        complex64 (n0, n1, n2), origin at index 0, in any scale.
    measurement
        The case's.
    case
        On the same grid.
    """
    found = quality.compare(to_centre(density).cpu().numpy(), case.truth)
    chi2 = scaled_chi2(density, measurement)
    return Score(chi2, found.iou, found.phase_rmse, found.correlation)


def scaled_chi2(density: Tensor, measurement: Measurement) -> float:
    """Return chi2 of an object (origin at index 0) at the scale that fits best: 0 to 1."""
    model = torch.fft.fftn(density, dim=AXES, norm="ortho").abs()
    if measurement.fitted is not None:
        model = model * measurement.fitted
    overlap, power = float((model * measurement.target).sum()), float(model.square().sum())
    return 1 - overlap**2 / (power * measurement.power) if power else 1.0


def score_start(start: Start, cases: Iterable[Case], *, seed: int = 0) -> list[Row]:
    """Score what a start gives by itself, one object for each case.

    Parameters
    ----------
    start
        Classical or learned.
    cases
        See `held_out`.
    seed
        Of the start's random choices.

    Returns
    -------
    list of dict
        For each case its name, kind, class and facts, `Score`'s numbers, and ``cpu_s``, the start's own.
    """
    rows = []
    for case in cases:
        measurement = case.measurement()
        objects, cpu_s = begin(start, measurement, seed)
        result = score(objects.density[0] * objects.support[0], measurement, case)
        rows.append({**row_of(case), **asdict(result), "found": result.found, "cpu_s": cpu_s})
    return rows


def row_of(case: Case) -> Row:
    """Return what a row of results says of its case."""
    return {"case": case.name, "kind": case.kind, "strain": case.strain, **case.facts}


@torch.no_grad()
def begin(start: Start, measurement: Measurement, seed: int = 0) -> tuple[Objects, float]:
    """Return a start's single object and the CPU seconds it took."""
    begun = time.process_time()
    objects = start(measurement, 1, torch.Generator().manual_seed(seed))
    return objects, time.process_time() - begun


@dataclass(frozen=True)
class Point:
    """Where a refinement is.

    Parameters
    ----------
    step
        Iterations done.
    cpu_s
        CPU seconds so far, the start's included and those of judging it left out.
    correlation
        With the truth, at the best whole-voxel shift, either twin.
    chi2
        As in `Score`.
    score
        In full where the correlation is promising, else None.
    """

    step: int
    cpu_s: float
    correlation: float
    chi2: float
    score: Score | None = None

    @property
    def found(self) -> bool:
        """Whether the object is the crystal."""
        return self.score is not None and self.score.found


@torch.no_grad()
def follow(
    start: Start,
    recipe: Callable[[Measurement], Sequence[Step]],
    case: Case,
    *,
    every: int = 10,
    beyond: int | None = None,
    seed: int = 0,
) -> Iterator[Point]:
    """Refine a start, and say every few iterations how far from the truth it is.

    Parameters
    ----------
    start, case
        What begins, and on what.
    recipe
        Makes the steps for a measurement; what it computes for that is not timed.
    every
        Iterations between two points; the first point is the start itself.
    beyond
        Iterations after which to end once the crystal is found; None goes through to the recipe's end.
    seed
        Of the start's random choices.
    """
    measurement = case.measurement()
    objects, cpu_s = begin(start, measurement, seed)
    steps = timed(run(recipe(measurement), objects, measurement))
    judge = Judge(case, measurement)
    point = judge(objects, 0, cpu_s)
    yield point
    last = None
    for number, (state, took) in enumerate(steps, start=1):
        cpu_s += took
        if number % every:
            continue
        if last is None and beyond is not None and point.found:
            last = point.step + beyond
        if last is not None and number > last:
            return
        point = judge(state, number, cpu_s)
        yield point


def timed(steps: Iterator[Objects]) -> Iterator[tuple[Objects, float]]:
    """Yield each iteration's objects and CPU seconds, with nothing of what is done between iterations."""
    while True:
        begun = time.process_time()
        objects = next(steps, None)
        if objects is None:
            return
        yield objects, time.process_time() - begun


class Judge:
    """Says cheaply how far objects are from a case's truth, and thoroughly where it matters."""

    def __init__(self, case: Case, measurement: Measurement) -> None:
        self.case, self.measurement = case, measurement
        truth = to_corner(torch.from_numpy(case.truth))
        self.spectrum = torch.fft.fftn(truth, norm="ortho")
        self.norm = float(truth.abs().square().sum().sqrt())

    def correlation(self, density: Tensor) -> float:
        """Return the complex correlation at the best whole-voxel shift; the twin's spectrum is conjugate."""
        spectrum = torch.fft.fftn(density, norm="ortho")
        norm = self.norm * float(spectrum.abs().square().sum().sqrt())
        overlaps = [torch.fft.ifftn(self.spectrum * s).abs().max() for s in (spectrum, spectrum.conj())]
        return float(max(overlaps)) * density.numel() / norm if norm else 0.0

    def __call__(self, objects: Objects, step: int, cpu_s: float) -> Point:
        """Judge the first of the objects."""
        density = objects.density[0] * objects.support[0]
        correlation = self.correlation(density)
        if correlation < PROMISING:
            return Point(step, cpu_s, correlation, scaled_chi2(density, self.measurement))
        full = score(density, self.measurement, self.case)
        return Point(step, cpu_s, correlation, full.chi2, full)


def median(rows: Iterable[Row], key: str) -> float:
    """Return the median of a number over rows; NaN counts as worst."""
    values = np.array([row[key] for row in rows], dtype=float)
    return float(np.median(np.nan_to_num(values, nan=np.inf)))


def table(rows: Sequence[Row], by: Sequence[str] = ("kind", "strain", "counts")) -> str:
    """Return medians of `score_start`'s rows as a Markdown table, one line for each group.

    Parameters
    ----------
    rows
        Of one start.
    by
        The fields that group them, in the order in which they are met.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    head = [*by, "crystals", "chi2", "IoU", "phase RMSE, rad", "correlation", "found", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(by) + "|---:" * (len(head) - len(by)) + "|"]
    for group, members in groups.items():
        cells = [f"{value:.0e}" if isinstance(value, float) else str(value) for value in group]
        cells += [str(len(members)), f"{median(members, 'chi2'):.4f}", f"{median(members, 'iou'):.3f}"]
        cells += [f"{median(members, 'phase_rmse'):.3f}", f"{median(members, 'correlation'):.3f}"]
        cells += [f"{sum(row['found'] for row in members)}", f"{median(members, 'cpu_s'):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"

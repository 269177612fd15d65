"""From a measurement to its object: the recipe, level by level.

What it rests on was measured (docs/explanations/phasing.md): random starts with an amplitude ceiling
succeed on the coarsest level; that two of them agree tells that they did; and a coarse solution needs few
iterations on each finer level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bluesky_cdinn import quality
from bluesky_cdinn.forward import AXES, to_centre, to_corner
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.refine import HIO, AcceleratedER, BreakTwins, Measurement, Objects, ShrinkWrap, Step, run
from bluesky_cdinn.starts import Start
from bluesky_cdinn.support import autocorrelation_support, gaussian_blur, typical_amplitude

Shape = tuple[int, int, int]
Watch = Callable[[Objects], None]

# Complex correlation from which two independent objects count as the same.
AGREED = 0.9
# How often the coarse search is repeated, each time longer, while no two starts agree.
ATTEMPTS = 3
# A crystal's amplitude is even; what exceeds this multiple of it is stagnation, not matter.
CEILING = 1.15
# The support may exceed the autocorrelation's estimate of the crystal's volume by this.
ROOM = 1.3


@dataclass(frozen=True, eq=False)
class Problem:
    """A measurement on its full grid, to be phased on any window of it.

    Parameters
    ----------
    measurement
        Full grid, origin at index 0.
    levels
        Window shapes, coarse to fine; the last is the full grid.
    """

    measurement: Measurement
    levels: Sequence[Shape]

    def at(self, shape: Shape) -> Measurement:
        """Return the central window of the measurement."""
        full = self.measurement
        if shape == tuple(full.magnitude.shape):
            return full
        window = window_on_grid(full.magnitude.shape, shape)
        fitted = None if full.fitted is None else to_corner(to_centre(full.fitted)[window])
        return Measurement(to_corner(to_centre(full.magnitude)[window]), fitted)


def search(
    problem: Problem, start: Start, count: int, generator: torch.Generator, watch: Watch
) -> tuple[Objects, float]:
    """Phase several starts on the coarsest level until two agree.

    Returns
    -------
    Objects
        All of them, the best (lowest chi2) first.
    float
        The correlation between the best and the one that agrees with it most; NaN for one start.
    """
    measurement = problem.at(problem.levels[0])
    room = max(1, int(ROOM * autocorrelation_support(measurement.magnitude.square()).sum()))
    found: Objects | None = None
    agreement = float("nan")
    for attempt in range(ATTEMPTS if count > 1 else 1):
        objects = start(measurement, count, generator)
        for state in run(search_recipe(room, effort=1 + attempt), objects, measurement):
            watch(state)
        found = objects if found is None else found.join(objects)
        found = found.keep(found.chi2.argsort())
        if count > 1:
            agreement = best_agreement(found)
            if agreement > AGREED:
                break
    assert found is not None
    return found, agreement


def search_recipe(room: int, effort: int = 1) -> list[Step]:
    """Return the steps that find an object from nothing; ``room`` is its support's largest volume, voxels."""
    cycles = 10 * effort
    steps: list[Step] = [HIO(20, ceiling=CEILING), BreakTwins(), HIO(20, ceiling=CEILING)]
    for cycle in range(cycles):
        done = cycle / (cycles - 1)
        steps.append(HIO(20, ceiling=CEILING))
        # The support tightens and its smoothing narrows as the object gets clear.
        steps.append(ShrinkWrap(threshold=0.15 + 0.1 * done, sigma=2 - done, max_voxels=room))
    return [*steps, AcceleratedER(20)]


def climb(objects: Objects, problem: Problem, level: Shape, watch: Watch) -> Objects:
    """Take objects to a finer level and settle them there."""
    measurement = problem.at(level)
    finer = resample(objects, level)
    for state in run(climb_recipe(), finer, measurement):
        watch(state)
    return finer


def climb_recipe() -> list[Step]:
    """Return the steps that settle an object known from a coarser level."""
    steps: list[Step] = []
    for threshold in (0.2, 0.25):
        steps += [HIO(15, ceiling=1.3), AcceleratedER(10), ShrinkWrap(threshold, sigma=0.8)]
    return [*steps, AcceleratedER(15)]


def resample(objects: Objects, shape: Shape) -> Objects:
    """Return objects on a finer grid: the same field, zero where the coarse level had none."""
    field = to_centre(torch.fft.fftn(objects.density, dim=AXES, norm="ortho"))
    whole = torch.zeros((len(field), *shape), dtype=field.dtype, device=field.device)
    whole[(slice(None), *window_on_grid(shape, field.shape[-3:]))] = field
    density = torch.fft.ifftn(to_corner(whole), dim=AXES, norm="ortho")
    amplitude = density.abs()
    support = gaussian_blur(amplitude, 1.0) > 0.2 * typical_amplitude(amplitude)
    return Objects(density, support.to(amplitude.dtype), objects.chi2.clone())


def polish(objects: Objects, measurement: Measurement, watch: Watch) -> Objects:
    """Fit objects to the end inside a support that is found a last time."""
    recipe: list[Step] = [ShrinkWrap(0.25, sigma=0.7), AcceleratedER(40)]
    for state in run(recipe, objects, measurement):
        watch(state)
    return objects


def best_agreement(objects: Objects) -> float:
    """Return the largest complex correlation of the first object with any other."""
    densities = to_centre(objects.density).cpu().numpy()
    return max(quality.correlation(other, densities[0]) for other in densities[1:])

"""From a measurement to its object: the recipe, level by level.

What it rests on was measured (docs/explanations/phasing.md): random starts with an amplitude ceiling
succeed on the coarsest level; that two of them agree tells that they did; and a coarse solution needs few
iterations on each finer level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bluesky_cdinn import quality
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.guess import CEILING, guessed_support
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.refine import (
    HIO,
    BreakTwins,
    CentreObjects,
    Measurement,
    Objects,
    ShrinkWrap,
    Step,
    held_out_deviance,
    parts,
    power_of,
    run,
)
from bluesky_cdinn.starts import Start
from bluesky_cdinn.support import autocorrelation_support, phase_step
from bluesky_cdinn.support_box import SupportBox
from bluesky_cdinn.voxels import unaveraged
from bluesky_cdinn.windows import measurement_window, objects_on

Shape = tuple[int, int, int]
Watch = Callable[[Objects], None]

# Complex correlation of two independent objects from which they count as the same, and as surely so.
AGREED, SURE = 0.9, 0.97
# Of the interior against counting noise; see lbfgs.LBFGS.
SMOOTHNESS = 100.0
# A network's guess whose chi2 exceeds that of counting noise by more is not of anything that it was trained
# on; and by how much a support may exceed the guessed one's.
TRUSTED, ROOM_OF_GUESS = 0.1, 1.2
# How often the network is asked, each time from other random phases, and of how many of an attempt's starts:
# most guesses are good, so that few are worth their while.
ROUNDS, GUESSES = 3, 2
# How many times the iterations and the smoothing a blurred pattern's last fit takes.
BLURRED = 2
# Complex correlation of two fitted objects under which they are fitted once more.
SETTLED = 0.995
# Share of the typical amplitude at which a smoothed crystal ends in the last fits.
EDGE = 0.15
# A phase that turns by more than so many rad, rms, from a voxel to the next is steep: what is cut off such a
# pattern rings so far that supports would grow into it, and end at this share instead.
STEEP, STEEP_EDGE = 0.6, 0.2
# How often such objects are fitted once more while their chi2, over so many times that of counting noise,
# falls to this share: supports far too small grow slowly.
MORE_FITS, UNSETTLED, FALLS = 3, 3.0, 0.7
# Voxels over which a pattern is taken for a measured one.
LARGEST_FOLDED = 2**22
# What bounds the support in each attempt: the level that the autocorrelation is cut at, by how much the
# crystal may exceed what is left, and how long to try. A strongly strained crystal's autocorrelation falls
# off so fast that a high level loses half of it; a real one's has a halo, of defects or neighbours, that a
# low level takes for the crystal.
ATTEMPTS = ((0.003, 1.3, 1), (0.02, 1.6, 1), (0.003, 1.3, 2))


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
        return measurement_window(self.measurement, shape)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Parameters
    ----------
    objects
        Two, each the mean of half of the starts that agree in the attempt that agreed best; or one, of a
        single start.
    start
        Where that attempt started from: "network" or "classical".
    guess_chi2
        The least of the network's guesses' own; None where it was not asked.
    """

    objects: Objects
    start: str
    guess_chi2: float | None = None


def search(
    problem: Problem,
    start: Start,
    count: int,
    generator: torch.Generator,
    watch: Watch,
    guess: Start | None = None,
) -> Found:
    """Phase several starts on the coarsest level until two agree.

    Parameters
    ----------
    problem
        What to phase.
    start
        Knows nothing of the object but where it may be.
    count
        Starts in each attempt.
    generator
        Makes their choices.
    watch
        Gets the objects after each iteration.
    guess
        A network's; asked first. Where its guesses fit the measurement badly, or don't lead to the same
        object, the classical starts follow.
    """
    measurement = problem.at(problem.levels[0])
    best, origin, guess_chi2 = None, "classical", None
    for _ in range(ROUNDS if guess is not None else 0):
        assert guess is not None
        objects = guess(measurement, min(count, GUESSES), generator)
        least = float(objects.chi2.min())
        guess_chi2 = least if guess_chi2 is None else min(least, guess_chi2)
        # So put, NaN is not trusted either.
        if not guess_chi2 - measurement.noise <= TRUSTED:
            break
        room = ROOM_OF_GUESS * float(objects.support.sum((-3, -2, -1)).max())
        attempt = phased(objects, measurement, guess_recipe(max(1, int(room))), watch)
        if best is None or attempt.agreement > best.agreement:
            best, origin = attempt, "network"
        if count == 1 or best.agreement > SURE:
            return Found(best.halves(), origin, guess_chi2)
    for level, excess, effort in ATTEMPTS if count > 1 else ATTEMPTS[:1]:
        room = excess * float(autocorrelation_support(measurement.object_intensity, level).sum())
        objects = start(measurement, count, generator)
        attempt = phased(objects, measurement, search_recipe(max(1, int(room)), effort), watch)
        if best is None or attempt.agreement > best.agreement:
            best, origin = attempt, "classical"
        # A sure one ends the search; one that merely agreed may yet be bettered by the other bound.
        if best.agreement > SURE or (attempt is not best and best.agreement > AGREED):
            break
    assert best is not None
    return Found(best.halves(), origin, guess_chi2)


def phased(objects: Objects, measurement: Measurement, recipe: list[Step], watch: Watch) -> "Attempt":
    """Apply a recipe to starts and rank what they come to."""
    for state in run(recipe, objects, measurement):
        watch(state)
    return Attempt.of(objects)


@dataclass(frozen=True, eq=False)
class Attempt:
    """What one batch of starts came to.

    Parameters
    ----------
    objects
        The lowest chi2 first, then by agreement with it.
    agreements
        Complex correlation of each with the first.
    """

    objects: Objects
    agreements: list[float]

    @classmethod
    def of(cls, objects: Objects) -> "Attempt":
        """Rank objects."""
        objects = objects.keep(objects.chi2.argsort())
        densities = to_centre(objects.density).cpu().numpy()
        agreement = [1.0, *(quality.correlation(d, densities[0]) for d in densities[1:])]
        order = sorted(range(len(agreement)), key=lambda i: -agreement[i])
        return cls(objects.keep(torch.tensor(order)), [agreement[i] for i in order])

    @property
    def agreement(self) -> float:
        """Complex correlation of the first two; NaN for one start."""
        return self.agreements[1] if len(self.agreements) > 1 else float("nan")

    def halves(self) -> Objects:
        """Return the means of the first, third, ... and of the second, fourth, ... that agree.

        Means lose what the starts don't have in common; two independent ones can still be compared.
        """
        if len(self.agreements) < 2:
            return self.objects
        densities = list(to_centre(self.objects.density).cpu().numpy())
        same = [i for i, agreement in enumerate(self.agreements) if agreement > AGREED or i < 2]
        aligned = [quality.align(densities[i], densities[0]) if i else densities[0] for i in same]
        means = np.stack([np.mean(aligned[half::2], axis=0) for half in range(2)])
        density = to_corner(torch.from_numpy(means).to(self.objects.density.device))
        return Objects(density, guessed_support(density), self.objects.chi2[:2].clone())


def agreement(objects: Objects) -> float:
    """Return the complex correlation of the first two objects; 1 for a single one, which can't disagree."""
    if len(objects.density) < 2:
        return 1.0
    # Where the origin is doesn't matter here.
    first, second = objects.density[:2].cpu().numpy()
    return quality.correlation(second, first)


def search_recipe(room: int, effort: int = 1) -> list[Step]:
    """Return the steps that find an object from nothing; ``room`` is its support's largest volume, voxels."""
    cycles = 10 * effort
    steps: list[Step] = [HIO(20, ceiling=CEILING), BreakTwins(), HIO(20, ceiling=CEILING)]
    for cycle in range(cycles):
        done = cycle / (cycles - 1)
        steps.append(HIO(20, ceiling=CEILING))
        # The support tightens and its smoothing narrows as the object gets clear.
        steps.append(ShrinkWrap(threshold=0.15 + 0.1 * done, sigma=2 - done, max_voxels=room))
    return [*steps, LBFGS(10)]


def guess_recipe(room: int) -> list[Step]:
    """Return the steps that settle a network's guess; ``room`` is its support's largest volume, voxels."""
    steps: list[Step] = []
    for done in (cycle / 4 for cycle in range(5)):
        # As wide at first as where nothing is known: a facet that the guess has a voxel off comes right.
        wrap = ShrinkWrap(threshold=0.15 + 0.1 * done, sigma=2 - done, max_voxels=room)
        steps += [HIO(20, ceiling=CEILING), wrap]
    return [*steps, LBFGS(10)]


def climb(objects: Objects, problem: Problem, level: Shape, watch: Watch, effort: int = 1) -> Objects:
    """Take objects to a finer level, or stay on theirs, and settle them there."""
    measurement = problem.at(level)
    return one_by_one(climb_recipe(effort), objects_on(objects, level), measurement, watch)


def climb_recipe(effort: int) -> list[Step]:
    """Return the steps that settle an object known from a coarser level."""
    steps: list[Step] = []
    for threshold in (0.2, 0.25):
        steps += [HIO(10 * effort, ceiling=1.3), LBFGS(5), ShrinkWrap(threshold, sigma=0.8)]
    return steps


def fitted(objects: Objects, problem: Problem, watch: Watch) -> Objects:
    """Fit objects to the end on the finest level, best first, and once more those that aren't there yet.

    A shape that is nearly its own twin, of weak phase, can settle between the two: where objects differ, they
    go on from farther back. A strongly strained crystal can be on its way still.
    """
    measurement = problem.measurement
    objects = polish(objects, measurement, watch)
    if agreement(objects) < SETTLED:
        objects = climb(objects, problem, problem.levels[-1], watch, effort=2)
        objects = polish(objects, measurement, watch)
    for _ in range(MORE_FITS if is_steep(objects) else 0):
        before = float(objects.chi2.min())
        if before <= UNSETTLED * measurement.noise:
            break
        objects = polish(objects, measurement, watch)
        if float(objects.chi2.min()) > FALLS * before:
            break
    return objects.keep(objects.chi2.argsort())


def polish(objects: Objects, measurement: Measurement, watch: Watch) -> Objects:
    """Fit objects to the end inside a support that is found a last time."""
    # What blur has taken of the long lags comes back slowly, and with it noise.
    more = BLURRED if measurement.detection is not None and any(measurement.detection.blur) else 1
    wrap = last_wrap(objects)
    recipe: list[Step] = [
        CentreObjects(),
        wrap,
        *([HIO(10, ceiling=1.1)] if is_steep(objects) else []),
        # Strong smoothing first: it finds where weaker smoothing would take long to get.
        LBFGS(12 * more, 4 * SMOOTHNESS, least=0.05),
        wrap,
        LBFGS(25 * more, SMOOTHNESS * more),
    ]
    return one_by_one(recipe, objects, measurement, watch)


def last_wrap(objects: Objects) -> ShrinkWrap:
    """Return the step that finds the support of objects that are nearly right."""
    return ShrinkWrap(STEEP_EDGE if is_steep(objects) else EDGE, sigma=0.7)


def is_steep(objects: Objects) -> bool:
    """Return whether the first object's phase turns so fast that its means over voxels lose what it is."""
    density, support = objects.density[:1], objects.support[:1]
    box = SupportBox.of(support)
    return phase_step((box.cut(density) * box.cut(support))[0]) > STEEP


def one_by_one(recipe: list[Step], objects: Objects, measurement: Measurement, watch: Watch) -> Objects:
    """Apply a recipe to objects in place, on a CPU to one after the other, as their transforms are.

    What a fit remembers is then held for one alone.
    """
    for part in parts(objects.density):
        some = Objects(objects.density[part], objects.support[part], objects.chi2[part])
        for state in run(recipe, some, measurement):
            watch(state)
        objects.density[part], objects.support[part] = some.density, some.support
        objects.chi2[part] = some.chi2
    return objects


def finish(objects: Objects, measurement: Measurement, watch: Watch) -> Objects:
    """Fit objects found on a smaller grid to the measurement on its own, with zeros around them."""
    shape = measurement.magnitude.shape
    starts = len(objects.density)
    whole = Objects.start(
        torch.zeros((starts, *shape), dtype=objects.density.dtype, device=objects.density.device),
        torch.zeros((starts, *shape), device=objects.density.device),
    )
    window = (slice(None), *window_on_grid(shape, objects.density.shape[-3:]))
    # The objects are centred at n // 2, away from the smaller box's edge.
    whole.density[window], whole.support[window] = objects.density, objects.support
    del objects
    # The measured grid has more photons a degree of freedom, and needs less smoothing.
    recipe: list[Step] = [
        LBFGS(8, SMOOTHNESS / 2),
        ShrinkWrap(0.12, sigma=0.7),
        LBFGS(30, SMOOTHNESS / 2),
    ]
    for state in run(recipe, whole, measurement):
        watch(state)
    return whole


def as_it_scatters(objects: Objects, measurement: Measurement, watch: Watch) -> tuple[Objects, Measurement]:
    """Return objects that are the whole crystal rather than means over voxels, if that is what they are.

    A crystal's pattern goes on beyond the grid, and what is cut off it is told of its means alone. That of a
    simulated one may be all there, folded back at the edges, as a Fourier transform of it does: then it is
    predicted better without them.

    Parameters
    ----------
    objects
        Means over voxels, fitted to the end.
    measurement
        With voxels held out, by which to tell.

    Returns
    -------
    objects
        The better ones.
    measurement
        Which says what they are.
    """
    known = measurement.held_out is not None
    if not (measurement.averaged and known and objects.density[0].numel() <= LARGEST_FOLDED):
        return objects, measurement
    folded = replace(measurement, averaged=False)
    whole = Objects(unaveraged(objects.density), objects.support.clone(), objects.chi2.clone())
    for state in run([LBFGS(20, SMOOTHNESS)], whole, folded):
        watch(state)
    least = held_out_deviance(power_of(objects)[0], measurement)
    return (
        (whole, folded) if held_out_deviance(power_of(whole)[0], folded) < least else (objects, measurement)
    )


def settle(objects: Objects, measurement: Measurement, watch: Watch) -> Objects:
    """Fit objects to the held-out voxels too, once those have judged them."""
    if measurement.fitted is None or measurement.held_out is None:
        return objects
    everything = replace(measurement, fitted=measurement.fitted | measurement.held_out)
    for state in run([LBFGS(16, SMOOTHNESS / 4)], objects, everything):
        watch(state)
    return objects

"""A search under partial coherence: the blur is told from what was found, and searched without.

A blurred pattern leads to an object that is wrong for its blur, smaller and uneven. How wide the blur is can
be told of it all the same, by a fit of both (`blur`). Then the search starts again on the pattern with the
blur taken out, on a grid chosen anew, and what it finds tells the blur better, and along each axis. All later
fits see the pattern as it was measured, blur and all. Where data are clean that costs two short fits on the
coarsest level.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from bluesky_cdinn.blur import coherent_misfit, fitted_blur
from bluesky_cdinn.detection import COHERENT, Blur, Detection, without_blur
from bluesky_cdinn.phasing import SMOOTHNESS, Found, Problem, Watch
from bluesky_cdinn.posing import Posed, sampled
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.windows import objects_on

# Where the fit of a blur starts, one sigma in voxels; and what else is searched without, where the first left
# a deviance a voxel of more and is wider than so much.
USUAL: Blur = (0.35, 0.35, 0.35)
WIDE: Blur = (0.9, 0.9, 0.9)
BAD, UNSURE = 2.5, 0.6
# Less is none, voxels.
LEAST_SIGMA = 0.05
# Searches at most in the pattern without its blur, beside that without a wide one; and by what share sigma
# must have moved for another.
SEARCHES, MOVED = 4, 0.1
# Deviance of a voxel, and share of it, that a blur must take away to be one: of what few counts, uneven
# frames and a sloped background leave the best takes 0.02 of 1, 0.12 of 9 and 0.14 of 30; blur 0.13 of 0.9.
LEAST, SHARE = 0.03, 0.02


def searched_again(
    posed: Posed, seed: int, found: Found, search: Callable[[Problem], Found], watch: Watch
) -> tuple[Problem, Found]:
    """Return a working problem with the blur that its pattern has, and what a search without it finds.

    Parameters
    ----------
    posed
        Stays as it is.
    seed
        As `posing.sampled` takes it.
    found
        What a search of its working problem came to that took the pattern for coherent.
    search
        How a problem is searched.
    watch
        Gets the objects after each iteration.
    """
    coherent = coherent_misfit(*coarsest(found.objects, posed.working), SMOOTHNESS, watch)
    if coherent is None:
        return posed.working, found
    enough = worthwhile(coherent)
    for start in (USUAL, WIDE):
        # Of an object that is wrong for its blur no more is told than how wide that is.
        width, misfit = told(found, posed.working, posed, start, watch, alike=True)
        if misfit < enough:
            break
    else:
        return posed.working, found

    def tried(blur: Blur) -> Tried:
        problem = sampled(posed.full, seed, blur)
        again = search(deblurred(blurred(problem, on_grid(blur, posed.full, problem.measurement))))
        better, misfit = told(again, problem, posed, blur, watch, alike=False)
        seen = blurred(problem, on_grid(better, posed.full, problem.measurement))
        moved = float(np.abs(np.subtract(better, blur)).max()) / max(*better, LEAST_SIGMA)
        return Tried(seen, again, better, misfit, moved)

    last = tried(width)
    if last.misfit > BAD and max(last.blur) > UNSURE:
        last = min(last, tried(WIDE), key=lambda one: one.misfit)
    for _ in range(SEARCHES - 1):
        if last.moved <= MOVED:
            break
        last = tried(last.blur)
    return (last.problem, last.found) if last.misfit < enough else (posed.working, found)


@dataclass(frozen=True, eq=False)
class Tried:
    """What a search without a blur came to.

    Parameters
    ----------
    problem
        With the blur that fits best to what was found.
    found
        The objects.
    blur
        The problem's, in voxels of the whole grid.
    misfit
        Poisson deviance a voxel of the coarsest level.
    moved
        How far the blur lies from that which was searched without, as a share of it.
    """

    problem: Problem
    found: Found
    blur: Blur
    misfit: float
    moved: float


def told(
    found: Found, problem: Problem, posed: Posed, start: Blur, watch: Watch, *, alike: bool
) -> tuple[Blur, float]:
    """Return the blur that fits best to what was found in a problem, and the deviance a voxel.

    Both blurs are in voxels of the whole grid; ``alike`` is as `fitted_blur` takes it.
    """
    start = on_grid(start, posed.full, problem.measurement)
    known = coarsest(found.objects, problem)
    blur, misfit = fitted_blur(*known, SMOOTHNESS, watch, start, alike=alike)
    return on_grid(blur, problem.measurement, posed.full), misfit


def blur_of(objects: Objects, problem: Problem, watch: Watch) -> Blur:
    """Return the blur, voxels, that fits best to objects known from before, which stay as they are."""
    known = coarsest(objects, problem)
    coherent = coherent_misfit(*known, SMOOTHNESS, watch)
    if coherent is None:
        return COHERENT
    width, _ = fitted_blur(*known, SMOOTHNESS, watch, USUAL, alike=True)
    blur, misfit = fitted_blur(*known, SMOOTHNESS, watch, width, alike=False)
    return blur if misfit < worthwhile(coherent) else COHERENT


def worthwhile(coherent: float) -> float:
    """Return what a deviance must fall below for a blur to be one."""
    return coherent - max(LEAST, SHARE * coherent)


def on_grid(blur: Blur, old: Measurement, new: Measurement) -> Blur:
    """Return a blur in voxels of another grid over the same range of frequencies."""
    shapes = zip(blur, old.magnitude.shape, new.magnitude.shape, strict=True)
    a, b, c = (sigma * m / n for sigma, n, m in shapes)
    return a, b, c


def coarsest(objects: Objects, problem: Problem) -> tuple[Objects, Measurement]:
    """Return the first of some objects, and what they were found in, on a problem's coarsest level."""
    level = problem.levels[0]
    there = objects_on(objects.keep(torch.arange(1)), level)
    return there, replace(problem.at(level), detection=None)


def blurred(problem: Problem, blur: Blur) -> Problem:
    """Return the problem of a blurred pattern."""
    a, b, c = problem.measurement.magnitude.shape
    seen = Detection((a, b, c), blur) if any(blur) else None
    return Problem(replace(problem.measurement, detection=seen), problem.levels)


def deblurred(problem: Problem) -> Problem:
    """Return the problem of a blurred pattern as a coherent beam would have given it, but for the noise."""
    measurement = problem.measurement
    if measurement.detection is None:
        return problem
    counts = without_blur(measurement.intensity, measurement.detection.blur)
    coherent = replace(measurement, magnitude=counts.sqrt(), filled=counts, detection=None)
    return Problem(coherent, problem.levels)


def blurred_alike(measurement: Measurement, other: Measurement) -> Measurement:
    """Return a measurement with the blur of another one over the same range of frequencies.

    Its background and scales aren't taken over: sampling counts more coarsely makes a background of its own,
    as no count is less than zero.
    """
    if other.detection is None or not any(other.detection.blur):
        return measurement
    shape = measurement.magnitude.shape
    blur = replace(other.detection, background=None, scales=None).on(tuple(shape))
    return replace(measurement, detection=blur)

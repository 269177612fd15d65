"""What real data have that ``abs(F)**2`` hasn't: looked for once there is an object, kept where it pays.

Blur by partial coherence spoils the search itself. So it is told from what a first search came to, and a
second one looks at the pattern with the blur taken out; all later fits see the pattern as it is, blur and
all. A background and the frames' scales are told by the object that has been fitted, and it is fitted anew.
Where data are clean that costs two short fits on the coarsest level and a few sums over the grid.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bluesky_cdinn.blur import found_blur
from bluesky_cdinn.detection import COHERENT, Blur, Detection, without_blur
from bluesky_cdinn.forward import AXES, amplitude_loss, poisson_deviance
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.phasing import SMOOTHNESS, Found, Problem, Watch
from bluesky_cdinn.refine import Measurement, Objects, ShrinkWrap, run
from bluesky_cdinn.scoring import Part, scored
from bluesky_cdinn.windows import objects_on

# Searches at most in the pattern without its blur, and by what share sigma must have changed for another.
SEARCHES, CHANGED = 3, 0.1
# Share of the held-out voxels' deviance that each must take away. Clean patterns of 10^3 to 10^6 counts lose
# up to 0.07 and 0.04, as magnitudes of few counts are fitted a little low (0.14 where counts were sampled
# more coarsely); a background of 0.3 counts takes 0.15 to 0.3.
WORTHWHILE: dict[Part, float] = {"background": 0.12, "scales": 0.05}
# Rounds of a scoring and so many iterations; and the iterations after the last.
ROUNDS, BETWEEN, LAST = 3, 6, 10


def searched_again(
    problem: Problem, found: Found, search: Callable[[Problem], Found], watch: Watch
) -> tuple[Problem, Found]:
    """Return a problem with the blur that its pattern has, and what a search without it finds.

    Parameters
    ----------
    problem
        Its measurement stays as it is.
    found
        What a search came to that took the pattern for coherent.
    search
        How a problem is searched.
    watch
        Gets the objects after each iteration.
    """
    first, blur = (problem, found), COHERENT
    for _ in range(SEARCHES):
        before, blur = blur, blur_of(found.objects, problem, watch)
        if not any(blur):
            # Without what was taken for blur there is another object, which has none.
            return first
        if float(np.abs(np.subtract(blur, before)).max()) <= CHANGED * max(blur):
            break
        problem = blurred(problem, blur)
        found = search(Problem(_coherent(problem.measurement), problem.levels))
    return problem, found


def blur_of(objects: Objects, problem: Problem, watch: Watch) -> Blur:
    """Return the blur under which objects fit best on a problem's coarsest level, voxels; they stay."""
    level = problem.levels[0]
    coarse = replace(problem.at(level), detection=None)
    return found_blur(objects_on(objects.keep(torch.arange(1)), level), coarse, SMOOTHNESS, watch)


def blurred(problem: Problem, blur: Blur) -> Problem:
    """Return the problem of a blurred pattern."""
    a, b, c = problem.measurement.magnitude.shape
    seen = Detection((a, b, c), blur) if any(blur) else None
    return Problem(replace(problem.measurement, detection=seen), problem.levels)


def _coherent(measurement: Measurement) -> Measurement:
    """Return the measurement as a coherent beam would have given it, but for the noise."""
    if measurement.detection is None:
        return measurement
    counts = without_blur(measurement.intensity, measurement.detection.blur)
    return Measurement(counts.sqrt(), measurement.fitted, measurement.held_out, counts)


def fitted_with_background(objects: Objects, measurement: Measurement, watch: Watch) -> Measurement:
    """Fit objects with the background and the frames' scales that better the prediction of held-out voxels.

    Parameters
    ----------
    objects
        Fitted to the measurement; the first says what there is, and all are fitted to that in place.
    measurement
        Its detection is where this starts from.

    Returns
    -------
    Measurement
        With what was found.
    """
    parts = wanted(power_of(objects)[0], measurement)
    for _ in range(ROUNDS if parts else 0):
        measurement = replace(measurement, detection=scored(power_of(objects)[0], measurement, parts))
        steps = [ShrinkWrap(0.15, sigma=0.7), LBFGS(BETWEEN, SMOOTHNESS)]
        for state in run(steps, objects, measurement):
            watch(state)
    if parts:
        for state in run([LBFGS(LAST, SMOOTHNESS)], objects, measurement):
            watch(state)
    if measurement.detection is not None:
        expected = measurement.expected(power_of(objects)).sqrt()
        objects.chi2 = amplitude_loss(expected, measurement.magnitude, measurement.fitted)
    return measurement


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


def wanted(power: Tensor, measurement: Measurement) -> frozenset[Part]:
    """Return which of background and scales better the prediction of held-out voxels by what is worthwhile.

    ``power`` is ``abs(F)**2`` of the object, float (n0, n1, n2).
    """
    if measurement.held_out is None:
        return frozenset()
    found: list[Part] = []
    now = held_out_deviance(power, measurement)
    for part, least in WORTHWHILE.items():
        with_it = scored(power, measurement, frozenset([*found, part]))
        then = held_out_deviance(power, replace(measurement, detection=with_it))
        if now - then > least * now:
            found.append(part)
            now = then
    return frozenset(found)


def held_out_deviance(power: Tensor, measurement: Measurement) -> float:
    """Return the Poisson deviance of a held-out voxel."""
    expected, counts = measurement.expected(power), measurement.magnitude.square()
    return float(poisson_deviance(expected, counts, measurement.held_out))


def power_of(objects: Objects) -> Tensor:
    """Return ``abs(F)**2``, float (starts, n0, n1, n2)."""
    field = torch.fft.fftn(objects.density, dim=AXES, norm="ortho")
    return field.real.square().add_(field.imag.square())

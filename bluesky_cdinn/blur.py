"""How far a beam's partial coherence blurs a pattern, told by the object that fits best.

An object that was fitted without blur has given way to it, and its own derivatives by the blur tell next to
nothing. The misfit of objects that were settled each under a blur of its own has a sharp minimum at the
beam's (docs/explanations/phasing.md). On the coarsest level that takes a hundredth of a second each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_cdinn.detection import COHERENT, Blur, Detection
from bluesky_cdinn.forward import AXES, poisson_deviance
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.refine import Measurement, Objects, ShrinkWrap, run

Variance = NDArray[np.float64]

# What is tried first, sigma**2 in voxels squared; the widest that a crystal survives; by what factor each
# try exceeds the one before.
LEAST, MOST, STEP = 0.04, 4.0, 2.25
# Share of the misfit that the first try must take away, deviance of a voxel that the best one must, and
# iterations that settle an object in each. Clean patterns of 10^3 counts lose up to 0.10, those with a
# background of 0.1 counts 0.17; a blur of half a voxel takes 0.5 and more from 10^4 counts on.
WORTHWHILE, LEAST_GAIN, ITERATIONS = 0.01, 0.2, 12
# How far to either side of what is known each axis is looked at on its own, as a share of sigma**2; in turn.
ASIDE = (0.5, 0.25)


def found_blur(
    objects: Objects, measurement: Measurement, smoothness: float, watch: Callable[[Objects], None]
) -> Blur:
    """Return the blur under which the first object fits best, one sigma along each axis, voxels.

    Parameters
    ----------
    objects
        Fitted to the measurement; they stay as they are.
    measurement
        On a small grid: the object is fitted to it twice over, and where it is blurred two dozen times.
    smoothness
        As `lbfgs.LBFGS` takes it.
    watch
        Gets the object after each iteration of each trial.
    """
    trials = Trials(objects.keep(torch.arange(1)), measurement, smoothness, watch)
    none = trials.misfit(np.zeros(3))
    if not trials.misfit(np.full(3, LEAST)) < (1 - WORTHWHILE) * none:
        return COHERENT
    alike_along_all(trials, none)
    for share in ASIDE:
        for axis in range(3):
            along_one(trials, axis, share)
    if none - trials.least < LEAST_GAIN:
        return COHERENT
    a, b, c = np.sqrt(trials.variance)
    return float(a), float(b), float(c)


@dataclass(eq=False)
class Trials:
    """Blurs that are tried, and the best of them.

    Parameters
    ----------
    objects
        One object, as it settled under the best blur; each trial starts there.
    measurement
        That it is fitted to.
    smoothness
        Of its interior.
    watch
        As in `found_blur`.
    variance
        sigma**2 of the best blur, voxels squared, float64 (3,).
    least
        Its misfit.
    """

    objects: Objects
    measurement: Measurement
    smoothness: float
    watch: Callable[[Objects], None]
    variance: Variance = field(default_factory=lambda: np.zeros(3))
    least: float = np.inf

    def misfit(self, variance: Variance) -> float:
        """Return the Poisson deviance a voxel of the object settled under a blur."""
        shape = self.measurement.magnitude.shape
        a, b, c = np.sqrt(variance)
        seen = Detection((shape[0], shape[1], shape[2]), (float(a), float(b), float(c)))
        measurement = replace(self.measurement, detection=seen)
        known = self.objects
        trial = Objects(known.density.clone(), known.support.clone(), known.chi2)
        for state in run(
            [ShrinkWrap(0.2, sigma=0.8), LBFGS(ITERATIONS, self.smoothness)], trial, measurement
        ):
            self.watch(state)
        power = torch.fft.fftn(trial.density, dim=AXES, norm="ortho").abs().square()
        counts = measurement.magnitude.square()
        misfit = float(poisson_deviance(seen.expected(power), counts, measurement.fitted)[0])
        if misfit < self.least and variance.any():
            self.objects, self.variance, self.least = trial, variance, misfit
        return misfit


def alike_along_all(trials: Trials, none: float) -> None:
    """Try blurs that are the same along each axis, up to the widest that is needed."""
    tried, misfits = [0.0, LEAST], [none, trials.least]
    while misfits[-1] < misfits[-2] and tried[-1] < MOST:
        tried.append(STEP * tried[-1])
        misfits.append(trials.misfit(np.full(3, tried[-1])))
    trials.misfit(np.full(3, lowest(tried[-3:], misfits[-3:])))


def along_one(trials: Trials, axis: int, share: float) -> None:
    """Try more and less blur along one axis, and what lies lowest on the parabola through them."""
    middle, step = trials.variance, share * trials.variance.mean() * np.eye(3)[axis]
    places, misfits = [middle], [trials.least]
    less = np.maximum(middle - step, 0) if middle[axis] else middle + step / 2
    for place in (middle + step, less):
        places.append(place)
        misfits.append(trials.misfit(place))
    along = [float(place[axis]) for place in places]
    reach = middle[axis] + 2 * step[axis] * np.array([-1, 1])
    best = middle.copy()
    best[axis] = np.clip(lowest(along, misfits), *reach.clip(0))
    trials.misfit(best)


def lowest(places: list[float], values: list[float]) -> float:
    """Return where the parabola through three points is lowest, or the lowest of them if it has no bottom."""
    bend, slope, _ = np.polyfit(places, values, 2)
    if bend <= 0:
        return places[int(np.argmin(values))]
    return float(np.clip(-slope / (2 * bend), 0, MOST))

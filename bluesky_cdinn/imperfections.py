"""What real data have that ``abs(F)**2`` hasn't, told by the object that was found and kept where it pays.

Blur spoils the search itself: `partial_coherence`. A background and the frames' scales are told by the
object that has been fitted, and it is fitted anew. Where data are clean that costs a few sums over the grid.
"""

from dataclasses import replace

from torch import Tensor

from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.phasing import SMOOTHNESS, Watch, last_wrap
from bluesky_cdinn.refine import Measurement, Objects, held_out_deviance, power_of, run
from bluesky_cdinn.scoring import Part, scored

# Share of the held-out voxels' deviance that each must take away. Clean patterns of 10^3 to 10^6 counts lose
# up to 0.07 and 0.04, as magnitudes of few counts are fitted a little low (0.14 where counts were sampled
# more coarsely); a background of 0.3 counts takes 0.15 to 0.3.
WORTHWHILE: dict[Part, float] = {"background": 0.12, "scales": 0.05}
# Rounds of a scoring and so many iterations; and the iterations after the last.
ROUNDS, BETWEEN, LAST = 3, 6, 10


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
        steps = [last_wrap(objects), LBFGS(BETWEEN, SMOOTHNESS)]
        for state in run(steps, objects, measurement):
            watch(state)
    if parts:
        for state in run([LBFGS(LAST, SMOOTHNESS)], objects, measurement):
            watch(state)
    if measurement.detection is not None:
        objects.chi2 = measurement.chi2(power_of(objects))
    return measurement


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

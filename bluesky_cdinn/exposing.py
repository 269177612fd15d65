"""How an adaptive scan goes on: what pass over the curve comes next, or why there is none.

The first pass is designed from the quick look (`bluesky_cdinn.curve_design`); each next one from what the
reconstruction of all frames so far says. Frames of all passes add up, so passes share one grid of angles.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bluesky_cdinn.curve_design import PeakShape, affordable, peak_shape, sufficient
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.steering import MEASURE, STOP, Decision, Pass

# Of the budget: the first pass where all of it will be needed, so that there is some to mend with.
_FIRST = 0.6
# What a forecast is exceeded by, so that a pass more is the exception.
_AMPLE = 1.3
# Of what was spent so far: less isn't worth another pass, and what a pass adds where there is as much.
_WORTH, _ADDS = 0.15, 0.6
# A pass multiplies the dose by so much at most: forecasts are no better.
_MOST = 4.0
# Below so many samples a fringe the next pass measures in between.
_SAMPLED = 2.3
# Neither the resolution, nor the spread of independent starts, got better by these: it stops improving.
_FINER, _CLOSER = 0.97, 0.9
# Share of a number's range that may be used: photons scatter, and the peak may lie between two frames.
_FULL = 0.5


@dataclass(frozen=True, eq=False)
class Measured:
    """What an adaptive scan has come to.

    Parameters
    ----------
    look
        What the quick look saw.
    passes
        Over the curve, in order.
    results
        Of all frames so far, after each pass: a partial result, or why there is none.
    """

    look: QuickLook
    passes: tuple[Pass, ...] = ()
    results: tuple[PartialResult | str, ...] = ()

    @property
    def spent_s(self) -> float:
        """Exposure of all frames, the quick look's too, s."""
        return self.look.total_s + sum(scan.exposure_s for scan in self.passes)

    @property
    def latest(self) -> PartialResult | None:
        """The newest partial result, None where the last pass gave none."""
        last = self.results[-1] if self.results else None
        return last if isinstance(last, PartialResult) else None


PassRule = Callable[[Measured], Decision]
"""Says what comes next: a decision with a pass to measure, or without one to stop."""


@dataclass(frozen=True)
class Aim:
    """Measure until a crystal is known well enough, the budget is spent, or it stops improving.

    Parameters
    ----------
    budget_s
        Exposure of all frames together, s.
    resolution_nm
        That is wanted; None wants what the detector allows.
    confidence
        Of the reconstruction, 0 to 1, that is wanted.
    chi2
        That is wanted; None doesn't ask.
    oversampling
        Samples for each fringe of the rocking curve.
    shortest_s, longest_s
        Exposures of a frame that the detector can do.
    most_counts
        In a pixel, beyond which it doesn't count any more; its numbers' range is heeded anyway.
    """

    budget_s: float
    resolution_nm: float | None = None
    confidence: float = 0.8
    chi2: float | None = None
    oversampling: float = 3.0
    shortest_s: float = 1e-3
    longest_s: float = 600.0
    most_counts: float = math.inf

    def __post_init__(self) -> None:
        if not (self.budget_s > 0 and math.isfinite(self.budget_s)):
            raise InvalidInput(f"budget_s must be a positive number of seconds, got {self.budget_s}")
        if self.resolution_nm is not None and not self.resolution_nm > 0:
            raise InvalidInput(f"resolution_nm must be positive, got {self.resolution_nm}")
        if not 0 <= self.confidence <= 1:
            raise InvalidInput(f"confidence must be from 0 to 1, got {self.confidence}")
        if self.oversampling < 2:
            raise InvalidInput(
                f"oversampling must be 2 or more, for fewer samples a fringe hold no crystal, "
                f"got {self.oversampling}"
            )

    def __call__(self, so_far: Measured) -> Decision:
        """Return what comes next; see `PassRule`.

        Raises
        ------
        InvalidInput
            A resolution is wanted, but there is no geometry to tell it by.
        """
        if so_far.look.peak is None:
            return Decision(STOP, f"there is nothing to measure: {so_far.look.reason}")
        shape = peak_shape(so_far.look)
        if self.resolution_nm is not None and math.isnan(shape.cell):
            raise InvalidInput(
                "resolution_nm needs the geometry, which neither the devices nor the settings say; leave it "
                "out, or give what is missing in cdi"
            )
        return self._first(so_far.look, shape) if not so_far.passes else self._next(so_far, shape)

    def _first(self, look: QuickLook, shape: PeakShape) -> Decision:
        left = self.budget_s - look.total_s
        if left <= 0:
            return Decision(STOP, "the quick look has spent the budget", {"spent_s": look.total_s})
        whole = affordable(shape, left, self.oversampling)
        wanted = self._wanted(shape)
        enough = None if math.isnan(wanted) else sufficient(shape, wanted, self.oversampling, left)
        if enough is None:
            scan = replace(whole, count_time=_FIRST * whole.count_time)
            reason = f"all of the budget may be needed; {_FIRST:.0%} of it first"
        else:
            share = min(_AMPLE, left / enough.exposure_s)
            scan = replace(enough, count_time=share * enough.count_time)
            reason = "this should be enough"
        numbers = {
            "centre_deg": shape.centre_deg,
            "fwhm_deg": shape.width_deg,
            "fringe_deg": shape.fringe[0],
            "reach_deg": shape.reach[0],
            "reach_grows_with_exposure_to_the": shape.slope,
            "rate_per_s": look.rate,
            "wanted_nm": wanted,
            "expected_nm": shape.resolution_nm(scan.count_time),
        }
        return self._measure(reason, scan, look, numbers)

    def _next(self, so_far: Measured, shape: PeakShape) -> Decision:
        latest, spent = so_far.latest, so_far.spent_s
        left = self.budget_s - spent
        numbers = {"spent_s": spent, "left_s": left, **_seen(latest)}
        missed = self._missed(latest, shape)
        if not missed:
            return Decision(STOP, "the aim is reached", numbers)
        if left < _WORTH * spent:
            return Decision(STOP, f"the budget is spent, but {missed}", numbers)
        if not _improves(so_far):
            return Decision(STOP, f"it stops improving, but {missed}", numbers)
        if latest is None:
            return self._again(f"{missed}: more counts", so_far, min(_MOST - 1, left / spent), numbers)
        if _sampled(latest) < _SAMPLED:
            return self._measure(missed, between(so_far.passes, left), so_far.look, numbers)
        found, wanted = _resolution(latest), self._wanted(shape)
        factor = (found / wanted) ** (1 / shape.slope) - 1 if found > wanted else 1.0
        share = min(max(_AMPLE * factor, _ADDS), _MOST - 1, left / spent)
        return self._again(missed, so_far, share, numbers)

    def _again(self, reason: str, so_far: Measured, share: float, numbers: Mapping[str, float]) -> Decision:
        """Measure the whole curve again, for a share of all that was spent."""
        whole = covered(so_far.passes)
        scan = replace(whole, count_time=share * so_far.spent_s / whole.num)
        return self._measure(reason, scan, so_far.look, numbers)

    def _measure(self, reason: str, scan: Pass, look: QuickLook, numbers: Mapping[str, float]) -> Decision:
        brightest = max(look.rate, 1e-9)
        most_s = min(self.longest_s, min(self.most_counts, _FULL * look.full_scale) / brightest)
        count_time = max(min(scan.count_time, most_s), self.shortest_s)
        return Decision(MEASURE, reason, numbers, replace(scan, count_time=count_time))

    def _wanted(self, shape: PeakShape) -> float:
        """Return the resolution that is aimed at, nm; the detector's own limit counts as reached by 3 %."""
        finest = shape.resolution_nm(math.inf) * 1.03
        return finest if self.resolution_nm is None else max(self.resolution_nm, finest)

    def _missed(self, latest: PartialResult | None, shape: PeakShape) -> str:
        """Say what is not reached yet; empty when all is."""
        if latest is None:
            return "there is no reconstruction yet"
        if _sampled(latest) < _SAMPLED:
            # What is sampled too coarsely says of itself whatever it likes.
            return f"there are {_sampled(latest):.1f} samples a fringe, {_SAMPLED:.1f} are needed"
        wanted = self._wanted(shape)
        if not math.isnan(wanted) and _resolution(latest) > wanted:
            return f"the resolution is {_resolution(latest):.3g} nm, {wanted:.3g} are wanted"
        if latest.confidence < self.confidence:
            return f"the confidence is {latest.confidence:.2f}, {self.confidence:.2f} is wanted"
        if self.chi2 is not None and not latest.chi2 <= self.chi2:
            return f"chi2 is {latest.chi2:.3g}, {self.chi2:.3g} is wanted"
        return ""


def covered(passes: Sequence[Pass]) -> Pass:
    """Return one pass over all angles that some have measured, of one second a frame."""
    ends = [end for scan in passes for end in (scan.start, scan.stop)]
    first, last = min(ends), max(ends)
    angles = np.sort(np.concatenate([np.linspace(scan.start, scan.stop, scan.num) for scan in passes]))
    steps = np.diff(angles)
    step = float(steps[steps > 1e-3 * passes[0].step_deg].min())
    return Pass(first, last, round((last - first) / step) + 1, 1.0)


def between(passes: Sequence[Pass], left_s: float) -> Pass:
    """Return a pass half-way between the angles of those before, as long as they were, if that is left."""
    whole = covered(passes)
    spent = sum(scan.exposure_s for scan in passes)
    half, num = whole.step_deg / 2, whole.num - 1
    return Pass(whole.start + half, whole.stop - half, num, min(spent, left_s) / num)


def _sampled(result: PartialResult) -> float:
    """Return samples a fringe along rocking; infinite where the result doesn't say."""
    return result.scalars.get("oversampling_rocking", math.inf)


def _resolution(result: PartialResult) -> float:
    """Return what a result says of its resolution, nm; infinite where it says nothing."""
    return result.scalars.get("resolution_nm", math.inf)


def _seen(result: PartialResult | None) -> dict[str, float]:
    if result is None:
        return {}
    names = ("resolution_nm", "resolution_limit_nm", "phase_spread_rad", "oversampling_rocking")
    found = {name: result.scalars[name] for name in names if name in result.scalars}
    return {**found, "confidence": result.confidence, "chi2": result.chi2}


def _improves(so_far: Measured) -> bool:
    """Whether the last passes made the object finer or surer; one that didn't may be chance, two aren't."""
    results = so_far.results
    steps = list(zip(results[-3:], results[-2:], strict=False)) if len(results) > 2 else []
    return not steps or any(_better(before, after) for before, after in steps)


def _better(before: PartialResult | str, after: PartialResult | str) -> bool:
    if isinstance(after, str):
        return False
    if isinstance(before, str):
        return True
    spread, earlier = (r.scalars.get("phase_spread_rad", math.inf) for r in (after, before))
    return _resolution(after) < _FINER * _resolution(before) or spread < _CLOSER * earlier

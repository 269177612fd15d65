"""One grain of a survey: go there, align, look, and have it reconstructed from a quick curve."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.protocols import Movable, Readable, Stoppable
from bluesky.utils import FailedStatus, MsgGenerator, RunEngineControlException

from bluesky_cdinn.curve_design import affordable, peak_shape
from bluesky_cdinn.plans._detector_alignment import Effect, centre_on_detector, measured_effect
from bluesky_cdinn.plans._protocols import LiveCallback
from bluesky_cdinn.plans._quick_look import quick_look
from bluesky_cdinn.plans._result import OneSubscription
from bluesky_cdinn.plans._rocking_scan import position_of, rocking_scan
from bluesky_cdinn.plans._rocking_scan_with_recon import await_result, rocking_scan_with_recon
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.steering import Pass
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.survey_ranking import GrainSeen, trouble_in_look, trouble_in_result

logger = logging.getLogger(__name__)

# Samples of each fringe: of a quick curve, and of a proper one.
_QUICK, _PROPER = 2.5, 3.0


@dataclass(eq=False)
class Aligner:
    """Two motors that move the peak on the detector, and what is known of their effect.

    Parameters
    ----------
    motors
        Two.
    effect
        Pixels a unit; None has it measured at the first grain that is seen.
    test_move
        For that, in the motors' unit.
    """

    motors: Sequence[Movable]
    effect: Effect | None
    test_move: float


@dataclass(frozen=True, eq=False)
class GrainVisit:
    """How grains are visited; the arguments of `survey`, checked.

    Parameters
    ----------
    detectors, motor
        As in `rocking_scan`.
    stages
        Motors of the sample, by name.
    scan
        The quick look's.
    glance_s, measure_s
        Exposure of all frames of a quick curve and of a proper one together; no quick curve where zero.
    least_counts, least_confidence
        Of a grain that is worth more.
    aligner
        None leaves the peak where it is on the detector.
    live, timeout
        Reconstructs, and how long to wait for it.
    cdi, md
        More for the start documents.
    """

    detectors: Sequence[Readable]
    motor: Movable
    stages: Mapping[str, Movable]
    scan: Pass
    glance_s: float
    measure_s: float
    least_counts: float
    least_confidence: float
    aligner: Aligner | None
    live: LiveCallback
    timeout: float
    cdi: Mapping[str, Any]
    md: Mapping[str, Any]

    def glance(self, grain: GrainSeen) -> MsgGenerator["Visited"]:
        """Visit a grain; its reconstruction is not waited for."""
        yield from self.go_to(grain)
        look = yield from self._aligned(grain)
        grain = with_look(grain, look)
        if look.peak is not None:
            there = yield from self.detector_positions()
            grain = replace(grain, positions={**grain.positions, **there})
        exposure_s = self.measure_s / self.scan.num
        if trouble := trouble_in_look(look, exposure_s, self.least_counts):
            return Visited(replace(grain, status="skipped", reason=trouble))
        if not self.glance_s:
            return Visited(replace(grain, status="seen"), look)
        scan = affordable(peak_shape(look), self.glance_s, _QUICK)
        curve = rocking_scan(
            self.detectors,
            self.motor,
            **vars(scan),
            cdi=dict(self.cdi),
            md={**self._tags(grain), "survey_step": "glance"},
        )
        uid = yield from bpp.subs_wrapper(curve, OneSubscription(self.live))
        return Visited(replace(grain, status="seen", glance_uid=uid), look)

    def judge(self, visited: "Visited") -> MsgGenerator["Visited"]:
        """Wait for a grain's quick reconstruction and say what it tells."""
        if not visited.grain.glance_uid:
            return visited
        summary = yield from await_result(self.live, visited.grain.glance_uid, self.timeout)
        grain = with_result(visited.grain, summary)
        if trouble := trouble_in_result(summary, self.least_confidence):
            # Its frames are not needed any more.
            return Visited(replace(grain, status="skipped", reason=trouble))
        return replace(visited, grain=grain)

    def measure(self, visited: "Visited") -> MsgGenerator[ReconstructionSummary]:
        """Measure a grain properly and wait for its reconstruction."""
        assert visited.look is not None
        yield from self.go_to(visited.grain)
        scan = affordable(peak_shape(visited.look), self.measure_s, _PROPER)
        return (
            yield from rocking_scan_with_recon(
                self.detectors,
                self.motor,
                **vars(scan),
                cdi=dict(self.cdi),
                md={**self._tags(visited.grain), "survey_step": "measure"},
                live=self.live,
                timeout=self.timeout,
            )
        )

    def detector_positions(self) -> MsgGenerator[dict[str, float]]:
        """Return where the motors stand that centre peaks on the detector."""
        there: dict[str, float] = {}
        for motor in self.aligner.motors if self.aligner is not None else ():
            there[_name(motor)] = yield from position_of(motor)
        return there

    def go_to(self, grain: GrainSeen) -> MsgGenerator[None]:
        """Move the sample, and the detector if it was moved for this grain, to where a grain is."""
        motors = {**self.stages, **{_name(m): m for m in (self.aligner.motors if self.aligner else ())}}
        where = [item for name, at in grain.positions.items() for item in (motors[name], at)]
        if where:
            yield from bps.mv(*where)

    def guarded(self, plan: MsgGenerator["Visited"], grain: GrainSeen) -> MsgGenerator["Visited"]:
        """Keep one grain's trouble from ending the survey; what ends a plan on purpose does."""
        try:
            return (yield from plan)
        except RunEngineControlException:
            raise
        except Exception as error:
            logger.warning("grain %s is skipped", grain.name, exc_info=True)
            yield from self._stop_all()
            # A failed status says which device it was, its cause says why.
            cause = error.__cause__ if isinstance(error, FailedStatus) and error.__cause__ else error
            reason = f"{type(cause).__name__}: {cause}"
            return Visited(replace(grain, status="skipped", reason=reason), None)

    def _stop_all(self) -> MsgGenerator[None]:
        """Stop motors that may still move for a grain that was given up."""
        aligners = self.aligner.motors if self.aligner else ()
        for motor in (self.motor, *self.stages.values(), *aligners):
            if isinstance(motor, Stoppable):
                yield from bps.stop(motor)

    def _aligned(self, grain: GrainSeen) -> MsgGenerator[QuickLook]:
        look = yield from self._look(grain, self.scan)
        if self.aligner is None or look.peak is None or look.frame_shape is None:
            return look
        again = self._looks_again(grain, look)
        if self.aligner.effect is None:
            self.aligner.effect = yield from measured_effect(
                look, again, self.aligner.motors, self.aligner.test_move
            )
        middle = [n / 2 for n in look.frame_shape]
        return (yield from centre_on_detector(look, again, self.aligner.motors, middle, self.aligner.effect))

    def _looks_again(self, grain: GrainSeen, first: QuickLook) -> Callable[[], MsgGenerator[QuickLook]]:
        """Return looks at a peak that may have moved a little on the rocking axis, too."""
        assert first.peak is not None
        half = abs(self.scan.stop - self.scan.start) / 2
        centre = first.peak.centre_deg
        return lambda: self._look(grain, replace(self.scan, start=centre - half, stop=centre + half))

    def _look(self, grain: GrainSeen, scan: Pass) -> MsgGenerator[QuickLook]:
        return (
            yield from quick_look(
                self.detectors,
                self.motor,
                **vars(scan),
                cdi=self.cdi,
                md={**self._tags(grain), "survey_step": "look"},
            )
        )

    def _tags(self, grain: GrainSeen) -> dict[str, Any]:
        return {**self.md, "grain": grain.name}


@dataclass(frozen=True, eq=False)
class Visited:
    """A grain and the last look at it, None where there was none."""

    grain: GrainSeen
    look: QuickLook | None = field(default=None, repr=False)


def with_look(grain: GrainSeen, look: QuickLook) -> GrainSeen:
    """Return a grain with what a quick look tells."""
    if look.peak is None or look.pixel is None:
        return grain
    row, column = look.pixel
    return replace(
        grain,
        centre_deg=look.peak.centre_deg,
        fwhm_deg=look.peak.fwhm_deg,
        row_px=float(row),
        column_px=float(column),
        counts_s=look.rate,
    )


def with_result(grain: GrainSeen, summary: ReconstructionSummary) -> GrainSeen:
    """Return a grain with what a reconstruction tells."""
    if summary.status != "success":
        return grain
    names = ("size_nm", "strain_rms", "resolution_nm")
    numbers = {name: float(summary.scalars[name]) for name in names if name in summary.scalars}
    return replace(grain, confidence=float(summary.confidence), **numbers)


def _name(motor: Any) -> str:
    return str(motor.name)

"""Follow one crystal over many scans while something is done to it."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import bluesky.preprocessors as bpp
from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator

from bluesky_cdinn.callbacks import RockingCurveAssembler, default_live
from bluesky_cdinn.drift import FollowedScan, SeriesRule, next_centre, threshold_rule
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._decisions import steering_run
from bluesky_cdinn.plans._protocols import LiveCallback
from bluesky_cdinn.plans._quick_look import look_of, quick_look
from bluesky_cdinn.plans._result import OneSubscription
from bluesky_cdinn.plans._rocking_scan import as_list, rocking_scan
from bluesky_cdinn.plans._rocking_scan_with_recon import LEAST_ANGLES, await_result
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.steering import MEASURE, STOP, Decision

logger = logging.getLogger(__name__)

# A peak that was lost is looked for in ranges wider by these factors, one after the other.
_WIDER = (1.0, 2.0, 4.0)
_LOOK_ANGLES = 21

Note = Callable[[Decision], MsgGenerator[None]]
OnCrossing = Callable[[Decision], MsgGenerator[Any]]


def follow(
    detectors: Readable | Sequence[Readable],
    motor: Movable,
    start: float,
    stop: float,
    num: int,
    *,
    count_time: float | None = None,
    scans: int = 10,
    duration_s: float | None = None,
    thresholds: dict | None = None,
    least_confidence: float = 0.3,
    overlap: bool = True,
    cdi: dict | None = None,
    md: dict | None = None,
    live: LiveCallback | None = None,
    timeout: float = 600.0,
    rule: SeriesRule | None = None,
    on_crossing: OnCrossing | None = None,
) -> MsgGenerator[list[FollowedScan]]:
    """Measure rocking curves of one crystal back to back, each about where its peak has gone.

    Each reconstruction starts from the last one's objects, believed as far as the new data confirm them.
    While a curve is reconstructed the next is measured: what its result says is heeded one scan later,
    unless `overlap` is False. A peak that was lost, or cut off, is looked for in wider and wider ranges.

    Each decision is in the series' own run, of purpose "steering", whose uid the other runs carry as
    ``steering_uid``.

    Parameters
    ----------
    detectors : Readable or sequence of Readable
        The area detector, or several devices to read at each point: a thermometer, say.
    motor : Movable
        Turns the crystal.
    start, stop : float
        First and last angle of the first scan, deg; those after it are as long.
    num : int
        Number of angles, evenly spaced; eight at least.
    count_time : float, optional
        Exposure of each point, s. None leaves it as it is.
    scans : int, optional
        At most so many.
    duration_s : float, optional
        No scan begins later than so long after the first.
    thresholds : dict, optional
        The series ends when a number leaves its range: ``{"strain_rms": [None, 5e-4]}``, (lowest, highest)
        by the names of the reconstruction's numbers or of what the devices read.
    least_confidence : float, optional
        Of a reconstruction whose numbers are heeded.
    overlap : bool, optional
        Whether the next scan is measured while the last one is reconstructed.
    cdi, md : dict, optional
        More for the start documents.
    live : LiveReconstruction, optional
        The callback that reconstructs; None takes the session's.
    timeout : float, optional
        How long to wait for a result, s.
    rule : callable, optional
        In place of `thresholds`: given the list of `bluesky_cdinn.drift.FollowedScan` so far, returns a
        `bluesky_cdinn.steering.Decision`, or None to go on.
    on_crossing : callable, optional
        Given that decision, returns a plan to be carried out then; the series goes on if the plan returns
        True, and ends otherwise.

    Returns
    -------
    list of FollowedScan
        In order.

    Raises
    ------
    InvalidInput
        If an argument makes no sense; nothing has moved then.

    Examples
    --------
    >>> RE(follow([det, oven], theta, -0.3, 0.3, 61, scans=50, thresholds={"oven": [None, 600.0]}))
    """
    if num < LEAST_ANGLES:
        raise InvalidInput(f"num must be at least {LEAST_ANGLES} angles to reconstruct from, got {num}")
    if not float(scans).is_integer() or scans < 1:
        raise InvalidInput(f"scans must be a whole number, at least 1, got {scans}")
    if not timeout > 0 or not (duration_s is None or duration_s > 0):
        raise InvalidInput(f"timeout and duration_s must be positive, in s, got {timeout} and {duration_s}")
    if rule is not None and thresholds:
        raise InvalidInput("thresholds make a rule: give one of the two, thresholds or rule")
    decide = rule or threshold_rule(thresholds or {}, least_confidence)
    devices = as_list(detectors)
    series = Series(
        detectors=devices,
        motor=motor,
        half=(stop - start) / 2,
        num=int(num),
        count_time=count_time,
        live=default_live() if live is None else live,
        timeout=timeout,
        cdi=cdi or {},
        expected=(start + stop) / 2,
    )
    ends = math.inf if duration_s is None else time.monotonic() + duration_s

    def body(note: Note, uid: str) -> MsgGenerator[list[FollowedScan]]:
        series.md = {**(md or {}), "steering_uid": uid}
        yield from _measure_all(series, int(scans), ends, overlap, decide, on_crossing, note)
        yield from series.settle(0, note)
        return series.known

    about = {
        "detectors": [device.name for device in devices],
        "motors": [motor.name],  # pyright: ignore[reportAttributeAccessIssue]
        "plan_args": {"start": start, "stop": stop, "num": int(num), "scans": int(scans)},
        **(md or {}),
    }
    return (yield from steering_run("follow", about, body))


def _measure_all(
    series: "Series",
    scans: int,
    ends: float,
    overlap: bool,
    decide: SeriesRule,
    on_crossing: OnCrossing | None,
    note: Note,
) -> MsgGenerator[None]:
    """Measure until there are enough scans, time is up, the peak is lost for good, or a rule says so."""
    for number in range(scans):
        if time.monotonic() > ends:
            yield from note(Decision(STOP, f"time is up after {number} scans", {"scans": number}))
            return
        try:
            look = yield from series.measure()
        except InvalidInput as limits:
            if number == 0:
                raise
            yield from note(Decision(STOP, f"the peak can't be followed further: {limits}"))
            return
        known = len(series.known)
        # After the last scan there is nothing to overlap with.
        yield from series.settle(1 if overlap and number + 1 < scans else 0, note)
        for heard in range(known, len(series.known)):
            decision = decide(series.known[: heard + 1])
            if decision is None:
                continue
            yield from note(decision)
            if on_crossing is None or not (yield from on_crossing(decision)):
                return
        if number + 1 < scans and not (yield from series.recentre(look, note)):
            return


@dataclass(eq=False)
class Series:
    """A series of scans: where the peak was, and what is known of each scan.

    Parameters
    ----------
    detectors, motor, num, count_time, cdi
        As in `rocking_scan`.
    half
        Half the range of a scan, deg; negative where it goes down.
    live, timeout
        Reconstructs, and how long to wait for it, s.
    expected
        Where the next scan's peak should be, deg.
    md
        For the start documents.
    centres
        Where the peak was, deg, by scan; NaN where it was lost.
    known, waiting
        Scans whose result is there, and is to come.
    """

    detectors: Sequence[Readable]
    motor: Movable
    half: float
    num: int
    count_time: float | None
    live: LiveCallback
    timeout: float
    cdi: Mapping[str, Any]
    expected: float
    md: Mapping[str, Any] = field(default_factory=dict)
    centres: list[float] = field(default_factory=list)
    known: list[FollowedScan] = field(default_factory=list)
    waiting: deque[FollowedScan] = field(default_factory=deque)

    def measure(self) -> MsgGenerator[QuickLook]:
        """Measure one curve where the peak is expected, and return what can be seen of it at once."""
        before = (*self.known, *self.waiting)
        assembler, readings = RockingCurveAssembler(Settings().cdi), LastReadings()
        scan = rocking_scan(
            self.detectors,
            self.motor,
            self.expected - self.half,
            self.expected + self.half,
            self.num,
            count_time=self.count_time,
            cdi={**self.cdi, "starts_from": before[-1].raw_uid if before else ""},
            md=dict(self.md),
        )
        uid = yield from bpp.subs_wrapper(scan, [OneSubscription(self.live), assembler, readings])
        look = look_of(assembler, uid, self.expected - self.half, self.expected + self.half)
        centre = math.nan if look.peak is None else look.peak.centre_deg
        self.centres.append(centre)
        self.waiting.append(FollowedScan(uid, centre, readings=readings.numbers))
        return look

    def settle(self, most: int, note: Note) -> MsgGenerator[None]:
        """Wait for results until so many are left to come."""
        while len(self.waiting) > most:
            scan = self.waiting.popleft()
            summary = yield from await_result(self.live, scan.raw_uid, self.timeout)
            numbers = {name: float(value) for name, value in summary.scalars.items()}
            if summary.status == "success":
                numbers["confidence"] = float(summary.confidence)
            scan = replace(scan, status=summary.status, reason=summary.reason, numbers=numbers)
            self.known.append(scan)
            told = {"raw_uid": scan.raw_uid, **scan.readings, **numbers}
            yield from note(Decision("heed" if summary.status == "success" else "pass over", str(scan), told))

    def recentre(self, look: QuickLook, note: Note) -> MsgGenerator[bool]:
        """Say where the next scan is measured; False where the peak is lost for good."""
        if look.peak is None or look.peak.cut:
            why = look.reason if look.peak is None else f"the peak is cut off at the {look.peak.cut} angle"
            look = yield from self._search(why, note)
            if look.peak is None:
                yield from note(Decision(STOP, f"the peak is lost: {look.reason}"))
                return False
            # Of a peak that was cut off the centre isn't known, nor from where it has come.
            self.centres += [math.nan, look.peak.centre_deg]
        seen, self.expected = look.peak.centre_deg, next_centre(self.centres)
        reason = f"the peak was at {seen:.5g} deg, the next scan is about {self.expected:.5g} deg"
        yield from note(Decision(MEASURE, reason, {"seen_deg": seen, "centre_deg": self.expected}))
        return True

    def _search(self, why: str, note: Note) -> MsgGenerator[QuickLook]:
        """Look for the peak in wider and wider ranges about where it was last."""
        about = self.expected if math.isnan(self.centres[-1]) else self.centres[-1]
        look = QuickLook(None, why)
        for wider in _WIDER:
            reach = self.half * wider
            number = round(_LOOK_ANGLES * wider)
            numbers = {"about_deg": about, "reach_deg": abs(reach)}
            yield from note(Decision("look", f"{why}; looking within {abs(reach):.4g} deg", numbers))
            try:
                look = yield from quick_look(
                    self.detectors,
                    self.motor,
                    about - reach,
                    about + reach,
                    number,
                    count_time=self.count_time,
                    cdi=self.cdi,
                    md=self.md,
                )
            except InvalidInput as limits:
                return replace(look, reason=f"{look.reason}; {limits}")
            if look.peak is not None and not look.peak.cut:
                return look
            why = look.reason or "the peak is cut off"
        return look if look.peak is not None and not look.peak.cut else replace(look, peak=None, reason=why)


class LastReadings:
    """Remembers what numbers a run's devices read last."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        if name == "event":
            for key, value in doc["data"].items():
                if isinstance(value, Real) and not isinstance(value, bool):
                    self.numbers[key] = float(value)

"""Measure one crystal as it needs: a quick look, then passes over the curve until it is known well enough."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import Movable, Readable
from bluesky.utils import FailedStatus, MsgGenerator, short_uid

from bluesky_cdinn.callbacks import ReconstructionSummary, default_live
from bluesky_cdinn.errors import CdinnError, InvalidInput, ReconstructionFailed
from bluesky_cdinn.exposing import Aim, Measured, PassRule
from bluesky_cdinn.plans._decisions import DecisionLog, in_run, record, steering_run
from bluesky_cdinn.plans._exposure import OnItsOwn, find_exposures
from bluesky_cdinn.plans._protocols import GivesPartialResults, LiveCallback, ReadableMovable
from bluesky_cdinn.plans._quick_look import quick_look
from bluesky_cdinn.plans._result import OneSubscription, ResultWaiter
from bluesky_cdinn.plans._rocking_scan import as_list, check_limits, position_of, scan_metadata
from bluesky_cdinn.plans._rocking_scan_with_recon import await_result
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.steering import STOP, Decision, Pass

logger = logging.getLogger(__name__)

# Of the budget: what the quick look may cost.
_QUICK = 0.03
# A faint peak is looked for again with so much longer exposures.
_LONGER = 4.0
# Frames of a quick look beside those of its first curve.
_QUICK_MORE = 13
# Passes; more of them than any rule has use for.
_MOST_PASSES = 20
# A range that the motor doesn't have is cut by so much at a time.
_CUT = 0.9


def adaptive_rocking_scan(
    detectors: Readable | Sequence[Readable],
    motor: Movable,
    start: float,
    stop: float,
    budget_s: float,
    *,
    resolution_nm: float | None = None,
    confidence: float = 0.8,
    chi2: float | None = None,
    quick_points: int = 21,
    relative: bool = False,
    cdi: dict | None = None,
    md: dict | None = None,
    rule: Callable | None = None,
    live: LiveCallback | None = None,
    timeout: float = 600.0,
    on_failure: Literal["return", "raise"] = "return",
) -> MsgGenerator[ReconstructionSummary]:
    """Measure a crystal until it is known well enough, within a budget of exposure.

    A quick look finds the peak. From its fringes and counts follow step, range and exposure of a first pass
    over the rocking curve; after each pass all frames so far are reconstructed, and the scan goes on until
    the aim is reached, the budget is spent, or further passes stop to improve the crystal. All passes are
    one run; each decision, its reason and numbers are in its stream "steering".

    Parameters
    ----------
    detectors : Readable or sequence of Readable
        The area detector, or several devices to read at each point; one must have an exposure to set.
    motor : Movable
        Turns the crystal.
    start : float
        First angle of the quick look, deg; if the peak lies at an end, it looks further there.
    stop : float
        Last angle of the quick look, deg.
    budget_s : float
        Exposure of all frames together, s: the dose that the crystal may take.
    resolution_nm : float, optional
        That is wanted; None wants what the detector allows.
    confidence : float, optional
        Of the reconstruction, 0 to 1, that is wanted.
    chi2 : float, optional
        That is wanted; None doesn't ask.
    quick_points : int, optional
        Angles of the quick look's first curve.
    relative : bool, optional
        Angles are counted from where the motor stands, and it returns there, after a failure too.
    cdi : dict, optional
        More for the start documents' ``cdi`` mapping.
    md : dict, optional
        More metadata for the start documents.
    rule : callable, optional
        Decides what comes next in place of `bluesky_cdinn.exposing.Aim`, which it gets all other aims
        from; see `bluesky_cdinn.exposing.PassRule`.
    live : LiveReconstruction, optional
        The callback that reconstructs; None takes the session's.
    timeout : float, optional
        How long to wait for a result after a pass, s.
    on_failure : {"return", "raise"}, optional
        Whether a reconstruction that failed is returned, or raises.

    Returns
    -------
    ReconstructionSummary
        Of all passes together. Where no peak was seen its status is "failed", and its reason says so.

    Raises
    ------
    InvalidInput
        If an argument makes no sense; nothing has moved then.
    ReconstructionFailed
        If it failed, or there was no peak, and `on_failure` is "raise".

    Examples
    --------
    >>> RE(adaptive_rocking_scan(det, theta, -0.3, 0.3, budget_s=120, resolution_nm=15))
    """
    if on_failure not in ("return", "raise"):
        raise InvalidInput(f"on_failure must be 'return' or 'raise', got {on_failure!r}")
    devices = as_list(detectors)
    decide: PassRule = rule or Aim(budget_s, resolution_nm, confidence, chi2)
    quick_s = _QUICK * budget_s / (quick_points + _QUICK_MORE)
    signals = find_exposures(devices, quick_s, 1).signals
    callback: LiveCallback = default_live() if live is None else live
    plan_args = {
        "detectors": list(map(repr, devices)),
        "motor": repr(motor),
        "start": float(start),
        "stop": float(stop),
        "budget_s": float(budget_s),
        "resolution_nm": resolution_nm,
        "confidence": confidence,
        "chi2": chi2,
        "relative": relative,
    }

    def metadata(first: Pass) -> dict[str, Any]:
        named = {"plan_name": "adaptive_rocking_scan", **(md or {})}
        known = {"planned_deg": [first.start, first.stop, first.num], **(cdi or {})}
        return scan_metadata(devices, motor, first.num, plan_args, known, named)

    def look_for(first: float, last: float, count_time: float) -> MsgGenerator[QuickLook]:
        return (
            yield from quick_look(
                devices, motor, first, last, quick_points, count_time=count_time, cdi=cdi, md=md
            )
        )

    def measure(origin: float) -> MsgGenerator[ReconstructionSummary]:
        look = yield from look_for(start + origin, stop + origin, quick_s)
        if look.peak is None:
            longer = yield from look_for(start + origin, stop + origin, _LONGER * quick_s)
            look = longer.after(look)
        seen = Measured(look)
        first = decide(seen)
        if first.scan is None:
            return (yield from _nothing(first, plan_args, md or {}))
        first = within_limits(motor, first)
        passes = _Passes([*devices, motor], motor, signals, decide, callback, timeout)
        run = passes.run(seen, first, metadata(first.scan or Pass(start, stop, 2, quick_s)))
        uid = yield from bpp.subs_wrapper(run, OneSubscription(callback))
        return (yield from await_result(callback, uid, timeout))

    if relative:
        origin = yield from position_of(motor)
        summary = yield from bpp.finalize_wrapper(measure(origin), lambda: bps.mv(motor, origin))
    else:
        summary = yield from measure(0.0)
    if on_failure == "raise" and summary.status != "success":
        raise ReconstructionFailed(f"there is no crystal: {summary.reason}")
    return summary


class _Passes:
    """One run of as many passes as its rule asks for."""

    def __init__(
        self,
        devices: Sequence[Any],
        motor: Movable,
        signals: Sequence[ReadableMovable],
        rule: PassRule,
        live: LiveCallback,
        timeout: float,
    ) -> None:
        self._staged = devices
        self._read = [*devices, *map(OnItsOwn, signals)]
        self._motor = motor
        self._signals = signals
        self._rule = rule
        self._live = live
        self._timeout = timeout

    def run(self, seen: Measured, first: Decision, metadata: dict[str, Any]) -> MsgGenerator[str]:
        """Measure, reconstruct and decide in turn; returns the run's uid."""

        @bpp.stage_decorator(self._staged)
        def staged() -> MsgGenerator[str]:
            return (yield from in_run(metadata, lambda uid: self._measure(uid, seen, first)))

        return (yield from staged())

    def _measure(self, uid: str, seen: Measured, decision: Decision) -> MsgGenerator[str]:
        log, points = DecisionLog(), 0
        while decision.scan is not None:
            yield from record(log, decision)
            scan = decision.scan
            yield from self._pass(scan, backwards=len(seen.passes) % 2 == 1)
            points += scan.num
            result = yield from self._look(uid, points)
            seen = replace(seen, passes=(*seen.passes, scan), results=(*seen.results, result))
            decision = self._decide(seen)
        yield from record(log, decision)
        return uid

    def _pass(self, scan: Pass, *, backwards: bool) -> MsgGenerator[None]:
        """Measure one pass; every other one backwards, from where the last one ended."""
        angles = np.linspace(scan.start, scan.stop, scan.num)
        yield from bps.checkpoint()
        yield from bps.mv(*[item for signal in self._signals for item in (signal, scan.count_time)])
        for angle in angles[:: -1 if backwards else 1]:
            yield from bps.checkpoint()
            yield from bps.mv(self._motor, float(angle))
            yield from bps.trigger_and_read(self._read)

    def _look(self, uid: str, points: int) -> MsgGenerator[PartialResult | str]:
        """Wait for the reconstruction of all frames so far, or for why there is none."""
        if not isinstance(self._live, GivesPartialResults):
            return f"{type(self._live).__name__} gives no partial results"
        try:
            future = self._live.partial(uid, points)
        except CdinnError as error:
            return str(error)
        group = short_uid("partial")
        yield from bps.checkpoint()
        try:
            yield from bps.trigger(ResultWaiter(future, self._timeout), group=group)
            yield from bps.wait(group)
        except FailedStatus:
            future.cancel()
            return f"there was no partial result within {self._timeout:g} s"
        return _outcome(future)

    def _decide(self, seen: Measured) -> Decision:
        if len(seen.passes) >= _MOST_PASSES:
            return Decision(STOP, f"{_MOST_PASSES} passes are enough")
        try:
            return within_limits(self._motor, self._rule(seen))
        except Exception as error:
            # What was measured is there, and worth its reconstruction.
            logger.exception("the rule %r failed: the scan ends here", self._rule)
            return Decision(STOP, f"the rule failed: {type(error).__name__}: {error}")


def within_limits(motor: Movable, decision: Decision) -> Decision:
    """Return the decision with its pass cut, evenly at both ends, to where the motor can go.

    Raises
    ------
    InvalidInput
        It can go nowhere there.
    """
    if decision.scan is None:
        return decision
    for scan in _shorter(decision.scan):
        try:
            check_limits(motor, np.array([scan.start, scan.stop]))
        except InvalidInput as error:
            refusal = error
            continue
        reason = decision.reason if scan is decision.scan else f"{decision.reason}; as far as the motor goes"
        return replace(decision, scan=scan, reason=reason)
    raise refusal  # pyright: ignore[reportPossiblyUnbound] - there is one pass at least


def _shorter(scan: Pass) -> Iterator[Pass]:
    """Yield a pass, and about the same centre on the same grid ever shorter ones."""
    while True:
        yield scan
        fewer = int(_CUT * scan.num)
        fewer -= (scan.num - fewer) % 2
        if fewer < 3:
            return
        less = (scan.num - fewer) // 2 * (scan.stop - scan.start) / (scan.num - 1)
        scan = replace(scan, start=scan.start + less, stop=scan.stop - less, num=fewer)


def _nothing(
    decision: Decision, plan_args: dict[str, Any], md: dict[str, Any]
) -> MsgGenerator[ReconstructionSummary]:
    """Write down why nothing is measured."""

    def body(note: Callable[[Decision], MsgGenerator[None]], _: str) -> MsgGenerator[None]:
        yield from note(decision)

    yield from steering_run("adaptive_rocking_scan", {"plan_args": plan_args, **md}, body)
    return ReconstructionSummary(raw_uid="", status="failed", reason=decision.reason)


def _outcome(future: "Future[PartialResult]") -> PartialResult | str:
    if future.cancelled():
        return "the partial result was cancelled"
    error = future.exception()
    return future.result() if error is None else str(error)

"""Measure one rocking curve and wait for the crystal."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.protocols import Movable, Readable
from bluesky.utils import FailedStatus, MsgGenerator, short_uid

from bluesky_cdinn.callbacks import ReconstructionSummary, default_live
from bluesky_cdinn.errors import InvalidInput, ReconstructionFailed
from bluesky_cdinn.plans._early_stop import EarlyStop, name_of, rule_for
from bluesky_cdinn.plans._protocols import LiveCallback
from bluesky_cdinn.plans._result import OneSubscription, ResultWaiter, pending_result
from bluesky_cdinn.plans._rocking_scan import rocking_scan
from bluesky_cdinn.steering import StopRule

logger = logging.getLogger(__name__)

LEAST_ANGLES = 8
"""No crystal is reconstructed from fewer (`bluesky_cdinn.posing.FEWEST_SLICES`)."""


def rocking_scan_with_recon(
    detectors: Readable | Sequence[Readable],
    motor: Movable,
    start: float,
    stop: float,
    num: int,
    *,
    count_time: float | Sequence[float] | None = None,
    relative: bool = False,
    repeats: int = 1,
    cdi: dict | None = None,
    md: dict | None = None,
    stop_early: bool | float = False,
    stop_rule: StopRule | None = None,
    live: LiveCallback | None = None,
    timeout: float = 600.0,
    on_failure: Literal["return", "raise"] = "return",
) -> MsgGenerator[ReconstructionSummary]:
    """Rock a crystal through its Bragg peak, and wait for its reconstruction.

    The scan is the one of `rocking_scan`. A reconstruction that fails, or doesn't come in time, leaves
    it alone: the run is as complete as without. Only if asked is the scan stopped early, on what its
    partial results say.

    Parameters
    ----------
    detectors : Readable or sequence of Readable
        The area detector, or several devices to read at each point.
    motor : Movable
        Turns the crystal.
    start : float
        First angle, deg; it may be larger than the last one.
    stop : float
        Last angle, deg.
    num : int
        Number of angles, evenly spaced; eight at least.
    count_time : float or sequence of float, optional
        Exposure, s: of every point, or one for each angle. None leaves it as it is.
    relative : bool, optional
        Angles are counted from where the motor stands, and it returns there.
    repeats : int, optional
        Pass over the angles this many times, every other time backwards.
    cdi : dict, optional
        More for the start document's ``cdi`` mapping: ``sample``, ``reflection``, ``lattice_nm``, ...
    md : dict, optional
        More metadata for the start document.
    stop_early : bool or float, optional
        Whether to stop the scan once further frames no longer change the object
        (`bluesky_cdinn.steadiness.UntilSteady`): by no more than this, rad; True takes 0.05.
    stop_rule : callable, optional
        Another rule (`bluesky_cdinn.steering.StopRule`). What it decides is in the run's stream "steering".
    live : LiveReconstruction, optional
        The callback that reconstructs; subscribed for this run unless it is already. None takes the
        session's (`bluesky_cdinn.callbacks.default_live`).
    timeout : float, optional
        How long to wait for the result once the scan is over, s.
    on_failure : {"return", "raise"}, optional
        Whether a reconstruction that failed is returned, or raises.

    Returns
    -------
    ReconstructionSummary
        Uids, status and scalars; its ``load()`` gets the arrays.

    Raises
    ------
    InvalidInput
        If an argument makes no sense; nothing has moved then.
    ReconstructionFailed
        If it failed, or didn't come in time, and `on_failure` is "raise".

    Examples
    --------
    >>> RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 61)).plan_result.chi2
    """
    if on_failure not in ("return", "raise"):
        raise InvalidInput(f"on_failure must be 'return' or 'raise', got {on_failure!r}")
    if num < LEAST_ANGLES:
        raise InvalidInput(
            f"num must be at least {LEAST_ANGLES} angles to reconstruct from, got {num}; "
            "rocking_scan measures fewer"
        )
    if not timeout > 0:
        raise InvalidInput(f"timeout must be positive, in s, got {timeout}")
    rule = rule_for(stop_early, stop_rule, repeats)
    callback: LiveCallback = default_live() if live is None else live
    subscription = OneSubscription(callback)
    until = None if rule is None else EarlyStop(rule, callback, lambda: subscription.raw_uid)
    scan = rocking_scan(
        detectors,
        motor,
        start,
        stop,
        num,
        count_time=count_time,
        relative=relative,
        repeats=repeats,
        cdi=cdi,
        md=md if rule is None else {"stop_rule": name_of(rule), **(md or {})},
        until=until,
    )
    raw_uid = yield from bpp.subs_wrapper(scan, subscription)
    summary = yield from await_result(callback, raw_uid, timeout)
    if on_failure == "raise" and summary.status != "success":
        raise ReconstructionFailed(f"the reconstruction of run {raw_uid} failed: {summary.reason}")
    return summary


def await_result(live: LiveCallback, raw_uid: str, timeout: float) -> MsgGenerator[ReconstructionSummary]:
    """Wait for a result as for a motor: the RunEngine stays free to pause, and callbacks run on."""
    future = pending_result(live, raw_uid)
    if future is None:
        return _failure(raw_uid, "the live callback has not taken this run: see its log")
    group = short_uid("reconstruction")
    yield from bps.checkpoint()
    try:
        yield from bps.trigger(ResultWaiter(future, timeout), group=group)
        yield from bps.wait(group)
    except FailedStatus:
        return _failure(raw_uid, f"there was no result within {timeout} s of the scan's end")
    return _outcome(future, raw_uid)


def _outcome(future: Future[Any], raw_uid: str) -> ReconstructionSummary:
    """Return a finished future's summary; what it raised becomes a failure."""
    if future.cancelled():
        return _failure(raw_uid, "the reconstruction was cancelled")
    error = future.exception()
    return future.result() if error is None else _failure(raw_uid, f"{type(error).__name__}: {error}")


def _failure(raw_uid: str, reason: str) -> ReconstructionSummary:
    logger.warning("no reconstruction of run %s: %s", raw_uid, reason)
    return ReconstructionSummary(raw_uid=raw_uid, status="failed", reason=reason)

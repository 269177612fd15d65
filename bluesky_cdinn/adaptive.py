"""Rocking curves for the optimisers of bluesky-adaptive: how to measure a trial, and what came of it.

::

    trials = RockingTrials(theta, at_dose(4.0), ["confidence"])
    problem = OptimizationProblem(
        Resilient(optimizer), actuators=[], sensors=[det],
        evaluation_function=trials.evaluate, acquisition_plan=trials.acquire,
    )
    RE(optimize(problem, iterations=12))

Here is what bluesky-adaptive 1 calls an acquisition plan and an evaluation function. Nothing of it is
imported, nor of what its optimisers need.
"""

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.protocols import Movable
from bluesky.utils import MsgGenerator

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.errors import InvalidInput, NotFound
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.steering import Pass
from bluesky_cdinn.summary import ReconstructionSummary

logger = logging.getLogger(__name__)

ID = "_id"
"""Where a suggestion and its outcome say which trial they are."""

RUN_KEY = "acquire"
POLL_S = 1.0

Parameters = Mapping[str, Any]
Outcomes = Sequence[str] | Mapping[str, Callable[[ReconstructionSummary], float]]
"""What an optimiser is told of a reconstruction: scalars by name, or functions of its summary."""


class RockingTrials:
    """Trials that are rocking curves, each judged by its reconstruction.

    Parameters
    ----------
    motor
        Turns the crystal.
    scan
        From a trial's parameters to the rocking curve, such as `at_dose`; parameters that have an actuator's
        name are moved to before.
    outcomes
        What the optimiser is told, such as ``["resolution_nm"]`` or ``{"doubt": lambda found: 1 -
        found.confidence}``; all NaN where the reconstruction failed or one of them isn't a number.
    live, timeout, cdi
        As in `bluesky_cdinn.plans.rocking_scan_with_recon`.

    Notes
    -----
    A trial is waited for as for a motor; `evaluate` then only looks up what came, since it runs in the
    RunEngine's thread. Each trial's run says in its start document under ``trial`` which one it is and with
    what parameters; bluesky-adaptive's own run has them, the outcomes and the trials' uids in its events.
    """

    def __init__(
        self,
        motor: Movable,
        scan: Callable[[Parameters], Pass],
        outcomes: Outcomes = ("confidence",),
        *,
        live: Any = None,
        timeout: float = 600.0,
        cdi: Mapping[str, Any] | None = None,
    ) -> None:
        self._motor = motor
        self._scan = scan
        self._outcomes = _functions(outcomes)
        self._how = {"live": live, "timeout": timeout, "cdi": dict(cdi or {})}
        self._ended: dict[Hashable, ReconstructionSummary] = {}

    def acquire(
        self,
        suggestions: Sequence[Parameters],
        actuators: Sequence[Any],
        sensors: Sequence[Any] | None = None,
        md: Mapping[str, Any] | None = None,
    ) -> MsgGenerator[str | tuple[str, ...]]:
        """Measure each suggestion as a run of its own, and wait for its reconstruction.

        Parameters
        ----------
        suggestions
            Parameters by name, each with its ``_id``.
        actuators, sensors
            What is moved to the parameters of their names; what is read at each angle.
        md
            More for the start documents.

        Returns
        -------
        str or tuple of str
            The raw run's uid; several where there are several suggestions.
        """
        uids = []
        for suggestion in suggestions:
            trial = self._trial(suggestion, actuators, list(sensors or ()), dict(md or {}))
            # The optimisation's own run stays open meanwhile.
            summary = yield from bpp.set_run_key_wrapper(trial, RUN_KEY)
            self._ended[suggestion[ID]] = summary
            uids.append(summary.raw_uid)
        return uids[0] if len(uids) == 1 else tuple(uids)

    def evaluate(self, uid: str | Sequence[str], suggestions: Sequence[Parameters]) -> list[dict[str, Any]]:
        """Return what came of trials that `acquire` has measured; it waits for nothing."""
        return [
            {ID: trial[ID], **outcome(self._ended.pop(trial[ID]), self._outcomes)} for trial in suggestions
        ]

    def _trial(
        self, suggestion: Parameters, actuators: Sequence[Any], sensors: list[Any], md: dict[str, Any]
    ) -> MsgGenerator[ReconstructionSummary]:
        parameters = {name: value for name, value in suggestion.items() if name != ID}
        one = self._scan(parameters)
        moves = [
            item
            for device in actuators
            if device.name in parameters
            for item in (device, parameters[device.name])
        ]
        if moves:
            yield from bps.mv(*moves)
        return (
            yield from rocking_scan_with_recon(
                sensors,
                self._motor,
                one.start,
                one.stop,
                one.num,
                count_time=one.count_time,
                md={"trial": {"id": suggestion[ID], "parameters": parameters}, **md},
                **self._how,
            )
        )


class StoredOutcomes:
    """An evaluation function for an optimiser in another process: it reads what Tiled holds.

    Parameters
    ----------
    catalog
        Where the reconstructions are.
    outcomes
        As in `RockingTrials`.
    timeout_s
        How long a reconstruction is waited for after its scan; NaN then.
    """

    def __init__(
        self, catalog: Catalog, outcomes: Outcomes = ("confidence",), *, timeout_s: float = 600.0
    ) -> None:
        self._catalog = catalog
        self._outcomes = _functions(outcomes)
        self._timeout_s = timeout_s

    def __call__(self, uid: str | Sequence[str], suggestions: Sequence[Parameters]) -> list[dict[str, Any]]:
        """Return what came of trials, by the uids of their raw runs in the suggestions' order."""
        uids = (uid,) if isinstance(uid, str) else tuple(uid)
        if len(uids) != len(suggestions):
            raise InvalidInput(
                f"each suggestion must have a run, got {len(suggestions)} and {len(uids)} runs"
            )
        return [
            {ID: trial[ID], **outcome(self._summary(run), self._outcomes)}
            for trial, run in zip(suggestions, uids, strict=True)
        ]

    def _summary(self, raw_uid: str) -> ReconstructionSummary:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._catalog.latest(raw_uid)
            except NotFound:
                if time.monotonic() > deadline:
                    reason = f"no reconstruction within {self._timeout_s:g} s"
                    return ReconstructionSummary(raw_uid=raw_uid, status="failed", reason=reason)
            time.sleep(POLL_S)


class Resilient:
    """An optimiser that goes on where a trial failed: it is told of the failure, not of its NaN.

    Parameters
    ----------
    optimizer
        Any of bluesky-adaptive's.
    worst
        Outcomes that stand for those of a failed trial. None calls its ``register_failures``, as Ax has it:
        it then learns nothing of why, and may try near by again.

    Raises
    ------
    InvalidInput
        If there is no `worst` and the optimiser can't be told of failures.
    """

    def __init__(self, optimizer: Any, worst: Mapping[str, float] | None = None) -> None:
        if worst is None and not hasattr(optimizer, "register_failures"):
            raise InvalidInput(
                f"{type(optimizer).__name__} can't be told that a trial failed: give worst, outcomes that "
                "stand for a failed one's"
            )
        self.optimizer = optimizer
        self._worst = worst

    def suggest(self, num_points: int | None = None) -> Sequence[Parameters]:
        """Return what to try next."""
        return self.optimizer.suggest(num_points)

    def ingest(self, points: Sequence[Parameters]) -> None:
        """Tell the optimiser what came of trials."""
        for point in points:
            if not any(isinstance(value, float) and math.isnan(value) for value in point.values()):
                self.optimizer.ingest([point])
            elif self._worst is None:
                self.optimizer.register_failures([point])
            else:
                self.optimizer.ingest([{**point, **self._worst}])

    def register_failures(self, suggestions: Sequence[Parameters]) -> None:
        """Tell the optimiser of trials that could not even be measured; the plan ends then."""
        if hasattr(self.optimizer, "register_failures"):
            self.optimizer.register_failures(suggestions)

    def should_stop(self) -> tuple[bool, str | None]:
        """Return whether the optimiser wants no more trials, and why."""
        asked = getattr(self.optimizer, "should_stop", None)
        return (False, None) if asked is None else asked()

    def get_best_points(self) -> Any:
        """Return the best trials so far, as the optimiser has them."""
        return self.optimizer.get_best_points()


def at_dose(exposure_s: float, centre: float = 0.0) -> Callable[[Parameters], Pass]:
    """Return scans of one total exposure from the parameters ``half_range`` (deg) and ``num``.

    So that trials are compared at equal dose: more angles are shorter ones.

    Parameters
    ----------
    exposure_s
        Of all angles together, s.
    centre
        The peak's angle, deg.
    """

    def scan(parameters: Parameters) -> Pass:
        half, num = float(parameters["half_range"]), round(float(parameters["num"]))
        return Pass(centre - half, centre + half, num, exposure_s / num)

    return scan


def outcome(summary: ReconstructionSummary, outcomes: Outcomes) -> dict[str, float]:
    """Return what an optimiser is told of a reconstruction; all NaN where that is nothing to go by."""
    functions = _functions(outcomes)
    if not summary.success:
        logger.warning("the trial of scan %s failed: %s", summary.raw_uid[:8], summary.reason)
        return dict.fromkeys(functions, math.nan)
    values = {name: float(function(summary)) for name, function in functions.items()}
    if all(map(math.isfinite, values.values())):
        return values
    logger.warning("the trial of scan %s failed: its outcomes are %s", summary.raw_uid[:8], values)
    return dict.fromkeys(functions, math.nan)


def _functions(outcomes: Outcomes) -> dict[str, Callable[[ReconstructionSummary], float]]:
    if isinstance(outcomes, str) or not outcomes:
        raise InvalidInput(f"outcomes must be names of scalars, or functions by name, got {outcomes!r}")
    if isinstance(outcomes, Mapping):
        return dict(outcomes)
    return {name: partial(_scalar, name) for name in outcomes}


def _scalar(name: str, summary: ReconstructionSummary) -> float:
    return summary.scalars.get(name, math.nan)

"""Decisions in the documents: events of a stream of their own, in the run that they are about."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.utils import MsgGenerator, RunEngineControlException, short_uid

from bluesky_cdinn.steering import Decision

logger = logging.getLogger(__name__)

STREAM = "steering"
_KEYS = {
    "action": "what was decided",
    "reason": "why",
    "numbers": "what it was decided by, as JSON",
}


class DecisionLog:
    """Holds the last decision, for the RunEngine to read like a device."""

    name = "steering"
    parent = None

    def __init__(self) -> None:
        self._last = Decision("", "")
        self._time = time.time()

    def put(self, decision: Decision) -> None:
        """Take a decision; it is in the documents once it has been read."""
        self._last, self._time = decision, time.time()

    def read(self) -> dict[str, Any]:
        """Return the last decision's readings."""
        numbers: dict[str, Any] = dict(self._last.numbers)
        if self._last.scan is not None:
            numbers["scan"] = vars(self._last.scan)
        values = {
            "action": self._last.action,
            "reason": self._last.reason,
            "numbers": json.dumps(_plain(numbers), allow_nan=False),
        }
        return {
            f"{self.name}_{key}": {"value": value, "timestamp": self._time} for key, value in values.items()
        }

    def describe(self) -> dict[str, Any]:
        """Return what the readings are."""
        return {
            f"{self.name}_{key}": {"source": f"PY:{meaning}", "dtype": "string", "shape": []}
            for key, meaning in _KEYS.items()
        }


def record(log: DecisionLog, decision: Decision) -> MsgGenerator[None]:
    """Write a decision into the run that is open."""
    logger.info("%s", decision)
    log.put(decision)
    yield from bps.create(STREAM)
    yield from bps.read(log)
    yield from bps.save()
    # A pause would repeat the messages since the last checkpoint, with the next decision in their place.
    yield from bps.checkpoint()


def steering_run(
    plan_name: str,
    md: Mapping[str, Any],
    body: Callable[[Callable[[Decision], MsgGenerator[None]], str], MsgGenerator[Any]],
) -> MsgGenerator[Any]:
    """Keep a run open that holds the decisions of a plan of several runs.

    Parameters
    ----------
    plan_name
        For its start document, with ``purpose`` "steering".
    md
        More for it.
    body
        Called with how to record a decision in it, and its uid, for the start documents of the runs that it
        is about (``steering_uid``); the plan that it returns opens those.

    Returns
    -------
    Any
        What that plan returns.
    """
    log, key = DecisionLog(), short_uid("steering")

    def note(decision: Decision) -> MsgGenerator[None]:
        return (yield from bpp.set_run_key_wrapper(record(log, decision), key))

    metadata = {"plan_name": plan_name, "purpose": "steering", **md}
    return (yield from in_run(metadata, lambda uid: body(note, uid), key))


def in_run(
    metadata: Mapping[str, Any], body: Callable[[str], MsgGenerator[Any]], key: str | None = None
) -> MsgGenerator[Any]:
    """Keep a run open as long as a plan goes on in it, and close it as that ended.

    Parameters
    ----------
    metadata
        Of its start document.
    body
        Called with its uid; returns the plan.
    key
        Of the run, where others are open beside it; only opening and closing are given it here.

    Returns
    -------
    Any
        What that plan returns.
    """

    def keyed(plan: MsgGenerator[Any]) -> MsgGenerator[Any]:
        return plan if key is None else bpp.set_run_key_wrapper(plan, key)

    def give_up(error: Exception) -> MsgGenerator[Any]:
        if isinstance(error, RunEngineControlException):
            return keyed(bps.close_run(error.exit_status))
        return keyed(bps.close_run("fail", str(error)))

    uid = yield from keyed(bps.open_run(dict(metadata)))
    return (
        yield from bpp.contingency_wrapper(
            body(uid), except_plan=give_up, else_plan=lambda: keyed(bps.close_run())
        )
    )


def _plain(value: Any) -> Any:
    """Return a value in JSON's words: numpy as Python's, null where a number isn't finite, else a string."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)

"""Documents of many runs at once -> one callback for each run that is wanted."""

import logging
from collections.abc import Callable, Mapping
from time import time
from typing import Any
from uuid import uuid4

from bluesky_cdinn.errors import InvalidInput

logger = logging.getLogger(__name__)

Callback = Callable[[str, Mapping[str, Any]], object]

MAX_OPEN_RUNS = 32
"""Runs followed at once. A run whose stop never comes, because its process died, is stopped past this."""


class RunRouter:
    """Send each document to the callback of the run that it belongs to.

    The idiom is event-model's ``RunRouter``; this one hands events over as they are (event-model repacks each
    as a page and sets up fillers), says with an error of ours what a bad document lacks, and forgets runs
    that never stop. Runs may be nested or interleaved; documents of a run that nobody wants cost a look-up.

    Parameters
    ----------
    factory
        Called with each start document; returns the run's callback, which is then given the start document,
        or None for a run to be ignored.
    """

    def __init__(self, factory: Callable[[Mapping[str, Any]], Callback | None]) -> None:
        self._factory = factory
        self._callbacks: dict[str, Callback] = {}
        self._owners: dict[str, dict[str, str]] = {"descriptor": {}, "resource": {}}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document.

        Raises
        ------
        InvalidInput
            If the document is no mapping, or lacks the field that says which run it belongs to.
        """
        if not isinstance(doc, Mapping):
            raise InvalidInput(f"a {name} document must be a mapping, got {type(doc).__name__}")
        if name == "start":
            self._open(doc)
            return
        for run in self._runs_of(name, doc):
            callback = self._callbacks.get(run)
            if callback is not None:
                try:
                    callback(name, doc)
                finally:
                    if name == "stop":
                        self._close(run)

    @property
    def open_runs(self) -> tuple[str, ...]:
        """Start uids of the wanted runs that have not stopped."""
        return tuple(self._callbacks)

    def _open(self, doc: Mapping[str, Any]) -> None:
        run = _text(doc, "uid", "start")
        if run in self._callbacks:
            raise InvalidInput(f"run {run} was started twice; every start document needs its own uid")
        callback = self._factory(doc)
        if callback is None:
            return
        while len(self._callbacks) >= MAX_OPEN_RUNS:
            self._give_up(next(iter(self._callbacks)))
        self._callbacks[run] = callback
        callback("start", doc)

    def _give_up(self, run: str) -> None:
        """Stop a run in the place of a process that died: its callback may have something to finish."""
        why = f"never stopped; it is given up after {MAX_OPEN_RUNS} newer runs"
        logger.warning("run %s %s", run, why)
        callback = self._callbacks[run]
        self._close(run)
        stop = {
            "uid": str(uuid4()),
            "time": time(),
            "run_start": run,
            "exit_status": "fail",
            "num_events": {},
        }
        try:
            callback("stop", {**stop, "reason": f"the run {why}"})
        except Exception:
            logger.exception("run %s could not be ended in order", run)

    def _close(self, run: str) -> None:
        self._callbacks.pop(run, None)
        for kind, owners in self._owners.items():
            self._owners[kind] = {uid: owner for uid, owner in owners.items() if owner != run}

    def _runs_of(self, name: str, doc: Mapping[str, Any]) -> tuple[str, ...]:
        if name == "stop":
            return (_text(doc, "run_start", name),)
        if name in ("event", "event_page", "stream_datum"):
            return self._owned("descriptor", _text(doc, "descriptor", name))
        if name in ("datum", "datum_page"):
            return self._owned("resource", _text(doc, "resource", name))
        if name == "descriptor":
            return self._own("descriptor", _text(doc, "uid", name), _text(doc, "run_start", name))
        if name in ("resource", "stream_resource"):
            uid = _text(doc, "uid", name)
            if "run_start" in doc:
                return self._own("resource", uid, _text(doc, "run_start", name))
            # An old resource doesn't say whose it is; a run that has no use for it is not hurt by it.
            return self.open_runs
        return ()

    def _own(self, kind: str, uid: str, run: str) -> tuple[str, ...]:
        if run in self._callbacks:
            self._owners[kind][uid] = run
        return (run,)

    def _owned(self, kind: str, uid: str) -> tuple[str, ...]:
        owner = self._owners[kind].get(uid)
        if owner is not None:
            return (owner,)
        return self.open_runs if kind == "resource" else ()


def _text(doc: Mapping[str, Any], field: str, name: str) -> str:
    value = doc.get(field)
    if not isinstance(value, str):
        raise InvalidInput(f"a {name} document must have a text {field!r}, got {value!r}")
    return value

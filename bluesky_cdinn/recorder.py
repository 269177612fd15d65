"""A Bluesky callback that writes runs into the spool, in a thread of its own."""

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_cdinn.spool import Kind, RunJournal, SpooledRun

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0


class RunRecorder:
    """Take documents from a RunEngine without ever holding it up or failing it.

    What comes is queued and written into the spool by a thread; a run that has stopped is handed to
    `on_complete`. Documents and their arrays must not change after they were emitted, which is the rule for
    documents anyway.

    Parameters
    ----------
    spool
        The folder.
    kind
        What the runs are.
    on_complete
        Called in the recorder's thread.
    """

    def __init__(self, spool: Path, kind: Kind, on_complete: Callable[[SpooledRun], None]) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_record,
            args=(self._queue, _Journals(spool, kind, on_complete)),
            name="cdinn-recorder",
            daemon=True,
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._thread)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Queue one document; returns within microseconds."""
        self._queue.put((name, doc))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that came so far is on disk; False when that took longer."""
        if not self._thread.is_alive():
            return True
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout)

    def close(self) -> None:
        """Write what is queued and end the thread."""
        self._finalizer()


class _Journals:
    """The journals of the runs that are open, and which of them a document belongs to."""

    def __init__(self, spool: Path, kind: Kind, on_complete: Callable[[SpooledRun], None]) -> None:
        self._spool = spool
        self._kind: Kind = kind
        self._on_complete = on_complete
        self._open: dict[str, RunJournal] = {}
        # Descriptor or resource -> run.
        self._owner: dict[str, str] = {}

    def write(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._open[doc["uid"]] = RunJournal(self._spool, self._kind, doc)
            return
        run = self._run_of(name, doc)
        self._open[run].append(name, doc)
        if name == "stop":
            complete = self._open.pop(run).complete()
            self._owner = {uid: owner for uid, owner in self._owner.items() if owner != run}
            self._on_complete(complete)

    def _run_of(self, name: str, doc: Mapping[str, Any]) -> str:
        if "run_start" in doc:
            if name != "stop":
                self._owner[doc["uid"]] = doc["run_start"]
            return doc["run_start"]
        return self._owner[doc["resource" if name in ("datum", "datum_page") else "descriptor"]]


def _record(documents: queue.SimpleQueue[Any], journals: _Journals) -> None:
    while (item := documents.get()) is not None:
        if isinstance(item, threading.Event):
            item.set()
            continue
        name, doc = item
        try:
            journals.write(name, doc)
        except Exception:
            logger.exception("a %s document could not be recorded", name)


def _finish(documents: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
    documents.put(None)
    thread.join(_CLOSE_TIMEOUT_S)

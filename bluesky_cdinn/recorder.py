"""A Bluesky callback that writes runs into the spool, in a thread of its own."""

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_cdinn.documents import Document
from bluesky_cdinn.errors import CdinnError, InvalidInput
from bluesky_cdinn.spool import Kind, RunJournal

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0

OnComplete = Callable[[list[Document] | None], None]


class RunRecorder:
    """Take documents from a RunEngine without ever holding it up or failing it.

    What comes is queued and written into the spool by a thread. A run that the spool doesn't take, because
    the disk is full or worse, is held in memory. Documents and their arrays must not change after they were
    emitted, which is the rule for documents anyway.

    Parameters
    ----------
    spool
        The folder.
    kind
        What the runs are.
    on_complete
        Called in the recorder's thread after each run; with the documents of a run that is in memory only.
    """

    def __init__(self, spool: Path, kind: Kind, on_complete: OnComplete) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_record,
            args=(self._queue, _OpenRuns(spool, kind, on_complete)),
            name="cdinn-recorder",
            daemon=True,
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._thread)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Queue one document; returns within microseconds."""
        if name == "start" and not self._thread.is_alive():
            logger.error("run %s is not recorded: the catalog was closed; open a new one", doc.get("uid"))
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


class _OpenRun:
    """A run that is being measured: on disk, or in memory from the moment that the disk failed."""

    def __init__(self, spool: Path, kind: Kind, start: Mapping[str, Any]) -> None:
        self._held: list[Document] | None = None
        self._journal: RunJournal | None = None
        try:
            self._journal = RunJournal(spool, kind, start)
        except OSError:
            logger.exception("the spool %s can't be written; run %s is kept in memory", spool, start["uid"])
            self._held = [("start", dict(start))]

    def append(self, name: str, doc: Mapping[str, Any]) -> None:
        if self._journal is not None:
            try:
                self._journal.append(name, doc)
                return
            except OSError:
                logger.exception("the spool can't be written any more; the run is kept in memory")
                self._held, self._journal = self._journal.withdraw(), None
        assert self._held is not None
        self._held.append((name, dict(doc)))

    def complete(self) -> list[Document] | None:
        """End the run; return its documents if they are nowhere else."""
        if self._journal is not None:
            self._journal.complete()
        return self._held


class _OpenRuns:
    """The runs that are being measured, and which of them a document belongs to."""

    def __init__(self, spool: Path, kind: Kind, on_complete: OnComplete) -> None:
        self._spool = spool
        self._kind: Kind = kind
        self._on_complete = on_complete
        self._open: dict[str, _OpenRun] = {}
        # Descriptor or resource -> run.
        self._owner: dict[str, str] = {}

    def write(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            if doc["uid"] in self._open:
                raise InvalidInput(
                    f"run {doc['uid']} was started twice; every start document needs its own uid"
                )
            self._open[doc["uid"]] = _OpenRun(self._spool, self._kind, doc)
            return
        run = self._run_of(name, doc)
        if run not in self._open:
            raise InvalidInput(f"it must belong to a run that is recorded now, got one of {run!r}")
        self._open[run].append(name, doc)
        if name == "stop":
            ended = self._open.pop(run)
            self._owner = {uid: owner for uid, owner in self._owner.items() if owner != run}
            self._on_complete(ended.complete())

    def _run_of(self, name: str, doc: Mapping[str, Any]) -> str:
        if "run_start" in doc:
            if name != "stop":
                self._owner[doc["uid"]] = doc["run_start"]
            return doc["run_start"]
        return self._owner.get(doc["resource" if name in ("datum", "datum_page") else "descriptor"], "")


def _record(documents: queue.SimpleQueue[Any], runs: _OpenRuns) -> None:
    while (item := documents.get()) is not None:
        if isinstance(item, threading.Event):
            item.set()
            continue
        name, doc = item
        try:
            runs.write(name, doc)
        except CdinnError as error:
            logger.error("a %s document could not be recorded: %s", name, error)
        except Exception:
            logger.exception("a %s document could not be recorded", name)


def _finish(documents: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
    documents.put(None)
    thread.join(_CLOSE_TIMEOUT_S)

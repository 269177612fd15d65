"""The background thread that has scans reconstructed and their results written down."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.documents import Document, reconstruction_documents
from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.records import Reconstruction, Status
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.worker import ReconstructionWorker

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0

ProcessedCallback = Callable[[str, Mapping[str, Any]], object]


@dataclass(eq=False)
class Scan:
    """A scan between its start document and its result."""

    start: Mapping[str, Any]
    assembler: RockingCurveAssembler | None
    result: Future[ReconstructionSummary] = field(default_factory=Future)

    @property
    def uid(self) -> str:
        """Of the raw run."""
        return self.start["uid"]


class Publisher:
    """The background thread: one queue of things to do, each quick, so that no result waits for another's.

    Nothing waits for the worker here: a job that is done puts what is to be done next into the queue.
    """

    def __init__(self, catalog: Catalog, worker: ReconstructionWorker, max_waiting: int) -> None:
        self.subscribers: dict[int, ProcessedCallback] = {}
        self._catalog = catalog
        self._worker = worker
        self._max_waiting = max_waiting
        self._tokens = count()
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: dict[Scan, Future[Reconstruction] | None] = {}
        self._waiting = 0
        self._closed = False

    def subscribe(self, callback: ProcessedCallback) -> int:
        """Call `callback` with the documents of each processed run; return a token."""
        token = next(self._tokens)
        self.subscribers[token] = callback
        return token

    def hand_over(self, scan: Scan) -> None:
        """Take a scan that has ended; quick, from the RunEngine's thread."""
        with self._lock:
            self._open[scan] = None
            refusal = None
            if self._closed:
                refusal = "the live callback was closed before the scan ended"
            elif self._waiting >= self._max_waiting:
                refusal = f"{self._waiting} scans wait for reconstruction already (worker.max_pending)"
            if refusal is not None:
                # Its frames must not pile up in memory.
                scan.assembler = None
            self._waiting += 1
            if self._closed:
                # The queue may have nobody any more who empties it, and a plan may wait for the result.
                threading.Thread(target=self._begin, args=(scan, refusal), daemon=True).start()
                return
            self._todo.put(partial(self._begin, scan, refusal))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work, args=(self._todo,), name="cdinn-publisher", daemon=True
                )
                self._thread.start()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the results of all scans that were handed over; False when that took longer."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            results = [scan.result for scan in self._open]
        _, not_done = wait_for_futures(results, timeout)
        if not_done:
            return False
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return self._settle(left)

    def close(self) -> None:
        """Cancel what is not done, write that down, and end the thread."""
        with self._lock:
            self._closed = True
            jobs = [job for job in self._open.values() if job is not None]
            thread = self._thread
        for job in jobs:
            job.cancel()
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while self._open and time.monotonic() < deadline:
            self._settle(1.0)
        self._todo.put(None)
        thread.join(max(0.0, deadline - time.monotonic()))

    def _settle(self, timeout: float | None) -> bool:
        """Wait until all that is in the queue now has been done."""
        if self._thread is None or not self._thread.is_alive():
            return True
        reached = threading.Event()
        self._todo.put(reached.set)
        return reached.wait(timeout)

    def _begin(self, scan: Scan, refusal: str | None) -> None:
        with self._lock:
            self._waiting -= 1
        try:
            if refusal is not None or scan.assembler is None:
                self._publish(scan, _failure(scan, refusal or "its documents were dropped"))
                return
            if scan.result.cancelled():
                self._publish(scan, _failure(scan, "cancelled before it began", "cancelled"))
                return
            curve = scan.assembler.curve()
            scan.assembler = None
            job = self._worker.submit(curve)
        except Exception as error:
            self._publish(scan, _failure(scan, _reason(error)))
            return
        with self._lock:
            self._open[scan] = job
            closed = self._closed
        scan.result.add_done_callback(lambda done: job.cancel() if done.cancelled() else None)
        job.add_done_callback(lambda _: self._todo.put(partial(self._end, scan, job)))
        if closed:
            job.cancel()

    def _end(self, scan: Scan, job: Future[Reconstruction]) -> None:
        try:
            outcome = replace(job.result(), raw_uid=scan.uid, scan_id=scan.start.get("scan_id"))
        except CancelledError:
            why = "the session ended before it" if self._closed else "cancelled on request"
            outcome = _failure(scan, f"{why}; reconstruct the stored scan to have it", "cancelled")
        except Exception as error:
            outcome = _failure(scan, _reason(error))
        self._publish(scan, outcome)

    def _publish(self, scan: Scan, outcome: Reconstruction) -> None:
        documents: list[Document] = []
        try:
            documents = _documents(scan, outcome)
            self._catalog.store_documents(documents)
            summary = ReconstructionSummary.from_start(documents[0][1], self._catalog.load)
        except Exception as error:
            # Whoever waits for the result must get one.
            logger.exception("the reconstruction of scan %s could not be stored", scan.uid)
            summary = ReconstructionSummary(raw_uid=scan.uid, status="failed", reason=_reason(error))
        with self._lock:
            self._open.pop(scan, None)
        logger.info("%s", summary)
        if scan.result.set_running_or_notify_cancel():
            scan.result.set_result(summary)
        for callback in list(self.subscribers.values()):
            _call(callback, documents)


def _work(todo: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (step := todo.get()) is not None:
        try:
            step()
        except Exception:
            logger.exception("a step of publishing a reconstruction failed; the next ones go on")
        # An idle thread must not keep the last scan's frames.
        del step


def _documents(scan: Scan, outcome: Reconstruction) -> list[Document]:
    try:
        return list(reconstruction_documents(outcome))
    except CdinnError as error:
        return list(reconstruction_documents(_failure(scan, _reason(error))))


def _call(callback: ProcessedCallback, documents: list[Document]) -> None:
    for name, document in documents:
        try:
            callback(name, document)
        except Exception:
            logger.exception("a callback for processed documents failed on a %s document", name)
            return


def _failure(scan: Scan, reason: str, status: Status = "failed") -> Reconstruction:
    logger.warning("scan %s was not reconstructed: %s", scan.uid, reason)
    metadata = {key: value for key, value in scan.start.items() if key not in ("uid", "scan_id")}
    return Reconstruction(
        density=np.zeros((0, 0, 0), np.complex64),
        support=np.zeros((0, 0, 0), bool),
        raw_uid=scan.uid,
        scan_id=scan.start.get("scan_id"),
        metadata=metadata,
        status=status,
        reason=reason,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, CdinnError):
        return str(error)
    logger.error("unforeseen", exc_info=error)
    return f"{type(error).__name__}: {error}"

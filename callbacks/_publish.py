"""The background thread that has scans reconstructed and their results written down."""

import logging
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import replace
from functools import partial
from typing import Any

from bluesky_cdinn.callbacks._scan import Scan
from bluesky_cdinn.callbacks._steps import Steps
from bluesky_cdinn.callbacks._subscribers import Subscribers
from bluesky_cdinn.callbacks._updates import Updates
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.documents import Document
from bluesky_cdinn.errors import CdinnError, ReconstructionFailed
from bluesky_cdinn.failure import failed_reconstruction, reason_of
from bluesky_cdinn.records import PartialResult, Reconstruction, Status
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.worker import ReconstructionWorker

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.1
_POINTS = ("event", "event_page", "stream_datum")


class Publisher:
    """The background thread: one queue of things to do, each quick, so that no result waits for another's.

    Nothing waits for the worker here: a job that is done puts what is to be done next into the queue.
    """

    def __init__(self, catalog: Catalog, worker: ReconstructionWorker, settings: Settings) -> None:
        self.subscribers = Subscribers()
        self._catalog = catalog
        self._worker = worker
        self._max_waiting = settings.worker.max_pending
        self._steps = Steps()
        self._updates = Updates(worker, settings.live, self._steps.put, self._show)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: dict[Scan, Future[Reconstruction] | None] = {}
        self._waiting = 0
        self._closed = False

    def take(self, scan: Scan, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a scan; quick, from the RunEngine's thread."""
        if not self._closed:
            scan.take(name, doc)
            if name in _POINTS and not scan.to_be_looked_at:
                scan.to_be_looked_at = True
                self._steps.put(partial(self._look, scan))
            if self._thread is None:
                self._start()
        if name == "stop":
            self._hand_over(scan)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._steps.run, name="cdinn-publisher", daemon=True)
                self._thread.start()

    def _look(self, scan: Scan) -> None:
        if scan.assembler is None:
            # It has ended meanwhile.
            return
        # Waking this thread takes the interpreter away from the RunEngine's: not for each point of a scan.
        early_s = scan.looked_at + _LOOK_EVERY_S - time.monotonic()
        if early_s > 0:
            self._steps.put(partial(self._look, scan), early_s)
            return
        scan.to_be_looked_at = False
        scan.looked_at = time.monotonic()
        self._updates.consider(scan)

    def _hand_over(self, scan: Scan) -> None:
        with self._lock:
            self._open[scan] = None
            refusal = None
            if self._closed:
                # Not the scan's fault: somebody else may do it.
                refusal = _failure(scan, "the live callback was closed before the scan ended", "cancelled")
            elif self._waiting >= self._max_waiting:
                why = f"{self._waiting} scans wait for reconstruction already (worker.max_pending)"
                refusal = _failure(scan, why)
            if refusal is not None:
                # Its frames must not pile up in memory.
                scan.let_go()
            self._waiting += 1
            if self._closed:
                # The queue may have nobody any more who empties it, and a plan may wait for the result.
                threading.Thread(target=self._begin, args=(scan, refusal), daemon=True).start()
                return
            self._steps.put(partial(self._begin, scan, refusal))

    def expect(self, scan: Scan, points: int) -> Future[PartialResult]:
        """Return the first partial result to come that rests on so many points; from any thread."""
        future: Future[PartialResult] = Future()
        # Before `close` asks for the end, or not at all: what is asked for after that is never done.
        with self._lock:
            if not self._closed and self._thread is not None:
                self._steps.put(partial(self._updates.expect, scan, points, future))
                return future
        future.set_exception(ReconstructionFailed(f"nothing looks at scan {scan.uid}"))
        return future

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
            self._updates.end_all()
            return
        self._steps.put(self._updates.end_all)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while self._open and time.monotonic() < deadline:
            self._settle(1.0)
        self._steps.end()
        thread.join(max(0.0, deadline - time.monotonic()))

    def _settle(self, timeout: float | None) -> bool:
        """Wait until all that is in the queue now has been done."""
        if self._thread is None or not self._thread.is_alive():
            return True
        reached = threading.Event()
        self._steps.put(reached.set)
        return reached.wait(timeout)

    def _begin(self, scan: Scan, refusal: Reconstruction | None) -> None:
        with self._lock:
            self._waiting -= 1
        self._updates.end(scan)
        try:
            if scan.result.cancelled():
                self._publish(scan, _failure(scan, "cancelled before it began", "cancelled"))
                return
            if refusal is not None or scan.assembler is None:
                self._publish(scan, refusal or _failure(scan, "its documents were dropped"))
                return
            job = self._worker.submit(scan.pieces())
            scan.let_go()
        except Exception as error:
            self._publish(scan, _failure(scan, reason_of(error)))
            return
        with self._lock:
            self._open[scan] = job
            closed = self._closed
        # Results are kept for long: they must not keep the job, and with it the scan.
        scan.result.add_done_callback(partial(_cancel, weakref.ref(job)))
        job.add_done_callback(lambda done: self._steps.put(partial(self._end, scan, done)))
        if closed:
            job.cancel()

    def _show(self, scan: Scan, result: PartialResult) -> None:
        try:
            documents = scan.processed.update(result)
        except CdinnError as error:
            logger.warning("a partial result of scan %s can't be told: %s", scan.uid, error)
            return
        scan.partials.append(result)
        try:
            self._catalog.store_running(scan.processed.uid, documents)
        except OSError:
            logger.exception("partial results of scan %s can't be written; the scan goes on", scan.uid)
        self.subscribers.tell(scan.processed.uid, documents, scan.processed.head)

    def _end(self, scan: Scan, job: Future[Reconstruction]) -> None:
        try:
            outcome = replace(job.result(), raw_uid=scan.uid, scan_id=scan.start.get("scan_id"))
        except CancelledError:
            why = "the session ended before it" if self._closed else "cancelled on request"
            outcome = _failure(scan, f"{why}; reconstruct the stored scan to have it", "cancelled")
        except Exception as error:
            outcome = _failure(scan, reason_of(error))
        self._publish(scan, outcome)

    def _publish(self, scan: Scan, outcome: Reconstruction) -> None:
        head, news = scan.processed.head, []
        try:
            whole, news = _documents(scan, outcome)
            self._catalog.store_documents(whole)
            summary = ReconstructionSummary.from_start(whole[0][1], self._catalog.load)
        except Exception as error:
            # Whoever waits for the result must get one.
            logger.exception("the reconstruction of scan %s could not be stored", scan.uid)
            summary = ReconstructionSummary(raw_uid=scan.uid, status="failed", reason=reason_of(error))
        self._worker.forget(scan.uid)
        scan.partials.clear()
        scan.let_go()
        with self._lock:
            self._open.pop(scan, None)
        logger.info("%s", summary)
        if scan.result.set_running_or_notify_cancel():
            scan.result.set_result(summary)
        if news:
            self.subscribers.tell(scan.processed.uid, news, head)


def _documents(scan: Scan, outcome: Reconstruction) -> tuple[list[Document], list[Document]]:
    """Return the whole processed run, and of it what has not been told."""
    try:
        return scan.processed.end(outcome)
    except CdinnError as error:
        return scan.processed.end(_failure(scan, reason_of(error)))


def _cancel(job: "weakref.ref[Future[Reconstruction]]", result: Future[ReconstructionSummary]) -> None:
    if result.cancelled() and (running := job()) is not None:
        running.cancel()


def _failure(scan: Scan, reason: str, status: Status = "failed") -> Reconstruction:
    logger.warning("scan %s was not reconstructed: %s", scan.uid, reason)
    return failed_reconstruction(scan.start, reason, status)

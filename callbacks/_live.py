"""The callback that turns rocking scans into reconstructions while the session goes on."""

import logging
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Self

import numpy as np

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler, is_rocking_curve
from bluesky_cdinn.callbacks._router import RunRouter
from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.documents import Document, reconstruction_documents
from bluesky_cdinn.errors import CdinnError, NotFound
from bluesky_cdinn.records import Reconstruction, Status
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.worker import ReconstructionWorker

logger = logging.getLogger(__name__)

REMEMBERED = 1000
"""Results kept for `LiveReconstruction.result`; older ones are in the catalog."""

_CLOSE_TIMEOUT_S = 30.0

ProcessedCallback = Callable[[str, Mapping[str, Any]], object]


class LiveReconstruction:
    """Reconstruct every rocking scan whose documents come by.

    Subscribe it to a RunEngine: ``RE.subscribe(live)``. Taking a document costs microseconds and never
    raises: frames are kept by reference, and everything else happens in one background thread, which hands
    finished scans to the worker process and writes what comes back into the catalog. Each scan gives one
    processed run, whatever happens: a scan that can't be reconstructed gives a failed one with the reason.

    Parameters
    ----------
    catalog
        Where results go; None opens the one that the settings name.
    settings
        None takes the catalog's, or reads them.
    worker
        Where the compute runs; None makes one.

    Notes
    -----
    A catalog and a worker that were made here are closed with this object; others are left alone.
    """

    def __init__(
        self,
        catalog: Catalog | None = None,
        settings: Settings | None = None,
        worker: ReconstructionWorker | None = None,
    ) -> None:
        if settings is None:
            settings = catalog.settings if catalog is not None else Settings()
        self.settings = settings
        self.catalog = catalog if catalog is not None else connect(settings)
        self.worker = worker or ReconstructionWorker(settings.worker, settings.reconstruction)
        self._owns = (worker is None, catalog is None)
        self._results: OrderedDict[str, Future[ReconstructionSummary]] = OrderedDict()
        self._lock = threading.Lock()
        self._publisher = _Publisher(self.catalog, self.worker, settings.worker.max_pending)
        self._router = RunRouter(self._open)
        # The background thread doesn't hold this object: forgetting it ends the thread.
        self._finalizer = weakref.finalize(self, self._publisher.close)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of any run; what can't be understood is logged, never raised."""
        try:
            self._router(name, doc)
        except Exception:
            logger.exception("a document (%s) could not be understood; the scan goes on", name)

    def result(self, raw_uid: str) -> Future[ReconstructionSummary]:
        """Return the result to come of a scan; it exists once the start document was seen.

        The future never fails: its summary says whether the reconstruction did. ``cancel()`` stops the
        reconstruction.

        Raises
        ------
        NotFound
            No rocking scan of that uid came by, or it is long ago.
        """
        with self._lock:
            future = self._results.get(raw_uid)
            seen = ", ".join(list(self._results)[-3:]) or "none at all"
        if future is None:
            raise NotFound(f"no rocking scan {raw_uid} came by here; the last ones were: {seen}")
        return future

    def subscribe(self, callback: ProcessedCallback) -> int:
        """Have `callback(name, document)` called with the documents of each processed run.

        It is called in the background thread, after the result is out; what it raises is logged.

        Returns
        -------
        int
            A token for `unsubscribe`.
        """
        return self._publisher.subscribe(callback)

    def unsubscribe(self, token: int) -> None:
        """Stop calling the callback that `subscribe` gave this token for."""
        self._publisher.subscribers.pop(token, None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the results of all scans that have ended; False when that took longer."""
        return self._publisher.wait(timeout)

    def close(self, wait: bool = True, timeout: float | None = None) -> None:
        """End the background thread; may be called more than once.

        Parameters
        ----------
        wait
            Whether results of ended scans are waited for; otherwise they are written down as cancelled.
        timeout
            How long, s; None waits as long as it takes.
        """
        if wait and self._finalizer.alive:
            self.wait(timeout)
        self._finalizer()
        owns_worker, owns_catalog = self._owns
        if owns_worker:
            self.worker.close()
        if owns_catalog:
            self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self, start: Mapping[str, Any]) -> Callable[[str, Mapping[str, Any]], None] | None:
        if not is_rocking_curve(start):
            return None
        scan = _Scan(dict(start), RockingCurveAssembler(self.settings.cdi))
        with self._lock:
            self._results[scan.uid] = scan.result
            while len(self._results) > REMEMBERED:
                self._results.popitem(last=False)
        # The scan takes longer than either needs to come up.
        self.worker.start()
        self.catalog.start()
        return partial(_take, scan, weakref.ref(self._publisher))


@dataclass(eq=False)
class _Scan:
    """A scan between its start document and its result."""

    start: Mapping[str, Any]
    assembler: RockingCurveAssembler | None
    result: Future[ReconstructionSummary] = field(default_factory=Future)

    @property
    def uid(self) -> str:
        return self.start["uid"]


def _take(scan: _Scan, publisher: "weakref.ref[_Publisher]", name: str, doc: Mapping[str, Any]) -> None:
    try:
        if scan.assembler is not None:
            scan.assembler(name, doc)
    finally:
        # A stop document that makes no sense ends the scan all the same.
        if name == "stop" and (alive := publisher()) is not None:
            alive.hand_over(scan)


class _Publisher:
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
        self._open: dict[_Scan, Future[Reconstruction] | None] = {}
        self._waiting = 0
        self._closed = False

    def subscribe(self, callback: ProcessedCallback) -> int:
        token = next(self._tokens)
        self.subscribers[token] = callback
        return token

    def hand_over(self, scan: _Scan) -> None:
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
            self._todo.put(partial(self._begin, scan, refusal))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work, args=(self._todo,), name="cdinn-publisher", daemon=True
                )
                self._thread.start()

    def wait(self, timeout: float | None) -> bool:
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

    def _begin(self, scan: _Scan, refusal: str | None) -> None:
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

    def _end(self, scan: _Scan, job: Future[Reconstruction]) -> None:
        try:
            outcome = replace(job.result(), raw_uid=scan.uid, scan_id=scan.start.get("scan_id"))
        except CancelledError:
            why = "the session ended before it" if self._closed else "cancelled on request"
            outcome = _failure(scan, f"{why}; reconstruct the stored scan to have it", "cancelled")
        except Exception as error:
            outcome = _failure(scan, _reason(error))
        self._publish(scan, outcome)

    def _publish(self, scan: _Scan, outcome: Reconstruction) -> None:
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


def _documents(scan: _Scan, outcome: Reconstruction) -> list[Document]:
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


def _failure(scan: _Scan, reason: str, status: Status = "failed") -> Reconstruction:
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

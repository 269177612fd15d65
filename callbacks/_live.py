"""The callback that turns rocking scans into reconstructions while the session goes on."""

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Self

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler, is_rocking_curve
from bluesky_cdinn.callbacks._publish import Publisher
from bluesky_cdinn.callbacks._router import RunRouter
from bluesky_cdinn.callbacks._scan import Scan
from bluesky_cdinn.callbacks._subscribers import ProcessedCallback
from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.worker import ReconstructionWorker

logger = logging.getLogger(__name__)

REMEMBERED = 1000
"""Results kept for `LiveReconstruction.result`; older ones are in the catalog."""


class LiveReconstruction:
    """Reconstruct every rocking scan whose documents come by.

    Subscribe it to a RunEngine: ``RE.subscribe(live)``. Taking a document costs microseconds and never
    raises: frames are kept by reference, and everything else happens in one background thread, which has the
    worker process look at scans while they run, hands it those that have ended, and writes what comes back
    into the catalog. Each scan gives one processed run, whatever happens: a scan that can't be reconstructed
    gives a failed one with the reason.

    Parameters
    ----------
    catalog
        Where results go; None opens the one that the settings name.
    settings
        None takes the catalog's, or reads them.
    worker
        Where the compute runs; None makes one.
    accept
        Asked with each rocking scan's start document whether it is to be reconstructed here; None takes all.

    Notes
    -----
    A catalog and a worker that were made here are closed with this object; others are left alone.
    """

    def __init__(
        self,
        catalog: Catalog | None = None,
        settings: Settings | None = None,
        worker: ReconstructionWorker | None = None,
        *,
        accept: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        if settings is None:
            settings = catalog.settings if catalog is not None else Settings()
        self.settings = settings
        self.catalog = catalog if catalog is not None else connect(settings)
        self.worker = worker or ReconstructionWorker(settings.worker, settings.reconstruction)
        self._accept = accept
        self._owns = (worker is None, catalog is None)
        self._results: OrderedDict[str, Future[ReconstructionSummary]] = OrderedDict()
        self._lock = threading.Lock()
        # Held by others, as long as they run.
        self._scans: weakref.WeakValueDictionary[str, Scan] = weakref.WeakValueDictionary()
        self._publisher = Publisher(self.catalog, self.worker, settings)
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

    def latest(self, raw_uid: str) -> PartialResult | None:
        """Return the newest partial result of a scan that runs; None before the first, and after the last.

        What a scan's partial results were is in the catalog: `bluesky_cdinn.catalog.Catalog.partials`.
        """
        return next(reversed(self.partials(raw_uid)), None)

    def partials(self, raw_uid: str) -> tuple[PartialResult, ...]:
        """Return the partial results so far of a scan that runs, the newest last; none after its end.

        Of a scan with very many they are the last ones.
        """
        with self._lock:
            scan = self._scans.get(raw_uid)
        # One copy, made at once: the publisher's thread appends.
        return tuple(scan.partials.copy()) if scan is not None else ()

    def partial(self, raw_uid: str, points: int) -> Future[PartialResult]:
        """Return the first partial result to come that rests on `points` points of a scan that runs.

        Such a one is made at once, however short ago the last one was. The future fails with
        `ReconstructionFailed` where there will be none, with `IncompleteScan` where so many points don't
        show the peak yet, or the scan has ended, and with what an update that was made for it raised.

        Raises
        ------
        NotFound
            No rocking scan of that uid runs here.
        """
        with self._lock:
            scan = self._scans.get(raw_uid)
        if scan is None:
            raise NotFound(f"no rocking scan {raw_uid} runs here")
        return self._publisher.expect(scan, points)

    def subscribe(self, callback: ProcessedCallback) -> int:
        """Have `callback(name, document)` called with the documents of each processed run.

        It is called in the background thread; what it raises is logged, and it gets no more of that run. The
        start document comes with the first partial result, its status "running", then each partial result as
        it is there; after the result is out, descriptor and event of the crystal, and the stop document. A
        scan without partial results gives all at its end, and the start document says how it ended.

        Returns
        -------
        int
            A token for `unsubscribe`.
        """
        return self._publisher.subscribers.add(callback)

    def unsubscribe(self, token: int) -> None:
        """Stop calling the callback that `subscribe` gave this token for."""
        self._publisher.subscribers.remove(token)

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
        if not is_rocking_curve(start) or (self._accept is not None and not self._accept(start)):
            return None
        scan = Scan(dict(start), RockingCurveAssembler(self.settings.cdi))
        with self._lock:
            self._results[scan.uid] = scan.result
            self._scans[scan.uid] = scan
            while len(self._results) > REMEMBERED:
                self._results.popitem(last=False)
        # The scan takes longer than either needs to come up.
        self.worker.start()
        self.catalog.start()
        return partial(_take, scan, weakref.ref(self._publisher))


def _take(scan: Scan, publisher: "weakref.ref[Publisher]", name: str, doc: Mapping[str, Any]) -> None:
    if (alive := publisher()) is not None:
        alive.take(scan, name, doc)

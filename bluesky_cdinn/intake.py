"""A worker's intake: from documents that may get lost to whole scans that are its own to reconstruct."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
from tiled.queries import Eq

from bluesky_cdinn.backfill import PROCESSED, RAW, Wanted, plan
from bluesky_cdinn.callbacks import (
    LiveReconstruction,
    ReceivedRun,
    RunRouter,
    is_result,
    is_rocking_curve,
    mapped,
)
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import Claims, is_claimed
from bluesky_cdinn.documents import Document
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.heartbeat import PulseWatch
from bluesky_cdinn.listing import listed
from bluesky_cdinn.metrics import WorkerMetrics
from bluesky_cdinn.staleness import Standard
from bluesky_cdinn.summary import ReconstructionSummary

logger = logging.getLogger(__name__)

COURTESY_S = 2.0
"""A busy worker waits so long for an idle one to claim a new scan."""

PATIENCE = 6
"""Sweeps for which the rest of a scan is waited for in Tiled; then it is done with what came."""

_FLUSH_S = 30.0


class ClaimedRun(ReceivedRun):
    """A scan that is this worker's.

    Attributes
    ----------
    handed_over
        Whether the live callback has had its stop document.
    result
        None until there is one.
    seen_stored
        Whether an earlier sweep found it whole in Tiled.
    patience
        Sweeps left.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        super().__init__(start)
        self.handed_over = False
        self.result: ReconstructionSummary | None = None
        self.seen_stored = False
        self.patience = PATIENCE


class Intake:
    """Takes documents, claims scans, and hands them over whole.

    `take` is called by the thread that follows documents, `sweep` by another one, now and then.

    Parameters
    ----------
    catalog
        Where claims, raw runs and reconstructions are.
    live
        Gets the documents of this worker's scans.
    claims, watch
        Who has what, and lives.
    metrics
        Counts results, and scans that were read from Tiled.

    Attributes
    ----------
    runs
        Scans that are claimed and not done, by uid; may be read from any thread.
    needs_sweep
        Set when `sweep` has something to do.
    """

    def __init__(
        self,
        catalog: Catalog,
        live: LiveReconstruction,
        claims: Claims,
        watch: PulseWatch,
        metrics: WorkerMetrics,
    ) -> None:
        self.runs: dict[str, ClaimedRun] = {}
        self.needs_sweep = threading.Event()
        self._catalog = catalog
        self._settings = catalog.settings.remote
        self._max_runs = catalog.settings.worker.max_pending
        self._since = datetime.fromtimestamp(time.time() - self._settings.look_back_s, UTC)
        self._standard = Standard(catalog.settings.reconstruction)
        self._live = live
        self._claims = claims
        self._watch = watch
        self._metrics = metrics
        self._router = RunRouter(self._open)
        # One document at a time, whether it was followed or read from Tiled.
        self._lock = threading.RLock()
        self._granted = ""
        self._outstanding: frozenset[str] = frozenset()
        self._settled: set[str] = set()

    @property
    def waiting(self) -> int:
        """Scans that are over and wait for their turn, the one that is being done not counted."""
        return max(0, sum(run.handed_over and run.result is None for run in self.runs.values()) - 1)

    def take(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of any run; what can't be understood is logged, never raised."""
        try:
            with self._lock:
                self._router(name, mapped(name, doc, self._settings.paths))
        except Exception:
            logger.exception("a %s document could not be understood", name)

    def sweep(self, *, catch_up: bool = True) -> None:
        """Release what is done, complete what was lost, and do what nobody did.

        Raises
        ------
        StoreUnavailable, httpx.HTTPError
            Tiled can't be reached; the next sweep goes on.
        """
        self._release()
        for run in list(self.runs.values()):
            if not run.handed_over:
                self._complete(run)
        if catch_up and not self.runs:
            self._catch_up()

    def _open(self, start: Mapping[str, Any]) -> Callable[[str, Mapping[str, Any]], None] | None:
        if not is_rocking_curve(start):
            return None
        uid = start["uid"]
        try:
            mine = uid == self._granted or (not self._leave_to_idle(uid) and self._claim(uid))
        except (StoreUnavailable, httpx.HTTPError) as error:
            logger.warning("scan %s can't be claimed now, it is done later: %s", uid, error)
            return None
        if not mine:
            return None
        run = ClaimedRun(start)
        self.runs = {**self.runs, uid: run}
        return partial(self._receive, run)

    def _leave_to_idle(self, uid: str) -> bool:
        """Give an idle worker the time to claim a scan, if this one is busy; whether somebody did."""
        if not self.runs or not self._watch.idle_besides(self._claims.worker):
            return False
        claims = self._catalog.folder(self._settings.claims)
        deadline = time.monotonic() + COURTESY_S
        while not (claimed := is_claimed(claims, uid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return claimed

    def _claim(self, uid: str) -> bool:
        """Claim a scan that nobody has done."""
        if len(self.runs) >= self._max_runs or not self._watch.lives(self._claims.worker, self._claims.since):
            return False
        claims = self._catalog.folder(self._settings.claims)
        if not self._claims.take(claims, uid):
            return False
        # Whoever had claimed it may have done it and released it in the meantime.
        made = listed(self._catalog.processed, PROCESSED, Eq("start.raw_uid", uid))
        if any(map(is_result, made)):
            self._claims.release(claims, uid)
            self._settled.add(uid)
            return False
        return True

    def _receive(self, run: ClaimedRun, name: str, doc: Mapping[str, Any]) -> None:
        run(name, doc)
        if name == "stop" and (lost := run.lost()):
            logger.warning("scan %s is completed from Tiled: %s", run.uid, lost)
            self.needs_sweep.set()
            return
        self._hand_over(run, name, doc)

    def _hand_over(self, run: ClaimedRun, name: str, doc: Mapping[str, Any]) -> None:
        self._live(name, doc)
        if name == "start":
            self._live.result(run.uid).add_done_callback(partial(self._end, run))
        elif name == "stop":
            run.handed_over = True

    def _end(self, run: ClaimedRun, done: Future[ReconstructionSummary]) -> None:
        run.result = done.result()
        self._metrics.ended(run.result)
        self.needs_sweep.set()

    def _release(self) -> None:
        ended = {run.uid: run.result for run in self.runs.values() if run.result is not None}
        if not ended or not self._catalog.flush(_FLUSH_S):
            return
        claims = self._catalog.folder(self._settings.claims)
        for uid, result in ended.items():
            if not self._metrics.device and result.success:
                made = self._catalog.processed[result.processed_uid].metadata["start"]
                self._metrics.device = str(made.get("device", ""))
            self._claims.release(claims, uid)
            with self._lock:
                self.runs = {other: run for other, run in self.runs.items() if other != uid}

    def _complete(self, run: ClaimedRun) -> None:
        """Hand a scan over that ended without all of its documents, as soon as Tiled holds them."""
        stored = any(found["stop"] for found in listed(self._catalog.raw, RAW, Eq("start.uid", run.uid)))
        over = run.stop is not None
        if stored and (over or run.seen_stored):
            for name, doc in self._stored(run.uid):
                with self._lock:
                    # The stop document may have come after all.
                    if name != "start" and not run.handed_over:
                        self._hand_over(run, name, doc)
        elif over:
            run.patience -= 1
            if run.patience == 0:
                logger.warning("scan %s is done with what came: Tiled doesn't have it", run.uid)
                with self._lock:
                    self._hand_over(run, "stop", run.stop or {})
        # A stop document that is only late comes before the next sweep.
        run.seen_stored = stored

    def _catch_up(self) -> None:
        """Do one scan that nobody has done, the newest; the next sweep does the next."""
        orders = plan(self._catalog, Wanted(since=self._since), self._standard).orders
        # What failed will not do for a backfill, but here once is enough.
        uids = [order.raw_uid for order in orders if order.raw_uid not in self._settled]
        # What ended a moment ago is on its way to somebody.
        known = [uid for uid in uids if uid in self._outstanding]
        self._outstanding = frozenset(uids)
        for uid in known:
            if self._claim(uid):
                logger.info("scan %s was done by nobody and is read from Tiled", uid)
                self._granted = uid
                for name, doc in self._stored(uid):
                    self.take(name, doc)
                return

    def _stored(self, uid: str) -> Iterator[Document]:
        """Yield a scan's documents from Tiled."""
        self._metrics.mended()
        return self._catalog.raw_documents(uid)

"""A worker's intake: from documents that may get lost to whole scans that are its own to reconstruct."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import httpx
from tiled.queries import Eq

from bluesky_cdinn.backfill import PROCESSED, RAW
from bluesky_cdinn.callbacks import (
    LiveReconstruction,
    RunRouter,
    is_result,
    is_rocking_curve,
    mapped,
)
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claimed_run import ClaimedRun
from bluesky_cdinn.claims import Claims, is_claimed
from bluesky_cdinn.documents import Document
from bluesky_cdinn.errors import StoreUnavailable, WorkerDied
from bluesky_cdinn.heartbeat import PulseWatch
from bluesky_cdinn.leftovers import Leftovers
from bluesky_cdinn.listing import listed
from bluesky_cdinn.metrics import WorkerMetrics
from bluesky_cdinn.summary import ReconstructionSummary

logger = logging.getLogger(__name__)

COURTESY_S = 2.0
"""A busy worker waits so long for an idle one to claim a new scan."""

PATIENCE_S = 300.0
"""The rest of a scan is waited for so long in Tiled, while Tiled is there; then what came is taken."""

SILENCE_S = 1800.0
"""A scan of which no document came for so long is given up, and done when Tiled has it."""

_FLUSH_S = 30.0


class Intake:
    """Takes documents, claims scans, and hands them over whole.

    `take` is called by the thread that follows documents, `sweep` by another one, now and then, `close` when
    both have ended.

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
        self._max_waiting = catalog.settings.worker.max_pending
        self._leftovers = Leftovers(catalog)
        self._live = live
        self._claims = claims
        self._watch = watch
        self._metrics = metrics
        self._router = RunRouter(self._open)
        # One document at a time, whether it was followed or read from Tiled.
        self._lock = threading.RLock()
        self._granted = ""

    @property
    def waiting(self) -> int:
        """Scans that are over and wait for their turn, the one that is being done not counted."""
        return max(0, sum(run.waits for run in self.runs.values()) - 1)

    def take(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of any run; what can't be understood is logged, never raised."""
        try:
            with self._lock:
                self._router(name, mapped(name, doc, self._settings.paths))
        except Exception:
            logger.exception("a %s document could not be understood", name)

    def sweep(self) -> None:
        """Release what is done, complete what was lost, and do what nobody did.

        What is wrong with one scan is logged, and keeps nothing from the others.

        Raises
        ------
        StoreUnavailable, httpx.HTTPError
            Tiled can't be reached; the next sweep goes on.
        """
        try:
            self._release()
            for run in self.runs.values():
                if not run.handed_over and run.result is None:
                    with self._alone(run.uid, "completed"):
                        self._complete(run)
                    with self._alone(run.uid, "ended"):
                        self._lose_patience(run)
            if not any(run.waits for run in self.runs.values()):
                self._catch_up()
        except (StoreUnavailable, httpx.HTTPError):
            for run in self.runs.values():
                run.patient_until = None
            raise

    def close(self) -> None:
        """Give all scans back, done or not: another worker does those that aren't.

        Raises
        ------
        StoreUnavailable, httpx.HTTPError
            Tiled can't be reached.
        """
        with self._lock:
            self.runs = {uid: run for uid, run in self.runs.items() if run.result is not None}
        self._release()

    @contextlib.contextmanager
    def _alone(self, uid: str, what: str) -> Iterator[None]:
        """Log what is wrong with one scan, and count it; raise where it is Tiled that is away."""
        try:
            yield
        except Exception as error:
            # Raises if Tiled doesn't answer: then the scan is not to be blamed.
            self._catalog.folder(self._settings.claims)
            self._leftovers.failed(uid)
            foreseen = isinstance(error, (StoreUnavailable, httpx.HTTPError))
            logger.warning("scan %s can't be %s: %s", uid, what, error, exc_info=not foreseen)

    def _open(self, start: Mapping[str, Any]) -> Callable[[str, Mapping[str, Any]], None] | None:
        if not is_rocking_curve(start):
            return None
        uid = start["uid"]
        try:
            mine = uid == self._granted or (not self._leave_to_idle(uid) and self._claim(uid))
        except (StoreUnavailable, httpx.HTTPError) as error:
            logger.warning("scan %s can't be claimed now, it is done later: %s", uid, error)
            # What was claimed all the same is released.
            self.needs_sweep.set()
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
        """Claim a scan that nobody has done; a claim that comes to nothing is released by the next sweep."""
        waiting = sum(run.waits for run in self.runs.values())
        if waiting >= self._max_waiting or not self._watch.lives(self._claims.worker, self._claims.since):
            return False
        try:
            if not self._claims.take(self._catalog.folder(self._settings.claims), uid):
                return False
        except WorkerDied as error:
            logger.error("%s", error)
            return False
        # Whoever had claimed it may have done it and released it in the meantime.
        made = listed(self._catalog.processed, PROCESSED, Eq("start.raw_uid", uid))
        if any(map(is_result, made)):
            self._leftovers.settle(uid)
            self.needs_sweep.set()
            return False
        return True

    def _receive(self, run: ClaimedRun, name: str, doc: Mapping[str, Any]) -> None:
        run.heard = time.monotonic()
        run(name, doc)
        if name == "stop" and run.result is None and (lost := run.lost()):
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
        cancelled = ReconstructionSummary(run.uid, status="cancelled")
        run.result = cancelled if done.cancelled() else done.result()
        self._metrics.ended(run.result)
        self.needs_sweep.set()

    def _release(self) -> None:
        """Let go of what is done, and release each claim that no scan here needs."""
        ended = [run for run in self.runs.values() if run.result is not None]
        if ended and self._catalog.flush(_FLUSH_S):
            with self._lock:
                self.runs = {uid: run for uid, run in self.runs.items() if run not in ended}
            for run in ended:
                self._settle(run)
        with self._lock:
            needless = self._claims.held.keys() - self.runs.keys()
        for uid in needless:
            with self._alone(uid, "released"):
                self._claims.release(self._catalog.folder(self._settings.claims), uid)

    def _settle(self, run: ClaimedRun) -> None:
        result = run.result
        if result is None or result.status == "cancelled":
            return
        # Whether or not Tiled took the result, here another one is not made.
        self._leftovers.settle(run.uid)
        if result.success and not self._metrics.device:
            with contextlib.suppress(KeyError, StoreUnavailable, httpx.HTTPError):
                made = self._catalog.processed[result.processed_uid].metadata["start"]
                self._metrics.device = str(made.get("device", ""))

    def _complete(self, run: ClaimedRun) -> None:
        """Hand a scan over that ended without all of its documents, as soon as Tiled holds them."""
        stored = any(found["stop"] for found in listed(self._catalog.raw, RAW, Eq("start.uid", run.uid)))
        # A stop document that is only late comes before the next sweep.
        ready = stored and (run.stop is not None or run.seen_stored)
        run.seen_stored = stored
        for name, doc in self._stored(run.uid) if ready else ():
            with self._lock:
                # The stop document may have come after all.
                if name != "start" and not run.handed_over:
                    self._hand_over(run, name, doc)

    def _lose_patience(self, run: ClaimedRun) -> None:
        """End a scan whose rest doesn't come: with what came, or, if it seems to run still, with nothing."""
        now = time.monotonic()
        if run.handed_over:
            return
        if run.stop is None and not run.seen_stored:
            if now - run.heard > SILENCE_S:
                logger.warning("scan %s is given up: no document came for %g s", run.uid, SILENCE_S)
                with self._lock:
                    self._live.result(run.uid).cancel()
                    self._router("stop", run.stop_in_its_place())
        elif run.patient_until is None:
            run.patient_until = now + PATIENCE_S
        elif now >= run.patient_until:
            logger.warning("scan %s is done with what came: Tiled doesn't give the rest", run.uid)
            with self._lock:
                self._hand_over(run, "stop", run.stop or run.stop_in_its_place())

    def _catch_up(self) -> None:
        """Do one scan that nobody has done, the newest; the next sweep does the next."""
        for uid in self._leftovers.look():
            with self._alone(uid, "read"):
                if self._claim(uid):
                    logger.info("scan %s was done by nobody and is read from Tiled", uid)
                    self._take_stored(uid)
                    return

    def _take_stored(self, uid: str) -> None:
        self._granted = uid
        try:
            for name, doc in self._stored(uid):
                self.take(name, doc)
        finally:
            self._granted = ""

    def _stored(self, uid: str) -> Iterator[Document]:
        """Yield a scan's documents from Tiled."""
        self._metrics.mended()
        return self._catalog.raw_documents(uid)

"""When scans that run are looked at: each by one update at a time, of what is newest when its turn comes."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial

from bluesky_cdinn.callbacks._scan import Scan
from bluesky_cdinn.errors import IncompleteScan, ReconstructionFailed
from bluesky_cdinn.growing import CurveInPieces
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.settings import LiveSettings
from bluesky_cdinn.worker import ReconstructionWorker

logger = logging.getLogger(__name__)

FAILURES = 2
"""After so many updates in a row that failed, a scan is left alone until its end: the next would fail too."""


@dataclass(eq=False)
class Followed:
    """Where the updates of one scan are.

    Parameters
    ----------
    job
        The update that was asked for and isn't done.
    waiting
        For the least time since the last one to be over.
    asked_at
        When that was, s of the monotonic clock.
    seen
        Points that the last one saw.
    failures
        In a row.
    """

    job: Future[PartialResult] | None = None
    waiting: bool = False
    asked_at: float = -float("inf")
    seen: int = 0
    failures: int = 0

    def wait_s(self, points: int, now: float, settings: LiveSettings) -> float | None:
        """Return how long to wait before the next update; None where there is nothing to look at."""
        if self.job is not None or self.failures >= FAILURES:
            return None
        if points <= self.seen or points < settings.least_points:
            return None
        return max(0.0, self.asked_at + settings.interval_s - now)


class Updates:
    """Asks the worker for updates. All of it happens in the publisher's thread, but for `end`.

    Parameters
    ----------
    worker
        That is asked.
    settings
        How often, if at all.
    later
        Has a step done in the publisher's thread, after so many seconds.
    show
        Called there with each partial result.
    """

    def __init__(
        self,
        worker: ReconstructionWorker,
        settings: LiveSettings,
        later: Callable[[Callable[[], None], float], None],
        show: Callable[[Scan, PartialResult], None],
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._later = later
        self._show = show
        self._followed: dict[Scan, Followed] = {}
        self._closed = False

    def consider(self, scan: Scan) -> None:
        """Ask for an update of a scan that has come further, unless it is too early."""
        if self._closed or not self._settings.updates or self._worker.follows is False:
            return
        followed = self._followed.setdefault(scan, Followed())
        wait_s = followed.wait_s(scan.points, time.monotonic(), self._settings)
        if wait_s is None or followed.waiting:
            return
        if wait_s > 0:
            followed.waiting = True
            self._later(partial(self._wake, scan), wait_s)
        else:
            self._ask(scan, followed)

    def end(self, scan: Scan) -> None:
        """Cancel what is under way for a scan, which has ended."""
        followed = self._followed.pop(scan, None)
        if followed is None:
            return
        if followed.job is not None:
            followed.job.cancel()

    def end_all(self) -> None:
        """Cancel what is under way, and ask for no more."""
        self._closed = True
        for scan in list(self._followed):
            self.end(scan)

    def _wake(self, scan: Scan) -> None:
        followed = self._followed.get(scan)
        if followed is not None:
            followed.waiting = False
            self.consider(scan)

    def _ask(self, scan: Scan, followed: Followed) -> None:
        followed.asked_at = time.monotonic()
        try:
            job = self._worker.update(scan.uid, partial(_newest, scan, followed))
        except ReconstructionFailed as closed:
            logger.debug("scan %s is not looked at while it runs: %s", scan.uid, closed)
            followed.failures = FAILURES
            return
        followed.job = job
        job.add_done_callback(lambda done: self._later(partial(self._done, scan, done), 0.0))

    def _done(self, scan: Scan, job: Future[PartialResult]) -> None:
        followed = self._followed.get(scan)
        if followed is None:
            return
        followed.job = None
        try:
            result = job.result()
        except CancelledError:
            # It made way for a scan that has ended, and is asked for again.
            followed.seen = 0
        except IncompleteScan as early:
            logger.debug("scan %s shows nothing yet: %s", scan.uid, early)
        except Exception as error:
            followed.failures += 1
            logger.info("an update of scan %s failed: %s", scan.uid, error)
        else:
            followed.failures = 0
            self._show(scan, result)
        self.consider(scan)


def _newest(scan: Scan, followed: Followed) -> CurveInPieces:
    """Return what there is, in the worker's thread, when the turn of an update has come."""
    followed.seen = scan.points
    return scan.pieces()

"""When scans that run are looked at: each by one update at a time, of what is newest when its turn comes."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial

from bluesky_cdinn.callbacks._scan import Scan
from bluesky_cdinn.errors import CdinnError, IncompleteScan, ReconstructionFailed
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
    outcome
        What the last one came to.
    expected
        Who waits for one that has seen so many points.
    """

    job: Future[PartialResult] | None = None
    waiting: bool = False
    asked_at: float = -float("inf")
    seen: int = 0
    failures: int = 0
    outcome: PartialResult | Exception | None = None
    expected: list[tuple[int, Future[PartialResult]]] = field(default_factory=list)

    def wait_s(self, points: int, now: float, settings: LiveSettings) -> float | None:
        """Return how long to wait before the next update; None where there is nothing to look at."""
        if self.job is not None or self.failures >= FAILURES:
            return None
        if points <= self.seen or points < settings.least_points:
            return None
        if any(wanted <= points for wanted, _ in self.expected):
            return 0.0
        return max(0.0, self.asked_at + settings.interval_s - now)

    def answer(self) -> None:
        """Give the last outcome to those who waited for no more than it has seen."""
        outcome, ready = self.outcome, [future for wanted, future in self.expected if wanted <= self.seen]
        if outcome is None or self.job is not None:
            return
        self.expected = [(wanted, future) for wanted, future in self.expected if wanted > self.seen]
        for future in ready:
            settle(future, outcome)

    def refuse(self, reason: CdinnError) -> None:
        """Tell all who wait that there will be nothing."""
        waiting, self.expected = self.expected, []
        for _, future in waiting:
            settle(future, reason)


def settle(future: Future[PartialResult], outcome: PartialResult | Exception) -> None:
    """End a future, unless whoever waited for it has given up."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


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
        if not self._made:
            return
        followed = self._followed.setdefault(scan, Followed())
        wait_s = followed.wait_s(scan.points, time.monotonic(), self._settings)
        if wait_s is None or (followed.waiting and wait_s > 0):
            return
        if wait_s > 0:
            followed.waiting = True
            self._later(partial(self._wake, scan), wait_s)
        else:
            self._ask(scan, followed)

    def expect(self, scan: Scan, points: int, future: Future[PartialResult]) -> None:
        """Have the first partial result that rests on so many points given to `future`, without delay.

        It gets what went wrong instead where there will be none: `IncompleteScan` where the peak isn't in
        view after so many points, `ReconstructionFailed` where updates are off or fail.
        """
        if scan.assembler is None:
            settle(future, IncompleteScan(f"scan {scan.uid} has ended"))
            return
        if not self._made:
            why = "updates are off: see live.updates"
            settle(future, ReconstructionFailed(f"scan {scan.uid} gives no partial result: {why}"))
            return
        least = self._settings.least_points
        if points < least:
            settle(future, IncompleteScan(f"at least {least} points are looked at, got {points}"))
            return
        followed = self._followed.setdefault(scan, Followed())
        followed.expected.append((points, future))
        followed.answer()
        if followed.failures >= FAILURES:
            followed.refuse(ReconstructionFailed(f"updates of scan {scan.uid} failed: {followed.outcome}"))
        self.consider(scan)

    @property
    def _made(self) -> bool:
        return not self._closed and self._settings.updates and self._worker.follows is not False

    def end(self, scan: Scan) -> None:
        """Cancel what is under way for a scan, which has ended."""
        followed = self._followed.pop(scan, None)
        if followed is None:
            return
        followed.refuse(IncompleteScan(f"scan {scan.uid} has ended"))
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
            followed.refuse(closed)
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
            followed.outcome = early
            logger.debug("scan %s shows nothing yet: %s", scan.uid, early)
        except Exception as error:
            followed.failures += 1
            followed.outcome = error
            logger.info("an update of scan %s failed: %s", scan.uid, error)
        else:
            followed.failures = 0
            followed.outcome = result
            followed.answer()
            self._show(scan, result)
        followed.answer()
        if followed.failures >= FAILURES:
            followed.refuse(ReconstructionFailed(f"updates of scan {scan.uid} failed: {followed.outcome}"))
        self.consider(scan)


def _newest(scan: Scan, followed: Followed) -> CurveInPieces:
    """Return what there is, in the worker's thread, when the turn of an update has come."""
    followed.seen = scan.points
    return scan.pieces()

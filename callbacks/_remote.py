"""How a plan waits for a reconstruction that a worker elsewhere makes: Tiled tells when it is there."""

import contextlib
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Self

import httpx
from tiled.queries import In

from bluesky_cdinn.callbacks._assembler import is_rocking_curve
from bluesky_cdinn.callbacks._remote_partials import watch_partials
from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.errors import NotFound, StoreUnavailable
from bluesky_cdinn.listing import PAGE, listed
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.spool import ABANDONED
from bluesky_cdinn.summary import ReconstructionSummary

logger = logging.getLogger(__name__)

REMEMBERED = 1000
"""Results kept for `RemoteReconstruction.result`, and scans waited for; older ones are in the catalog."""

# What tells a result from what is still computed, and what makes its summary.
_ENDED = "{start: start, stop: stop.{exit_status: exit_status}}"
_SETTLE_S = 1.0
# One message holds one run's metadata.
_MAX_MESSAGE = 64_000_000
_CLOSE_TIMEOUT_S = 10.0


class RemoteReconstruction:
    """Tell plans when workers elsewhere have reconstructed their scans.

    Give it to a plan in place of a `LiveReconstruction`:
    ``rocking_scan_with_recon(det, theta, ..., live=RemoteReconstruction(catalog))``. It reconstructs nothing
    itself; documents must reach the workers, by `DocumentBroadcast` for one. Taking a document costs
    microseconds, whether or not Tiled is there: a thread follows Tiled, by its websocket, and looks there
    itself now and then.

    Parameters
    ----------
    catalog
        Where workers write; None opens the one that the settings name, and closes it with this object.
    poll_s
        Seconds between looks, for where the websocket doesn't get through.
    """

    def __init__(self, catalog: Catalog | None = None, *, poll_s: float = 5.0) -> None:
        self.catalog = catalog if catalog is not None else connect(Settings())
        self._owns_catalog = catalog is None
        self._expected = _Expected(self.catalog)
        self._thread = threading.Thread(
            target=_await_results, args=(self._expected, poll_s), name="cdinn-results", daemon=True
        )
        self._thread.start()
        # The thread doesn't hold this object: forgetting it ends the thread.
        self._finalizer = weakref.finalize(self, _finish, self._expected, self._thread)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of any run; only start documents matter, and nothing is ever raised."""
        try:
            if name == "start" and is_rocking_curve(doc):
                self._expected.add(doc["uid"])
        except Exception:
            logger.exception("a start document could not be understood; its run isn't waited for")

    def result(self, raw_uid: str) -> Future[ReconstructionSummary]:
        """Return the result to come of a scan; it exists once the start document was seen.

        The future never fails, and it may never be done: how long to wait is for the plan to say. A
        reconstruction that was cancelled because its worker was stopped is not a result: another worker
        makes one.

        Raises
        ------
        NotFound
            No rocking scan of that uid came by, or it is long ago.
        """
        return self._expected.future(raw_uid)

    def partial(self, raw_uid: str, points: int) -> Future[PartialResult]:
        """Return the first partial result that Tiled shows of so many points of a scan that runs.

        The workers make them in their own time (``live.interval_s``), and Tiled shows the newest. The future
        fails with `IncompleteScan` once the scan's result is there; it may never be done: cancel it then.

        Raises
        ------
        NotFound
            As `result` does.
        """
        return watch_partials(self.catalog, raw_uid, points, self.result(raw_uid))

    def close(self) -> None:
        """End the thread; results that aren't there yet don't come any more. May be called more than once."""
        self._finalizer()
        if self._owns_catalog:
            self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def is_result(metadata: Mapping[str, Any]) -> bool:
    """Whether what Tiled says of a processed run makes it the end of the matter.

    It isn't while its scan runs; nor if its worker was stopped or died, for another one makes a result then.
    """
    start = metadata.get("start") or {}
    if not metadata.get("stop") or start.get("status") not in ("success", "failed"):
        return False
    return start.get("reason") != ABANDONED


class _Expected:
    """The scans whose results are waited for, and what Tiled says of them."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.changed = threading.Event()
        self.closed = False
        self._lock = threading.Lock()
        self._futures: OrderedDict[str, Future[ReconstructionSummary]] = OrderedDict()

    def add(self, raw_uid: str) -> None:
        with self._lock:
            self._futures.setdefault(raw_uid, Future())
            while len(self._futures) > REMEMBERED:
                self._futures.popitem(last=False)
        self.changed.set()

    def future(self, raw_uid: str) -> Future[ReconstructionSummary]:
        with self._lock:
            future = self._futures.get(raw_uid)
            seen = ", ".join(list(self._futures)[-3:]) or "none at all"
        if future is None:
            raise NotFound(f"no rocking scan {raw_uid} came by here; the last ones were: {seen}")
        return future

    def waiting(self) -> list[str]:
        """Return the scans without a result."""
        with self._lock:
            return [uid for uid, future in self._futures.items() if not future.done()]

    def look(self) -> None:
        """Ask Tiled about all scans without a result, the newest ones first."""
        newest = self.waiting()[::-1]
        for first in range(0, len(newest), PAGE):
            among = In("start.raw_uid", newest[first : first + PAGE])
            for metadata in listed(self.catalog.processed, _ENDED, among):
                self.take(metadata)

    def on_update(self, update: Any) -> None:
        """Take what the websocket says of one processed run."""
        try:
            self.take(update.metadata)
        except Exception:
            logger.exception("Tiled said of a run what could not be understood")

    def take(self, metadata: Mapping[str, Any]) -> None:
        """Take what Tiled says of one processed run; it is a result when it is over."""
        start = metadata.get("start") or {}
        with self._lock:
            future = self._futures.get(start.get("raw_uid", ""))
        if future is None or not is_result(metadata):
            return
        summary = ReconstructionSummary.from_start(start, self.catalog.load)
        with self._lock:
            if future.done() or not future.set_running_or_notify_cancel():
                return
        logger.info("%s", summary)
        future.set_result(summary)


def _await_results(expected: _Expected, poll_s: float) -> None:
    subscription = None
    told = False
    while not expected.closed:
        if not expected.waiting():
            expected.changed.wait()
            expected.changed.clear()
            continue
        pause = poll_s
        try:
            if subscription is None or not subscription.alive:
                subscription = _Subscription(expected)
                # What happens until it is connected only a look tells.
                pause = min(_SETTLE_S, poll_s)
            expected.look()
            told = False
        except (StoreUnavailable, httpx.HTTPError) as error:
            if not told:
                logger.warning("results can't be seen now: %s", error)
            told = True
        except Exception:
            logger.exception("looking for results failed; it is tried again")
        expected.changed.wait(pause)
        expected.changed.clear()
    if subscription is not None:
        subscription.close()


class _Subscription:
    """Tiled's websocket about processed runs, followed in a thread until it breaks for good."""

    def __init__(self, expected: _Expected) -> None:
        self._subscription = expected.catalog.processed.subscribe()
        # Held here: the subscription itself refers to its callbacks weakly.
        self._on_update = expected.on_update
        self._subscription.child_metadata_updated.add_callback(self._on_update)
        self._subscription.child_created.add_callback(self._on_update)
        self._thread = threading.Thread(target=self._follow, name="cdinn-results-websocket", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._subscription.disconnect()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _follow(self) -> None:
        try:
            self._subscription.start(max_size=_MAX_MESSAGE)
        except Exception as error:
            # The library has tried for most of a minute; who looks for results makes another.
            logger.info("Tiled's websocket is not there: %s", error)


def _finish(expected: _Expected, thread: threading.Thread) -> None:
    expected.closed = True
    expected.changed.set()
    if thread is not threading.current_thread():
        thread.join(_CLOSE_TIMEOUT_S)

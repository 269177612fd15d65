"""From the spool into Tiled: in order, exactly once, again and again while Tiled is away."""

import contextlib
import logging
import math
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bluesky_tiled_plugins import TiledWriter
from bluesky_tiled_plugins.writing.tiled_writer import BATCH_SIZE, MAX_ARRAY_SIZE

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.documents import Document
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.running import RunningRuns, take_away
from bluesky_cdinn.spool import (
    HeldRun,
    Kind,
    SpooledRun,
    recover_abandoned,
    sole_delivery,
    spooled_runs,
)

logger = logging.getLogger(__name__)

RETRY_S = 5.0
PATIENCE_S = 300.0
"""A run that Tiled couldn't take for so long lets the next ones go first."""

_ATTEMPTS = 3
_BATCH_BYTES = 16_000_000
_CLOSE_TIMEOUT_S = 60.0


class Delivery:
    """Delivers the runs of one spool, in a thread that starts with the first `wake`.

    Parameters
    ----------
    spool
        The folder.
    container
        Kind of run -> client of the container it belongs to; raises `StoreUnavailable` when Tiled is away.
    answers
        Whether Tiled is there.

    Attributes
    ----------
    running
        Processed runs of scans that still run, which are shown in Tiled meanwhile.
    """

    def __init__(self, spool: Path, container: Callable[[Kind], Any], answers: Callable[[], bool]) -> None:
        self._spool = spool
        self._container = container
        self._answers = answers
        self._refusals: Counter[str] = Counter()
        self._troubled: dict[str, float] = {}
        self._away = False
        self._connect = False
        self._held: list[HeldRun] = []
        self.running = RunningRuns(spool)
        self._starting = threading.Lock()
        self.closed = False
        self._one_at_a_time = threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        # The thread must not keep this object alive.
        weakref.finalize(self, self._woken.set)

    def wake(self, *, connect: bool = False) -> None:
        """Have the thread deliver what is there, now; and connect even when there is nothing."""
        self._connect = self._connect or connect
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_keep_delivering,
                    args=(weakref.ref(self), self._woken),
                    name="cdinn-delivery",
                    daemon=True,
                )
                self._thread.start()
        self._woken.set()

    def hold(self, kind: Kind, documents: Iterable[Document]) -> None:
        """Take a run that the spool doesn't take; it is in memory until Tiled has it."""
        self._held.append(HeldRun(kind, documents, self._held))

    def waiting(self) -> list[SpooledRun | HeldRun]:
        """Return the runs that Tiled doesn't hold yet, oldest first."""
        return [*spooled_runs(self._spool), *self._held]

    def find(self, kind: Kind, uid: str) -> SpooledRun | HeldRun | None:
        """Return the waiting run of that uid, or the only one whose uid begins so."""
        found = [run for run in self.waiting() if run.kind == kind and run.uid.startswith(uid)]
        return found[0] if len(found) == 1 else None

    def run_once(self) -> int:
        """Deliver what is there, in this thread; return how many runs still wait.

        Tiled being away is no error here; it is logged once.
        """
        with self._one_at_a_time:
            if self._connect:
                self._connect = False
                with contextlib.suppress(StoreUnavailable):
                    self._container("raw")
            # Whoever only reads leaves no folder behind.
            if not self.waiting() and not self._spool.is_dir():
                return 0
            with sole_delivery(self._spool) as mine:
                if mine:
                    recover_abandoned(self._spool)
                    # Not while another process may be giving Tiled the whole of such a run.
                    self.running.show(self._container)
                self._deliver_all(self.waiting() if mine else list(self._held))
        return len(self.waiting())

    def close(self) -> None:
        """End the thread; what waits stays in the spool."""
        self.closed = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_TIMEOUT_S)
        for run in self._held:
            logger.critical(
                "%s run %s is lost: the spool %s could not be written and Tiled is away",
                run.kind,
                run.uid,
                self._spool,
            )

    def _deliver_all(self, runs: Iterable[SpooledRun | HeldRun]) -> None:
        """Deliver runs in order, up to the first one that is to be waited for."""
        passed_over: list[SpooledRun | HeldRun] = []
        for run in runs:
            try:
                delivered = self._deliver(run)
            except StoreUnavailable as error:
                if not self._away:
                    logger.warning("%s; runs wait in %s", error, self._spool)
                self._away = True
                return
            if delivered:
                # Tiled works, so that it is these runs that it can't take.
                while passed_over:
                    self._put_aside(passed_over.pop(), f"for {PATIENCE_S:g} s, and took the next one")
            elif delivered is None:
                # Unless it has been put aside already.
                if run.uid in self._troubled:
                    passed_over.append(run)
            else:
                return

    def _deliver(self, run: SpooledRun | HeldRun) -> bool | None:
        """Deliver one run; False when it is to be waited for, None when the next may go first."""
        try:
            deliver(self._container(run.kind), run.uid, run.documents(), every_array=run.kind == "processed")
        except StoreUnavailable:
            raise
        except Exception as error:
            return self._put_off(run, error)
        if self._away:
            logger.info("Tiled is back; runs from %s are delivered", self._spool)
        self._away = False
        self._troubled.pop(run.uid, None)
        run.remove()
        return True

    def _put_off(self, run: SpooledRun | HeldRun, error: Exception) -> bool | None:
        first = run.uid not in self._troubled and run.uid not in self._refusals
        if first:
            logger.error("%s run %s could not be delivered to Tiled", run.kind, run.uid, exc_info=error)
        if may_pass(error):
            since = self._troubled.setdefault(run.uid, time.monotonic())
            return None if time.monotonic() - since > PATIENCE_S and self._answers() else False
        self._refusals[run.uid] += 1
        if self._refusals[run.uid] < _ATTEMPTS:
            return False
        self._put_aside(run, f"{_ATTEMPTS} times")
        return None

    def _put_aside(self, run: SpooledRun | HeldRun, refused: str) -> None:
        logger.error("Tiled refused run %s %s; it is put aside", run.uid, refused)
        self._troubled.pop(run.uid, None)
        self._refusals.pop(run.uid, None)
        run.reject()


def may_pass(error: Exception) -> bool:
    """Whether a failed delivery may be Tiled's own trouble, and not the run's.

    It is where Tiled, the network or this machine broke down, or nobody is let in; not where Tiled said what
    is wrong with the run, or the run could not even be read.
    """
    if isinstance(error, httpx.HTTPStatusError):
        code = error.response.status_code
        return code >= 500 or code in (401, 403, 404, 408, 409, 429)
    return isinstance(error, httpx.HTTPError | OSError) and not isinstance(error, FileNotFoundError)


def deliver(container: Any, uid: str, documents: Iterable[Document], *, every_array: bool) -> None:
    """Write one whole run into a container, unless it is there; one that was left half-written is replaced.

    Parameters
    ----------
    container
        Tiled client.
    uid
        Of the run.
    documents
        From start to stop.
    every_array
        Store small arrays as arrays too, rather than in the table of events, which keeps no shape.
    """
    runs = plain_client(container)
    if uid in runs:
        if "stop" in runs[uid].metadata:
            return
        take_away(runs, uid)
    head, rest = _up_to_data(documents)
    largest = 0 if every_array else MAX_ARRAY_SIZE
    # As the writer makes it of a client, but for asking Tiled once more about what has no data of its own.
    described = container.new_variation(include_data_sources=True)
    writer = TiledWriter(described, max_array_size=largest, batch_size=_batch_size(head))
    for name, document in chain(head, rest):
        writer(name, document)


def _up_to_data(documents: Iterable[Document]) -> tuple[list[Document], Iterator[Document]]:
    """Split off the documents that describe the data; the data are read one by one later."""
    rest = iter(documents)
    head: list[Document] = []
    for document in rest:
        head.append(document)
        if document[0] not in ("start", "descriptor"):
            break
    return head, rest


def _batch_size(head: Iterable[Document]) -> int:
    """Events to write at once: few enough to spare memory and this process's other threads."""
    largest = 1
    for name, document in head:
        if name == "descriptor":
            keys = [key for key in document["data_keys"].values() if "external" not in key]
            largest = max(largest, sum(_size(key) for key in keys))
    return max(1, min(BATCH_SIZE, _BATCH_BYTES // largest))


def _size(key: Mapping[str, Any]) -> int:
    items = math.prod(length or 1 for length in key.get("shape", ()))
    # Without a dtype it is a list of Python numbers.
    return items * np.dtype(key.get("dtype_numpy") or "f8").itemsize if key["dtype"] == "array" else 8


def _keep_delivering(delivery: "weakref.ref[Delivery]", woken: threading.Event) -> None:
    waiting = 0
    while True:
        woken.wait(RETRY_S if waiting else None)
        woken.clear()
        alive = delivery()
        if alive is None or alive.closed:
            return
        try:
            waiting = alive.run_once()
        except Exception:
            logger.exception("delivering from the spool failed; it is tried again")
            waiting = 1
        # Held only while it works.
        del alive

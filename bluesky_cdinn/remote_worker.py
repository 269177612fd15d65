"""A worker on any machine: follows documents, claims scans, reconstructs them, writes them into Tiled.

Several may run. Each follows all documents; which of them reconstructs a scan `bluesky_cdinn.claims` says,
what happens when documents are lost `bluesky_cdinn.intake`. Here they are put together with the threads that
drive them: this one follows documents, one beats the heart, one sweeps.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import httpx

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import Claims
from bluesky_cdinn.errors import InvalidInput, StoreUnavailable
from bluesky_cdinn.heartbeat import Heartbeat, PulseWatch, next_beat, post, read_all, withdraw
from bluesky_cdinn.intake import Intake
from bluesky_cdinn.metrics import WorkerMetrics
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.transport import open_feed
from bluesky_cdinn.worker import ENTRY, ReconstructionWorker

logger = logging.getLogger(__name__)

_JOIN_S = 30.0


class RemoteWorker:
    """One worker; `run` is its whole life.

    Parameters
    ----------
    settings
        Where documents come from, which catalog, how to reconstruct.
    name
        Tells it from other workers; None takes the machine's name and the process's number.
    entry
        As for `ReconstructionWorker`.

    Raises
    ------
    InvalidInput
        An address is wrong, or on another machine though the settings don't allow that.
    """

    def __init__(self, settings: Settings, name: str | None = None, *, entry: str = ENTRY) -> None:
        self._settings = settings
        self._feed = open_feed(settings.remote)
        self.metrics = WorkerMetrics()
        host = socket.gethostname()
        self._heartbeat = Heartbeat(
            name or f"{host}-{os.getpid()}",
            since=time.time(),
            host=host,
            pid=os.getpid(),
            version=version("bluesky-cdinn"),
            device=settings.reconstruction.device,
        )
        self._catalog = Catalog(settings)
        self._worker = ReconstructionWorker(settings.worker, settings.reconstruction, entry=entry)
        self._live = LiveReconstruction(self._catalog, settings, self._worker)
        self._live.subscribe(self.metrics.processed)
        self._watch = PulseWatch(settings.remote.silent_s)
        claims = Claims(self._heartbeat.name, self._heartbeat.since, self._watch, self._look)
        self._intake = Intake(self._catalog, self._live, claims, self._watch, self.metrics)
        self.metrics.watch(lambda: len(self._intake.runs), lambda: self._intake.waiting)
        self._replaced_by: Heartbeat | None = None
        self._away = False
        self._stopping = threading.Event()
        self._over = threading.Event()

    def stop(self) -> None:
        """Have `run` come to its end; from any thread, or a signal's handler."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop` is called, then end what has begun, for ``remote.stop_s`` at most.

        Raises
        ------
        InvalidInput
            Another worker has taken the name, or the metrics can't be served where the settings say.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._catalog.close)
            if address := self.metrics.serve(self._settings.remote, stack):
                logger.info("metrics at %s", address)
            # The heart beats until the last result is stored, so that nobody takes its scans over.
            stack.callback(self._withdraw)
            # Who doesn't live yet can't claim.
            with self._tiled_may_be_away("no heartbeat"):
                self._beat()
            stack.enter_context(_thread("cdinn-heartbeat", self._keep_beating, self._over))
            stack.callback(self._finish)
            stack.enter_context(_thread("cdinn-sweep", self._keep_sweeping, self._intake.needs_sweep))
            stack.callback(self._stopping.set)
            self._worker.start()
            logger.info("worker %s follows %s", self._heartbeat.name, self._settings.remote.follow)
            self._feed.follow(self._take, self._stopping)
        if self._replaced_by is not None:
            other = self._replaced_by
            raise InvalidInput(
                f"each worker needs a name of its own, {other.name} is now process {other.pid} on "
                f"{other.host}: give one of them another --name"
            )

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        self.metrics.document()
        self._intake.take(name, doc)

    def _finish(self) -> None:
        logger.info("stopping; what has begun is ended")
        self._live.wait(self._settings.remote.stop_s)
        self._live.close(wait=False)
        self._worker.close()
        with self._tiled_may_be_away("claims are not released"):
            self._intake.close()

    def _keep_beating(self) -> None:
        while not self._over.is_set():
            with self._tiled_may_be_away("no heartbeat"):
                self._beat()
            self._over.wait(self._settings.remote.heartbeat_s)

    def _beat(self) -> None:
        metrics, intake = self.metrics, self._intake
        self._heartbeat = next_beat(
            self._heartbeat,
            device=metrics.device or self._heartbeat.device,
            waiting=intake.waiting,
            runs=tuple(intake.runs),
            done=metrics.done,
            failed=metrics.failed,
            updates=metrics.updates,
            last_error=metrics.last_error,
        )
        other = self._watch.heartbeats.get(self._heartbeat.name)
        if self._heartbeat.beat > 1 and other is not None and other.since > self._heartbeat.since:
            self._replaced_by = other
            self.stop()
            return
        post(self._catalog.folder(self._settings.remote.workers), self._heartbeat)
        metrics.beat()
        self._look()

    def _look(self) -> None:
        self._watch.look(read_all(self._catalog.folder(self._settings.remote.workers)))

    def _withdraw(self) -> None:
        if self._replaced_by is None:
            with self._tiled_may_be_away("no goodbye"):
                withdraw(self._catalog.folder(self._settings.remote.workers), self._heartbeat.name)

    def _keep_sweeping(self) -> None:
        needed = self._intake.needs_sweep
        while not self._stopping.is_set():
            needed.clear()
            with self._tiled_may_be_away("no sweep"):
                self._intake.sweep()
            needed.wait(self._settings.remote.sweep_s)

    @contextlib.contextmanager
    def _tiled_may_be_away(self, what: str) -> Iterator[None]:
        """Log what Tiled's absence prevents, once."""
        try:
            yield
        except (StoreUnavailable, httpx.HTTPError) as error:
            if not self._away:
                logger.warning("%s while Tiled is away: %s", what, error)
            self._away = True
        except Exception:
            logger.exception("%s this time", what)
        else:
            self._away = False


@contextlib.contextmanager
def _thread(name: str, work: Callable[[], None], wake: threading.Event) -> Iterator[None]:
    """Run `work` beside the block, and wait for its end after it; `wake` has it look whether it should."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        wake.set()
        thread.join(_JOIN_S)

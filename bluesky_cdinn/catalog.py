"""Raw and processed runs in Tiled: where they are written, found and read.

Every run goes by the spool (`bluesky_cdinn.spool`): it is on disk before Tiled is asked to take it, so that
writing never waits for Tiled and nothing is lost while Tiled is away.
"""

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, Self

from tiled.queries import Comparison, Eq, NotEq

from bluesky_cdinn.connection import Connection
from bluesky_cdinn.delivery import Delivery
from bluesky_cdinn.documents import (
    PURPOSE,
    RUNNING,
    Document,
    reconstruction_documents,
    reconstruction_from_documents,
    reconstruction_from_run,
)
from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.filled import filled_documents
from bluesky_cdinn.partials import partials_from_documents, partials_from_run
from bluesky_cdinn.recorder import RunRecorder
from bluesky_cdinn.records import PartialResult, Reconstruction
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.spool import HeldRun, Kind, RunJournal, SpooledRun, running_runs
from bluesky_cdinn.summary import ReconstructionSummary, StoredStatus

logger = logging.getLogger(__name__)

# Reading waits this long for what this process has still to write.
_READ_YOUR_WRITES_S = 30.0
_CLOSE_FLUSH_S = 15.0

Moment = float | datetime


def connect(settings: Settings | None = None) -> "Catalog":
    """Open the catalog that the settings name; nothing is started or asked before it is used."""
    return Catalog(settings)


class Catalog:
    """The raw and the processed runs of one Tiled server.

    Parameters
    ----------
    settings
        ``tiled.uri`` or ``tiled.profile`` names a server; else ``tiled.directory`` is served by an embedded
        one, shared with every process of this user that opens the same directory. What waits for Tiled lies
        in ``spool``.

    Notes
    -----
    Methods that read raise `StoreUnavailable` when Tiled can't be reached; those that write don't.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._connection = Connection(self.settings.tiled)
        self._spool = self.settings.spool.resolve()
        self._delivery = Delivery(self._spool, self._connection.container, self._connection.answers)
        self._recorder: RunRecorder | None = None
        self._folders: dict[str, Any] = {}
        self._lock = threading.Lock()
        _open_catalogs.add(self)
        self._delivery.wake()

    def start(self) -> None:
        """Connect in the background, starting the embedded server where there is none; returns at once."""
        self._delivery.wake(connect=True)

    @property
    def uri(self) -> str:
        """Of the server, without its key."""
        return self._connection.address().uri

    @property
    def api_key(self) -> str | None:
        """Of the server, for handing to another client; don't log it."""
        return self._connection.address().api_key

    @property
    def raw(self) -> Any:
        """Client of the measured runs; what this process measured is in it, or Tiled is behind."""
        self.flush(_READ_YOUR_WRITES_S)
        return self._connection.container("raw", sure=True)

    @property
    def processed(self) -> Any:
        """Client of the reconstructions."""
        self.flush(_READ_YOUR_WRITES_S)
        return self._connection.container("processed", sure=True)

    def folder(self, path: str) -> Any:
        """Client of any other container, made if there is none; ``a/b`` is b in a."""
        known = self._folders.get(path)
        # To walk there costs several requests each time.
        if known is None or not self._connection.answers():
            known = self._folders[path] = self._connection.folder(path)
        return known

    def raw_writer(self) -> RunRecorder:
        """Return the callback to subscribe to a RunEngine; always the same one.

        What it is given is on disk at once and in Tiled when Tiled takes it; it never holds a scan up.
        """
        self.start()
        with self._lock:
            if self._recorder is None:
                self._recorder = RunRecorder(self._spool, "raw", partial(_on_recorded, self._delivery))
            return self._recorder

    def store(self, reconstruction: Reconstruction) -> str:
        """Write a reconstruction as a processed run and return its uid; Tiled gets it in the background."""
        return self.store_documents(reconstruction_documents(reconstruction))

    def store_documents(self, documents: Iterable[Document]) -> str:
        """Write the documents of one processed run, as `store` does."""
        documents = list(documents)
        _, start = documents[0]
        journal = None
        try:
            journal = RunJournal(self._spool, "processed", start)
            for name, document in documents[1:]:
                journal.append(name, document)
            journal.complete()
        except OSError:
            # Half of it must not reach Tiled in place of the whole.
            if journal is not None:
                journal.withdraw()
            logger.exception("the spool %s can't be written; a result is kept in memory", self._spool)
            self._delivery.hold("processed", documents)
        self._delivery.running.end(start["uid"])
        self._delivery.wake()
        return start["uid"]

    def store_raw(self, documents: Iterable[Document]) -> str:
        """Write the documents of a raw run that was measured elsewhere; whole or not at all.

        Parameters
        ----------
        documents
            From start to stop, taken one by one; Tiled gets them in the background.

        Raises
        ------
        OSError
            The spool can't be written; and whatever the documents raise. Nothing is kept then.
        """
        remaining = iter(documents)
        _, start = next(remaining)
        journal = RunJournal(self._spool, "raw", start)
        try:
            for name, document in remaining:
                journal.append(name, document)
            journal.complete()
        except BaseException:
            journal.discard()
            raise
        self._delivery.wake()
        return start["uid"]

    def store_running(self, uid: str, documents: Iterable[Document]) -> None:
        """Write what comes of a processed run whose scan still runs; `store_documents` of the whole ends it.

        Tiled shows it as far as it keeps up. Should this process die, the run becomes a failed one.

        Parameters
        ----------
        uid
            Of the processed run.
        documents
            In their order, the start document first of all.

        Raises
        ------
        OSError
            The spool can't be written.
        """
        self._delivery.running.write(uid, documents)
        self._delivery.wake()

    def deliver_spooled(self) -> int:
        """Give Tiled all that waits for it, now and in order; return how many runs still wait."""
        return self._delivery.run_once()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until Tiled holds all that this process wrote; False when it doesn't within the time.

        Returns at once when Tiled is away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._recorder is not None and not self._recorder.flush(timeout):
            return False
        while self._delivery.run_once():
            late = deadline is not None and time.monotonic() > deadline
            if late or not self._connection.answers():
                return False
            time.sleep(0.1)
        return True

    def reconstructions(
        self,
        raw_uid: str | None = None,
        *,
        sample: str | None = None,
        status: StoredStatus | None = None,
        min_confidence: float | None = None,
        max_chi2: float | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: int = 100,
    ) -> list[ReconstructionSummary]:
        """Search the reconstructions, newest first.

        Parameters
        ----------
        raw_uid
            Of one scan, whole.
        sample, status
            Exactly so. Without a status those of scans that still run ("running") are left out.
        min_confidence, max_chi2
            Limits included; a reconstruction without that number is left out.
        since, until
            When it was reconstructed: seconds since 1970 or a datetime, the latter excluded.
        limit
            At most so many.
        """
        found = self.processed.search(Eq("start.purpose", PURPOSE))
        equal = {"raw_uid": raw_uid, "sample": sample, "status": status}
        for key, value in equal.items():
            found = found if value is None else found.search(Eq(f"start.{key}", value))
        if status is None:
            found = found.search(NotEq("start.status", RUNNING))
        limits = [
            ("ge", "scalars.confidence", min_confidence),
            ("le", "scalars.chi2", max_chi2),
            ("ge", "time", _timestamp(since)),
            ("lt", "time", _timestamp(until)),
        ]
        for operator, key, value in limits:
            found = found if value is None else found.search(Comparison(operator, f"start.{key}", value))
        newest = found.sort(("start.time", -1)).values().head(limit)
        return [ReconstructionSummary.from_start(run.metadata["start"], self.load) for run in newest]

    def latest(self, raw_uid: str | None = None, **limits: Any) -> ReconstructionSummary:
        """Return the newest reconstruction that `reconstructions` finds.

        Raises
        ------
        NotFound
            There is none.
        """
        found = self.reconstructions(raw_uid, **limits, limit=1)
        if found:
            return found[0]
        asked = {name: value for name, value in {"raw_uid": raw_uid, **limits}.items() if value is not None}
        newest = self.reconstructions(limit=3)
        there = ", ".join(f"{s.processed_uid[:8]} of scan {s.raw_uid[:8]}" for s in newest) or "none at all"
        raise NotFound(f"no reconstruction with {asked} in {self.uri}; the newest there: {there}")

    def load(self, uid: str) -> Reconstruction:
        """Read a reconstruction back, from Tiled or from where it waits for Tiled.

        Parameters
        ----------
        uid
            Of the processed run, or its first characters.

        Raises
        ------
        NotFound
            No processed run has that uid.
        """
        if (waiting := self._delivery.find("processed", uid)) is not None:
            # It may be delivered, and gone from here, in this very moment.
            with contextlib.suppress(FileNotFoundError):
                return reconstruction_from_documents(waiting.documents())
        return reconstruction_from_run(self._run("processed", uid))

    def partials(self, uid: str) -> list[PartialResult]:
        """Return what was known of a crystal while its scan ran, in order; of a running scan, so far.

        Parameters
        ----------
        uid
            Of the scan's run, then its newest reconstruction with partial results is taken; or of the
            processed run. Either by its first characters too, if it is on this machine still.

        Raises
        ------
        NotFound
            No reconstruction has that uid, or is of that scan.
        """
        for run in reversed([*running_runs(self._spool), *self._delivery.waiting()]):
            # It may be delivered, and gone from here, in this very moment.
            with contextlib.suppress(FileNotFoundError):
                if run.kind == "processed" and _is_of(run, uid):
                    return partials_from_documents(run.documents())
        ofscan = self.processed.search(Eq("start.purpose", PURPOSE)).search(Eq("start.raw_uid", uid))
        for run in ofscan.sort(("start.time", -1)).values():
            if found := partials_from_run(run):
                return found
        return [] if len(ofscan) else partials_from_run(self._run("processed", uid))

    def waiting_raw(self) -> list[dict[str, Any]]:
        """Return the start documents of raw runs that Tiled doesn't hold yet, oldest first."""
        starts = []
        for run in self._delivery.waiting():
            # It may be delivered, and gone from here, in this very moment.
            with contextlib.suppress(FileNotFoundError):
                if run.kind == "raw":
                    starts.append(next(run.documents())[1])
        return starts

    def raw_documents(self, raw_uid: str) -> Iterator[Document]:
        """Yield a stored raw run's documents, frames in its events where files can't be reached from here.

        ``remote.paths`` of the settings says where this machine sees files that others wrote.

        Raises
        ------
        NotFound
            No raw run has that uid.
        """
        return filled_documents(self._run("raw", raw_uid), self.settings.remote.paths)

    def close(self) -> None:
        """Write what is left, then stop threads and the embedded server; may be called more than once."""
        if self not in _open_catalogs:
            return
        _open_catalogs.discard(self)
        self.flush(_CLOSE_FLUSH_S)
        if self._recorder is not None:
            self._recorder.close()
        self._delivery.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        tiled = self.settings.tiled
        return f"<Catalog {tiled.uri or tiled.profile or tiled.directory}>"

    def _run(self, kind: Kind, uid: str) -> Any:
        container = self.raw if kind == "raw" else self.processed
        try:
            return container[uid]
        except (KeyError, ValueError) as error:
            newest = ", ".join(container.keys().tail(3)) or "none at all"
            raise NotFound(
                f"no {kind} run {uid!r} in {self.uri} ({error}); the newest there: {newest}"
            ) from None


def _on_recorded(delivery: Delivery, documents: list[Document] | None) -> None:
    if documents is not None:
        delivery.hold("raw", documents)
    delivery.wake()


def _is_of(run: SpooledRun | HeldRun, uid: str) -> bool:
    """Whether a run has that uid, or is a reconstruction of the scan that has it."""
    _, start = next(run.documents(), ("start", None))
    # Its folder is there before its first line.
    return start is not None and any(start[name].startswith(uid) for name in ("uid", "raw_uid"))


def _timestamp(moment: Moment | None) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment


# At exit every catalog writes what it holds; a catalog that nobody holds any more closes by itself.
_open_catalogs: "weakref.WeakSet[Catalog]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for catalog in list(_open_catalogs):
        try:
            catalog.close()
        except Exception:
            logger.exception("%r could not be closed in order; what it had to write is in the spool", catalog)

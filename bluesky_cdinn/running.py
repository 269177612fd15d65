"""Processed runs of scans that still run: on disk at once, and shown in Tiled as far as Tiled keeps up.

What is on disk is delivered only if the whole run never comes, because this process died; what is in Tiled is
replaced by the whole run. So nothing here need arrive: while Tiled is slow only the newest event waits for
it, and while Tiled is away none.
"""

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bluesky_tiled_plugins import TiledWriter
from tiled.client.container import Container

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.documents import Document
from bluesky_cdinn.spool import RunJournal

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    """One such run: what it begins with, the newest event that Tiled hasn't got, and what writes it there."""

    journal: RunJournal
    head: list[Document] = field(default_factory=list)
    newest: Document | None = None
    writer: TiledWriter | None = None


class RunningRuns:
    """The runs of one spool that this process writes.

    Parameters
    ----------
    spool
        The folder.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._runs: dict[str, _Running] = {}
        self._lock = threading.Lock()

    def write(self, uid: str, documents: Iterable[Document]) -> None:
        """Take documents of a run, its start document first of all.

        Raises
        ------
        OSError
            The disk doesn't take them: the run is not shown either, since nobody could clean it up.
        """
        for name, document in documents:
            if name == "start":
                journal = RunJournal(self._spool, "processed", document, running=True)
                with self._lock:
                    self._runs[uid] = _Running(journal, [(name, document)])
                continue
            run = self._runs.get(uid)
            if run is None:
                # The disk didn't take its beginning.
                return
            try:
                run.journal.append(name, document)
            except OSError:
                self.end(uid)
                raise
            with self._lock:
                if name == "event":
                    run.newest = (name, document)
                else:
                    run.head.append((name, document))

    def end(self, uid: str) -> None:
        """Forget a run, because the whole of it is in the spool, or never will be."""
        with self._lock:
            run = self._runs.pop(uid, None)
        if run is not None:
            run.journal.discard()

    def show(self, container: Callable[[Any], Any]) -> None:
        """Write what is new into Tiled; failing that is no harm.

        Parameters
        ----------
        container
            Kind of run -> Tiled client of its container.
        """
        for uid in list(self._runs):
            with self._lock:
                run = self._runs.get(uid)
                if run is None or run.newest is None:
                    continue
                event, run.newest = run.newest, None
                head = list(run.head)
            try:
                if run.writer is None:
                    run.writer = _begun(container("processed"), uid, head)
                run.writer(*copy.deepcopy(event))
            except Exception as error:
                # It may have arrived in part: the next one begins afresh.
                run.writer = None
                logger.debug("the running reconstruction %s is not shown: %s", uid, error)


def take_away(runs: Any, uid: str) -> None:
    """Delete a run that is incomplete; who follows it is told that it has ended.

    Parameters
    ----------
    runs
        `plain_client` of its container.
    uid
        Of the run.
    """
    with contextlib.suppress(Exception):
        _close_streams(runs[uid])
    runs.delete_contents([uid], recursive=True, external_only=False)


def _begun(container: Any, uid: str, head: Iterable[Document]) -> TiledWriter:
    runs = plain_client(container)
    if uid in runs:
        if "stop" in runs[uid].metadata:
            raise FileExistsError("Tiled holds the whole run already")
        take_away(runs, uid)
    writer = TiledWriter(container, max_array_size=0, batch_size=1)
    for name, document in head:
        writer(name, copy.deepcopy(document))
    return writer


def _close_streams(node: Any) -> None:
    for child in node.values() if isinstance(node, Container) else ():
        _close_streams(child)
    node.close_stream()

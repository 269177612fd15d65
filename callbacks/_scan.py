"""A scan between its start document and its result."""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler
from bluesky_cdinn.errors import IncompleteScan
from bluesky_cdinn.growing import CurveInPieces
from bluesky_cdinn.processed_run import ProcessedRun
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.summary import ReconstructionSummary

logger = logging.getLogger(__name__)

REMEMBERED = 256
"""Partial results kept of a scan that runs, 0.1 MB each; all of them are in the catalog."""


@dataclass(eq=False)
class Scan:
    """What is known of one scan, and what is made of it.

    Parameters
    ----------
    start
        Its start document.
    assembler
        Collects its documents; None once they have been handed over, or are dropped.
    result
        To come.
    partials
        Its partial results while it runs, the last `REMEMBERED`.
    looked_at
        When it was last seen how far it is, s of the monotonic clock.
    to_be_looked_at
        Whether that has been asked for again.
    """

    start: Mapping[str, Any]
    assembler: RockingCurveAssembler | None
    result: Future[ReconstructionSummary] = field(default_factory=Future)
    partials: deque[PartialResult] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    looked_at: float = -float("inf")
    to_be_looked_at: bool = False

    def __post_init__(self) -> None:
        self.processed = ProcessedRun(self.start)
        self._came: deque[tuple[str, Mapping[str, Any]]] = deque()
        # The publisher's thread and the worker's look at what has come.
        self._lock = threading.Lock()

    @property
    def uid(self) -> str:
        """Of the raw run."""
        return self.start["uid"]

    @property
    def points(self) -> int:
        """How many points have been measured; 0 once the documents have gone."""
        with self._lock:
            self._read()
            return self.assembler.points if self.assembler is not None else 0

    def take(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document, unread: this is all that happens in the RunEngine's thread."""
        if self.assembler is not None:
            self._came.append((name, doc))

    def pieces(self) -> CurveInPieces:
        """Return what has been measured.

        Raises
        ------
        IncompleteScan, InvalidInput
            As `RockingCurveAssembler.pieces`, or the documents have gone.
        """
        with self._lock:
            if self.assembler is None:
                raise IncompleteScan(f"the documents of scan {self.uid} have been let go")
            self._read()
            return self.assembler.pieces()

    def let_go(self) -> None:
        """Drop the documents, which nobody needs any more."""
        self.assembler = None
        self._came.clear()

    def _read(self) -> None:
        while self._came:
            name, doc = self._came.popleft()
            if self.assembler is None:
                continue
            try:
                self.assembler(name, doc)
            except Exception:
                logger.exception("a document (%s) could not be understood; the scan goes on", name)

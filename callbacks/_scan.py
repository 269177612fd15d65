"""A scan between its start document and its result."""

import threading
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
    partial
        The newest partial result while it runs.
    """

    start: Mapping[str, Any]
    assembler: RockingCurveAssembler | None
    result: Future[ReconstructionSummary] = field(default_factory=Future)
    partial: PartialResult | None = None

    def __post_init__(self) -> None:
        self.processed = ProcessedRun(self.start)
        # Documents come in one thread, and the worker's takes what has come.
        self._lock = threading.Lock()

    @property
    def uid(self) -> str:
        """Of the raw run."""
        return self.start["uid"]

    @property
    def points(self) -> int:
        """How many points have been measured; 0 once the documents have gone."""
        with self._lock:
            return self.assembler.points if self.assembler is not None else 0

    def take(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document.

        Raises
        ------
        InvalidInput
            It can't be understood.
        """
        with self._lock:
            if self.assembler is not None:
                self.assembler(name, doc)

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
            return self.assembler.pieces()

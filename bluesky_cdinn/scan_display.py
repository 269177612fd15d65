"""How far a scan and its crystal are, on the terminal of whoever runs it."""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from bluesky.utils import ProgressBarManager

from bluesky_cdinn.callbacks import LiveReconstruction, ReconstructionSummary, is_rocking_curve
from bluesky_cdinn.records import Progress
from bluesky_cdinn.terminal import progress_bars

logger = logging.getLogger(__name__)


class ScanDisplay:
    """Bars while a scan runs and while its crystal is found; one line in the end.

    Bars are there only while the RunEngine runs, so that they never stand in the way of a prompt; the line
    is printed whenever the crystal is there. Nothing that goes wrong here reaches a scan.
    """

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._scan: Callable[[Progress], None] | None = None
        self._crystal: Callable[[Progress], None] | None = None
        self._lock = threading.RLock()
        self._uid = ""
        self._name = ""
        self._expected = 0
        self._seen = 0
        self._streams: set[str] = set()
        self._live: LiveReconstruction | None = None
        self._waiting = ProgressBarManager()
        self._waits = False

    def follow(self, RE: Any, live: LiveReconstruction) -> None:
        """Show what a RunEngine does and what becomes of its scans; `live` must be subscribed before."""
        self._live = live
        RE.subscribe(self)
        RE.state_hook = self.state_changed
        RE.waiting_hook = self.waiting
        live.subscribe(self.update)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of the RunEngine's."""
        try:
            with self._lock:
                self._take(name, doc)
        except Exception:
            logger.exception("a scan can't be shown; it goes on")

    def update(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of a processed run: while its scan runs, these are its partial results."""
        if name == "event" and "points" in (data := doc["data"]):
            known = f"from {data['points']} points, confidence {data['confidence']:.2f},"
            fraction = data["fraction"] if math.isfinite(data["fraction"]) else 0.0
            self.progress(Progress(known, fraction, data["chi2"]))

    def progress(self, progress: Progress) -> None:
        """Show how far a reconstruction is; from the worker's thread."""
        with self._lock:
            if self._crystal is not None:
                self._crystal(progress)

    def state_changed(self, state: str, before: str) -> None:
        """Take the bars away when the RunEngine pauses or is done: the prompt comes next."""
        if state in ("paused", "idle"):
            try:
                self.hide()
            except Exception:
                # A terminal that has gone: what this raises would leave the RunEngine waiting for ever.
                logger.exception("the bars can't be taken away; the session goes on")

    def waiting(self, statuses: Any) -> None:
        """Show what the RunEngine waits for, where no scan is shown: a motor that is moved by hand."""
        if statuses is not None:
            self._waits = self._scan is None
        if self._waits:
            try:
                self._waiting(statuses)
            except Exception:
                logger.exception("a motor can't be shown; it moves on")

    def hide(self) -> None:
        """Take the bars away."""
        with self._lock:
            self._scan = self._crystal = None
            self._bars.close()

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start" and "num_points" in doc:
            self._begin(doc)
        elif name == "descriptor" and doc["run_start"] == self._uid and doc["name"] == "primary":
            self._streams.add(doc["uid"])
        elif name == "event" and doc["descriptor"] in self._streams:
            self._seen += 1
            self._show()
        elif name == "stop" and doc["run_start"] == self._uid:
            self._expected = self._seen
            self._show()

    def _begin(self, start: Mapping[str, Any]) -> None:
        self._uid, self._streams = start["uid"], set()
        self._expected, self._seen = start["num_points"], 0
        if is_rocking_curve(start) and self._live is not None:
            self._live.result(self._uid).add_done_callback(_say)
        self._show()
        self.progress(Progress("", 0.0))

    def _show(self) -> None:
        if self._scan is None:
            self._scan, self._crystal = self._bars.enter_context(progress_bars("scan", "crystal", stay=False))
        done = min(self._seen / max(self._expected, self._seen, 1), 1.0)
        self._scan(Progress(f"{self._seen} of {self._expected} points", done))


def _say(future: Future[ReconstructionSummary]) -> None:
    if not future.cancelled():
        print(future.result(), flush=True)

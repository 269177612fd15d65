"""What a worker is asked for, and in which order it is done.

There are two kinds. A scan that has ended is waited for: its job is tried again when the process died, and
goes before any of the other kind. A scan that still runs is only looked at: such an update gives way to a
scan that has ended, even in its middle, takes its curve when its turn has come, and is tried once.
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bluesky_cdinn import errors
from bluesky_cdinn.errors import CdinnError, ReconstructionFailed
from bluesky_cdinn.growing import CurveInPieces
from bluesky_cdinn.records import PartialResult, Progress, Reconstruction, RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions

logger = logging.getLogger(__name__)

Curve = RockingCurve | CurveInPieces
ProgressCallback = Callable[[Progress], None]


@dataclass(eq=False)
class Job:
    """One thing that was asked for.

    A future stays pending, in the sense of `concurrent.futures`, until its result is there: that is what
    keeps ``cancel()`` possible to the last moment.

    Parameters
    ----------
    number
        Names it to the child process.
    take_curve
        Called when its turn has come.
    options, on_progress
        As `bluesky_cdinn.worker.ReconstructionWorker.submit` has them.
    update_of
        Uid of the raw run that still runs; None for one that has ended.
    """

    number: int
    take_curve: Callable[[], Curve]
    options: ReconstructionOptions
    on_progress: ProgressCallback | None
    update_of: str | None = None
    future: Future[Any] = field(default_factory=Future)

    @property
    def is_update(self) -> bool:
        """Whether the scan still runs."""
        return self.update_of is not None

    def curve(self) -> Curve:
        """Return the curve to be computed now.

        Raises
        ------
        CdinnError
            There is none: no fault of the process that would have computed.
        """
        try:
            return self.take_curve()
        except CdinnError:
            raise
        except Exception as error:
            raise ReconstructionFailed(f"{type(error).__name__}: {error}") from error

    def report(self, progress: Progress) -> None:
        """Tell whoever wants to know how far it is."""
        if self.on_progress is None or self.future.cancelled():
            return
        try:
            self.on_progress(progress)
        except Exception:
            logger.exception("a progress callback failed; the reconstruction goes on")

    def finish(self, outcome: Reconstruction | PartialResult | CdinnError) -> None:
        """Set the future, unless it was cancelled, and let the frames go: futures are kept for long."""
        self.take_curve = _gone
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, CdinnError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


def _gone() -> Curve:
    raise ReconstructionFailed("this reconstruction has been done")


class JobQueue:
    """Jobs that wait: those of ended scans in their order, then one update of each running scan."""

    def __init__(self) -> None:
        self._ended: deque[Job] = deque()
        self._updates: dict[str, Job] = {}

    def __bool__(self) -> bool:
        return bool(self._ended or self._updates)

    @property
    def ended(self) -> int:
        """How many scans that have ended wait."""
        return len(self._ended)

    def put(self, job: Job) -> Job | None:
        """Add a job; return the one whose place it takes."""
        if job.update_of is None:
            self._ended.append(job)
            return None
        stale = self._updates.get(job.update_of)
        self._updates[job.update_of] = job
        return stale

    def take(self) -> Job:
        """Remove and return the next one."""
        return self._ended.popleft() if self._ended else self._updates.pop(next(iter(self._updates)))

    def remove(self, job: Job) -> bool:
        """Remove a job; False when it isn't here."""
        if job.update_of is None:
            present = job in self._ended
            if present:
                self._ended.remove(job)
            return present
        present = self._updates.get(job.update_of) is job
        if present:
            del self._updates[job.update_of]
        return present

    def clear(self) -> list[Job]:
        """Remove and return all."""
        removed = [*self._ended, *self._updates.values()]
        self._ended.clear()
        self._updates.clear()
        return removed


def error_from(name: str, message: str, traceback: str) -> CdinnError:
    """Rebuild what the child raised from its words alone."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, CdinnError):
        error = kind(message)
    else:
        error = ReconstructionFailed(f"{name}: {message}")
    error.add_note(f"In the worker process:\n{traceback}")
    return error

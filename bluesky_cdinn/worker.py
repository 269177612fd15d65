"""Where the compute runs: one warm child process behind a bounded queue, and a future for each job.

The process that runs the RunEngine never imports torch: a GPU crash, an out-of-memory kill or a segmentation
fault ends the child only, and its job is sent to a fresh one.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, Self

from bluesky_cdinn.jobs import Curve, Job, ProgressCallback
from bluesky_cdinn.records import PartialResult, Reconstruction
from bluesky_cdinn.settings import ReconstructionOptions, WorkerSettings
from bluesky_cdinn.worker_loop import JobLoop

__all__ = ["ENTRY", "ProgressCallback", "ReconstructionWorker"]

ENTRY = "bluesky_cdinn.following:ScanFollower"


class ReconstructionWorker:
    """Reconstructs rocking curves in a child process, one at a time, in the order of submission.

    In between it looks at scans that still run, where its entry can: see `update`.

    Nothing is started before the first job, or `start`. The child ends with `close`, with this object, or
    with this process, however that ends.

    Parameters
    ----------
    settings
        Bounds: jobs that may wait, seconds a job, attempts after the process died.
    options
        Used for jobs that come without options of their own.
    entry
        "module:function", called in the child as ``function(curve, options, progress=, cancelled=)``; or
        "module:class", made once in the child and called so, which gives a `PartialResult` for a curve whose
        ``exit_status`` is "unfinished".
    """

    def __init__(
        self,
        settings: WorkerSettings | None = None,
        options: ReconstructionOptions | None = None,
        *,
        entry: str = ENTRY,
    ) -> None:
        self._options = options or ReconstructionOptions()
        self._numbers = count(1)
        self._jobs = JobLoop(settings or WorkerSettings(), entry, self._options.threads)
        # The loop's thread holds the loop but not this object, so that forgetting this object ends both.
        self._finalizer = weakref.finalize(self, self._jobs.close)

    def start(self) -> None:
        """Bring the child up in the background, so that the first job finds it warm; returns at once."""
        self._jobs.start()

    def submit(
        self,
        curve: Curve,
        options: ReconstructionOptions | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Future[Reconstruction]:
        """Queue one reconstruction; returns at once.

        Parameters
        ----------
        curve
            A `RockingCurve`, or a `bluesky_cdinn.growing.CurveInPieces`, of whose frames only those are sent
            that no `update` has sent. Its arrays must not change afterwards: they are sent later, from
            another thread.
        options
            None takes the worker's own.
        on_progress
            Called with each `Progress` in the worker's thread.

        Returns
        -------
        Future
            Its ``cancel()`` works at any time, also in mid-reconstruction. Its exception is a `CdinnError`:
            the pipeline's own, `ReconstructionFailed` for anything unforeseen and for a job that took too
            long, `WorkerDied` when the process died at every attempt, `Cancelled` when the worker was closed.

        Raises
        ------
        ReconstructionFailed
            As many jobs wait as `WorkerSettings.max_pending` allows, or the worker is closed.
        """
        return self._submit(lambda: curve, options, on_progress)

    def update(
        self,
        raw_uid: str,
        curve: Callable[[], Curve],
        options: ReconstructionOptions | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Future[PartialResult]:
        """Have a scan that still runs looked at, once nothing that has ended waits; returns at once.

        Parameters
        ----------
        raw_uid
            Of the scan. An update of it that waits gives way to this one; one that runs goes on.
        curve
            Called in the worker's thread when the turn has come, so that what it gives is the newest.
            Frames of a `CurveInPieces` that the child has are not sent again.
        options, on_progress
            As for `submit`.

        Returns
        -------
        Future
            Cancelled when a scan that has ended is submitted meanwhile. Its exception is a `CdinnError`, as
            for `submit`, or what `curve` raised; nothing is tried twice.

        Raises
        ------
        ReconstructionFailed
            The worker is closed.
        """
        return self._submit(curve, options, on_progress, raw_uid)

    def forget(self, raw_uid: str) -> None:
        """Let go of the frames that are kept for a scan's next update: there will be none."""
        self._jobs.forget(raw_uid)

    @staticmethod
    def cancel(future: Future[Reconstruction]) -> bool:
        """Cancel a job, waiting or running; the same as ``future.cancel()``."""
        return future.cancel()

    @property
    def pending(self) -> int:
        """Scans that have ended and wait, the running job not counted."""
        return self._jobs.pending

    @property
    def follows(self) -> bool | None:
        """Whether `update` is of use: the entry is a class. None while the child isn't there to say so."""
        return self._jobs.follows

    @property
    def pid(self) -> int | None:
        """Identifier of the child process; None while there is none."""
        return self._jobs.pid

    def close(self) -> None:
        """End the child; jobs that are not done get `Cancelled`. May be called more than once."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _submit(
        self,
        curve: Callable[[], Curve],
        options: ReconstructionOptions | None,
        on_progress: ProgressCallback | None,
        update_of: str | None = None,
    ) -> Future[Any]:
        job = Job(next(self._numbers), curve, options or self._options, on_progress, update_of)
        self._jobs.submit(job)
        return job.future

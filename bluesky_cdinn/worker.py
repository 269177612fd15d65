"""Where the compute runs: one warm child process behind a bounded queue, and a future for each job.

The process that runs the RunEngine never imports torch: a GPU crash, an out-of-memory kill or a segmentation
fault ends the child only, and its job is sent to a fresh one.
"""

import weakref
from concurrent.futures import Future
from typing import Self

from bluesky_cdinn.records import Reconstruction, RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions, WorkerSettings
from bluesky_cdinn.worker_loop import JobLoop, ProgressCallback

ENTRY = "bluesky_cdinn.pipeline:reconstruct_curve"


class ReconstructionWorker:
    """Reconstructs rocking curves in a child process, one at a time, in the order of submission.

    Nothing is started before the first job, or `start`. The child ends with `close`, with this object, or
    with this process, however that ends.

    Parameters
    ----------
    settings
        Bounds: jobs that may wait, seconds a job, attempts after the process died.
    options
        Used for jobs that come without options of their own.
    entry
        "module:function", called in the child as ``function(curve, options, progress=, cancelled=)``.
    """

    def __init__(
        self,
        settings: WorkerSettings | None = None,
        options: ReconstructionOptions | None = None,
        *,
        entry: str = ENTRY,
    ) -> None:
        self._jobs = JobLoop(settings or WorkerSettings(), options or ReconstructionOptions(), entry)
        # The loop's thread holds the loop but not this object, so that forgetting this object ends both.
        self._finalizer = weakref.finalize(self, self._jobs.close)

    def start(self) -> None:
        """Bring the child up in the background, so that the first job finds it warm; returns at once."""
        self._jobs.start()

    def submit(
        self,
        curve: RockingCurve,
        options: ReconstructionOptions | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Future[Reconstruction]:
        """Queue one reconstruction; returns at once.

        Parameters
        ----------
        curve
            Its arrays must not change afterwards: they are sent later, from another thread.
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
        return self._jobs.submit(curve, options, on_progress)

    @staticmethod
    def cancel(future: Future[Reconstruction]) -> bool:
        """Cancel a job, waiting or running; the same as ``future.cancel()``."""
        return future.cancel()

    @property
    def pending(self) -> int:
        """Jobs that wait, the running one not counted."""
        return self._jobs.pending

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

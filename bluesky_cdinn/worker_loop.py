"""The worker's queue of jobs, and the thread that has a child process do them one by one."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from bluesky_cdinn import errors
from bluesky_cdinn.errors import Cancelled, CdinnError, ReconstructionFailed, WorkerDied
from bluesky_cdinn.records import Progress, Reconstruction, RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions, WorkerSettings
from bluesky_cdinn.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

CANCEL_GRACE_S = 2.0
"""A job that was cancelled has so long to stop by itself before its process is killed."""

_CLOSE_TIMEOUT_S = 10.0

ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Job:
    """One reconstruction that was asked for; the number names it to the child process."""

    number: int
    curve: RockingCurve
    options: ReconstructionOptions
    on_progress: ProgressCallback | None
    future: Future[Reconstruction]


class JobLoop:
    """The queue, the thread that empties it, and the child process that does the work.

    A future stays pending, in the sense of `concurrent.futures`, until its result is there: that is what
    keeps ``cancel()`` possible to the last moment.
    """

    def __init__(self, settings: WorkerSettings, options: ReconstructionOptions, entry: str) -> None:
        self._settings = settings
        self._options = options
        self._entry = entry
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._thread: threading.Thread | None = None
        self._process: WorkerProcess | None = None
        self._warm_up = False
        self._closed = False
        self._submitted = 0

    @property
    def pending(self) -> int:
        """Jobs that wait, the running one not counted."""
        return len(self._waiting)

    @property
    def pid(self) -> int | None:
        """Of the child process; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    def start(self) -> None:
        """Bring the child up in the background."""
        with self._changed:
            self._warm_up = True
            self._wake()

    def submit(
        self,
        curve: RockingCurve,
        options: ReconstructionOptions | None,
        on_progress: ProgressCallback | None,
    ) -> Future[Reconstruction]:
        """Queue a job; see `ReconstructionWorker.submit`."""
        future: Future[Reconstruction] = Future()
        with self._changed:
            if self._closed:
                raise ReconstructionFailed("the worker is closed; make a new ReconstructionWorker")
            if len(self._waiting) >= self._settings.max_pending:
                raise ReconstructionFailed(
                    f"{len(self._waiting)} reconstructions wait already, which is all that "
                    "worker.max_pending allows; wait for one, or cancel one, or raise the setting"
                )
            self._submitted += 1
            job = Job(self._submitted, curve, options or self._options, on_progress, future)
            self._waiting.append(job)
            self._wake()
        future.add_done_callback(lambda done: self._on_done(job) if done.cancelled() else None)
        return future

    def close(self) -> None:
        """Cancel what is not done, and end the child and the thread."""
        with self._changed:
            self._closed = True
            abandoned = list(self._waiting)
            self._waiting.clear()
            process, thread = self._process, self._thread
            self._changed.notify_all()
        for job in abandoned:
            _finish(job, Cancelled("the worker was closed before this reconstruction began"))
        if process is not None:
            process.kill()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=_CLOSE_TIMEOUT_S)

    def _wake(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._loop, name="cdinn-worker", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _on_done(self, job: Job) -> None:
        """Act on a cancellation, in the thread that cancelled."""
        with self._changed:
            waiting = job in self._waiting
            if waiting:
                self._waiting.remove(job)
            process = self._process if self._running is job else None
        if waiting:
            job.future.set_running_or_notify_cancel()
        elif process is not None:
            process.request_cancel(job.number)
            insist = threading.Timer(CANCEL_GRACE_S, self._insist, (job, process))
            insist.daemon = True
            insist.start()

    def _insist(self, job: Job, process: WorkerProcess) -> None:
        with self._changed:
            still_running = self._running is job
        if still_running:
            logger.info("a cancelled reconstruction didn't stop; its process is killed")
            process.kill()

    def _loop(self) -> None:
        try:
            while (job := self._next()) is not None:
                try:
                    self._do(job)
                finally:
                    with self._changed:
                        self._running = None
        except Exception:
            logger.exception("the worker's thread failed; reconstructions stop until a new worker is made")
        finally:
            if self._process is not None:
                self._process.close()

    def _next(self) -> Job | None:
        """Wait for a job, keeping the child warm meanwhile; None when closed."""
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._warm_up):
                    self._changed.wait()
                if self._closed:
                    return None
                if self._waiting:
                    self._running = self._waiting.popleft()
                    return self._running
                self._warm_up = False
            with contextlib.suppress(EOFError, OSError):
                self._ready_process(self._options).wait_warm()

    def _ready_process(self, options: ReconstructionOptions) -> WorkerProcess:
        if self._process is not None and not self._process.alive:
            self._discard_process()
        if self._process is None:
            process = WorkerProcess(self._entry, options.threads)
            with self._changed:
                self._process = process
                closed = self._closed
            # close() may have looked for a process just before there was one.
            if closed:
                process.kill()
        return self._process

    def _do(self, job: Job) -> None:
        error: CdinnError = Cancelled("the worker was closed during this reconstruction")
        for _ in range(self._settings.attempts):
            try:
                result = self._attempt(job)
            except WorkerDied as died:
                logger.warning("%s", died)
                error = died
            except CdinnError as failed:
                _finish(job, failed)
                return
            except Exception as unforeseen:
                logger.exception("a reconstruction could not be handed over")
                self._discard_process()
                _finish(job, ReconstructionFailed(f"{type(unforeseen).__name__}: {unforeseen}"))
                return
            else:
                _finish(job, result)
                return
            if self._closed:
                error = Cancelled("the worker was closed during this reconstruction")
                break
        _finish(job, error)

    def _attempt(self, job: Job) -> Reconstruction:
        process = self._ready_process(job.options)
        try:
            process.wait_warm()
        except (EOFError, OSError):
            raise WorkerDied(process.obituary()) from None
        with process.deadline(self._settings.timeout_s) as expired:
            try:
                return self._converse(process, job)
            except (EOFError, OSError):
                if expired.is_set():
                    raise ReconstructionFailed(
                        f"the reconstruction took longer than {self._settings.timeout_s:g} s "
                        "and was stopped; raise worker.timeout_s, or ask for less"
                    ) from None
                raise WorkerDied(process.obituary()) from None

    def _converse(self, process: WorkerProcess, job: Job) -> Reconstruction:
        if job.future.cancelled():
            raise Cancelled("the reconstruction was cancelled before it began")
        process.send((job.number, _contiguous(job.curve), job.options))
        while True:
            kind, content = process.receive()
            if kind == "progress":
                _report(job, content)
            elif kind == "result":
                return content
            else:
                if kind == "fatal":
                    self._discard_process()
                raise _error(*content)

    def _discard_process(self) -> None:
        with self._changed:
            process, self._process = self._process, None
        if process is not None:
            process.close()


def _contiguous(curve: RockingCurve) -> RockingCurve:
    """Only a contiguous array leaves without a copy made under the interpreter's lock."""
    if isinstance(curve.frames, np.ndarray):
        return replace(curve, frames=np.ascontiguousarray(curve.frames))
    return curve


def _report(job: Job, progress: Progress) -> None:
    if job.on_progress is None or job.future.cancelled():
        return
    try:
        job.on_progress(progress)
    except Exception:
        logger.exception("a progress callback failed; the reconstruction goes on")


def _error(name: str, message: str, traceback: str) -> CdinnError:
    """Rebuild what the child raised from its words alone."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, CdinnError):
        error = kind(message)
    else:
        error = ReconstructionFailed(f"{name}: {message}")
    error.add_note(f"In the worker process:\n{traceback}")
    return error


def _finish(job: Job, outcome: Reconstruction | CdinnError) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, CdinnError):
        job.future.set_exception(outcome)
    else:
        job.future.set_result(outcome)

"""The thread that has a child process do the worker's jobs one by one."""

import contextlib
import logging
import threading
from collections import deque

from bluesky_cdinn.errors import Cancelled, CdinnError, ReconstructionFailed, WorkerDied
from bluesky_cdinn.jobs import Job, JobQueue, error_from
from bluesky_cdinn.records import PartialResult, Reconstruction
from bluesky_cdinn.settings import WorkerSettings
from bluesky_cdinn.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

CANCEL_GRACE_S = 2.0
"""A job that was cancelled has so long to stop by itself before its process is killed."""

UPDATE_GRACE_S = 15.0
"""An update that is to make way has longer: a fresh process takes as long to come up, and knows nothing."""

_CLOSE_TIMEOUT_S = 10.0


class JobLoop:
    """The thread that empties the queue, and the child process that does the work.

    Parameters
    ----------
    settings
        Bounds.
    entry
        What the child does.
    threads
        For a child that is started before the first job.
    """

    def __init__(self, settings: WorkerSettings, entry: str, threads: int) -> None:
        self._settings = settings
        self._entry = entry
        self._threads = threads
        self._changed = threading.Condition()
        self._waiting = JobQueue()
        self._running: Job | None = None
        # What the child was sent and has not answered; a running job may still wait for the child to warm up.
        self._asked: Job | None = None
        self._forgotten: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._process: WorkerProcess | None = None
        self._warm_up = False
        self._closed = False

    @property
    def pending(self) -> int:
        """Scans that have ended and wait, the running job not counted."""
        return self._waiting.ended

    @property
    def pid(self) -> int | None:
        """Of the child process; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    @property
    def follows(self) -> bool | None:
        """Whether the entry follows scans that still run; None while that isn't known."""
        process = self._process
        return process.follows if process is not None else None

    def start(self) -> None:
        """Bring the child up in the background."""
        with self._changed:
            self._warm_up = True
            self._wake()

    def submit(self, job: Job) -> None:
        """Queue a job; an update makes way at once for a scan that has ended.

        Raises
        ------
        ReconstructionFailed
            As many ended scans wait as may, or the worker is closed.
        """
        with self._changed:
            if self._closed:
                raise ReconstructionFailed("the worker is closed; make a new ReconstructionWorker")
            if not job.is_update and self._waiting.ended >= self._settings.max_pending:
                raise ReconstructionFailed(
                    f"{self._waiting.ended} reconstructions wait already, which is all that "
                    "worker.max_pending allows; wait for one, or cancel one, or raise the setting"
                )
            stale, running = self._waiting.put(job), self._running
            self._wake()
        job.future.add_done_callback(lambda done: self._on_done(job) if done.cancelled() else None)
        if stale is not None and stale.future.cancel():
            stale.finish(Cancelled("there is a newer one"))
        if running is not None and running.is_update and not job.is_update:
            running.future.cancel()

    def forget(self, raw_uid: str) -> None:
        """Let go of a scan's frames."""
        self._forgotten.append(raw_uid)

    def close(self) -> None:
        """Cancel what is not done, and end the child and the thread."""
        with self._changed:
            self._closed = True
            abandoned = self._waiting.clear()
            process, thread = self._process, self._thread
            self._changed.notify_all()
        for job in abandoned:
            job.finish(Cancelled("the worker was closed before this reconstruction began"))
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
            waiting = self._waiting.remove(job)
            process = self._process if self._asked is job else None
        if waiting:
            job.finish(Cancelled("cancelled before it began"))
        elif process is not None:
            process.request_cancel(job.number)
            grace_s = UPDATE_GRACE_S if job.is_update else CANCEL_GRACE_S
            insist = threading.Timer(grace_s, self._insist, (job, process))
            insist.daemon = True
            insist.start()

    def _insist(self, job: Job, process: WorkerProcess) -> None:
        with self._changed:
            still_running = self._asked is job
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
                        self._running = self._asked = None
                # An idle thread must not keep the last scan's frames.
                del job
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
                    self._running = self._waiting.take()
                    return self._running
                self._warm_up = False
            with contextlib.suppress(EOFError, OSError):
                self._ready_process(self._threads).wait_warm()

    def _ready_process(self, threads: int) -> WorkerProcess:
        if self._process is not None and not self._process.alive:
            self._discard_process()
        if self._process is None:
            process = WorkerProcess(self._entry, threads)
            with self._changed:
                self._process = process
                closed = self._closed
            # close() may have looked for a process just before there was one.
            if closed:
                process.kill()
        return self._process

    def _do(self, job: Job) -> None:
        error: CdinnError = Cancelled("the worker was closed during this reconstruction")
        for _ in range(1 if job.is_update else self._settings.attempts):
            try:
                result = self._attempt(job)
            except WorkerDied as died:
                logger.warning("%s", died)
                error = died
                # The next job must not wait for the next process.
                self._warm_up = True
            except CdinnError as failed:
                job.finish(failed)
                return
            except Exception as unforeseen:
                logger.exception("a reconstruction could not be handed over")
                self._discard_process()
                job.finish(ReconstructionFailed(f"{type(unforeseen).__name__}: {unforeseen}"))
                return
            else:
                job.finish(result)
                return
            if self._closed:
                error = Cancelled("the worker was closed during this reconstruction")
                break
        job.finish(error)

    def _attempt(self, job: Job) -> Reconstruction | PartialResult:
        self._asked = None
        process = self._ready_process(job.options.threads)
        try:
            process.wait_warm()
        except (EOFError, OSError):
            raise WorkerDied(process.obituary()) from None
        with process.deadline(self._settings.timeout_s) as expired:
            try:
                return self._converse(process, job)
            except (EOFError, OSError):
                if expired.is_set():
                    self._warm_up = True
                    raise ReconstructionFailed(
                        f"the reconstruction took longer than {self._settings.timeout_s:g} s "
                        "and was stopped; raise worker.timeout_s, or ask for less"
                    ) from None
                raise WorkerDied(process.obituary()) from None

    def _converse(self, process: WorkerProcess, job: Job) -> Reconstruction | PartialResult:
        if job.is_update and not process.follows:
            raise ReconstructionFailed(f"the worker's entry {self._entry} follows no running scan")
        while self._forgotten:
            process.sent.forget(self._forgotten.popleft())
        curve = job.curve()
        with self._changed:
            if job.future.cancelled():
                raise Cancelled("the reconstruction was cancelled before it began")
            self._asked = job
        process.send((job.number, process.sent.increment(curve, keep=job.is_update), job.options))
        del curve
        while True:
            kind, content = process.receive()
            if kind == "progress":
                job.report(content)
            elif kind == "result":
                return content
            else:
                if kind == "fatal":
                    self._warm_up = True
                    self._discard_process()
                raise error_from(*content)

    def _discard_process(self) -> None:
        with self._changed:
            process, self._process = self._process, None
        if process is not None:
            process.close()

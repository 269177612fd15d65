"""The parent's hold on one worker process: start it, talk to it, end it, say how it ended."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from bluesky_cdinn.channel import receive, send
from bluesky_cdinn.growing import SentScans

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
_LAST_LINES = 20


class WorkerProcess:
    """A running `bluesky_cdinn.worker_main`.

    It is started as a fresh interpreter, not by `multiprocessing`, which would import the user's script once
    more; in a session of its own, so that Ctrl-C at the prompt doesn't reach it.

    Parameters
    ----------
    entry
        "module:function" or "module:class" that does a job.
    threads
        For the numerical libraries, which read it once, when they load.

    Attributes
    ----------
    sent
        What the process was sent of running scans.
    follows
        Whether the entry is a class, which follows running scans; None until the process is warm.
    """

    def __init__(self, entry: str, threads: int) -> None:
        self._channel, theirs = socket.socketpair()
        self._warm = False
        self._came_too_late = False
        self.sent = SentScans()
        self.follows: bool | None = None
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        with theirs:
            # -P: a file beside the user's script must not stand in for a module of the worker.
            python = [sys.executable, "-P", "-u", "-m", "bluesky_cdinn.worker_main"]
            self._process = subprocess.Popen(
                [*python, "--channel", str(theirs.fileno()), "--entry", entry],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            )
        self._log = threading.Thread(target=self._follow_output, name="cdinn-worker-log", daemon=True)
        self._log.start()
        logger.debug("worker process %d started", self.pid)

    @property
    def pid(self) -> int:
        """Process identifier."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def wait_warm(self) -> None:
        """Return when the process has imported what it needs and takes jobs.

        Raises
        ------
        EOFError, OSError
            It died, or didn't come up in time and was killed.
        """
        if not self._warm:
            with self.deadline(START_TIMEOUT_S) as expired:
                try:
                    _, self.follows = receive(self._channel)
                finally:
                    self._came_too_late = expired.is_set()
            self._warm = True

    def send(self, message: Any) -> None:
        """Send one job; OSError when the process has died."""
        send(self._channel, message)

    def receive(self) -> Any:
        """Return the next answer; EOFError or OSError when the process has died."""
        return receive(self._channel)

    def request_cancel(self, number: int) -> None:
        """Ask the process to stop that job; from any thread."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), b"%d\n" % number)

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the process if the block takes longer; what it yields is set when that has happened."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()

    def kill(self) -> None:
        """End the process and whatever it started, now; from any thread, more than once."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and release its descriptors."""
        self.kill()
        self._process.wait()
        self._log.join(timeout=5.0)
        self._channel.close()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def obituary(self) -> str:
        """Say how the process ended, with the last lines that it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)
        self._log.join(timeout=5.0)
        code = self._process.poll()
        if code is None:
            ending = "closed its channel without ending"
        elif self._came_too_late:
            ending = f"was not ready within {START_TIMEOUT_S:g} s and was killed"
        elif code < 0:
            ending = f"was killed by {signal.Signals(-code).name}"
            ending += " (often: out of memory)" if -code == signal.SIGKILL else ""
        else:
            ending = f"exited with code {code}"
        lines = "\n".join(self._last_lines)
        return f"the worker process {ending}" + (f"; it last printed:\n{lines}" if lines else "")

    def _follow_output(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            logger.info("worker %d: %s", self.pid, line)

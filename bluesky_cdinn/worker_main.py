"""The worker's child process: `python -m bluesky_cdinn.worker_main`, started by `bluesky_cdinn.worker`.

It reads jobs from the socket whose descriptor it is given and answers each with progress and one result or
one error. What does a job is ``entry(curve, options, progress=, cancelled=)``; an entry that is a class is
made once, and may keep what it likes from one update of a running scan to the next. Standard input is the
leash: a job's number on a line cancels that job, end of file means that the parent is gone. This process may
crash or be killed at any time; the parent sends the job to a fresh one.
"""

import argparse
import importlib
import logging
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from bluesky_cdinn.channel import receive, send
from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.growing import HeldScans
from bluesky_cdinn.records import Progress, RockingCurve

NICENESS = 5
_ORPHAN_CHECK_S = 2.0


def main() -> None:
    """Serve jobs until the parent closes the channel or dies."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    # Acquisition on the same machine goes first.
    os.nice(NICENESS)
    # A process that the computing starts must not keep the channel open after this one has died.
    os.set_inheritable(arguments.channel, False)
    channel = socket.socket(fileno=arguments.channel)
    cancelled: set[int] = set()
    threading.Thread(target=_heed_parent, args=(cancelled, os.getppid()), daemon=True).start()
    entry, follows = _load(arguments.entry)
    _warm_up()
    send(channel, ("ready", follows))
    held = HeldScans()
    while True:
        try:
            number, increment, options = receive(channel)
        except (EOFError, OSError):
            return
        curve = held.curve(increment)
        del increment
        if not _answer(channel, entry, (number, curve, options), cancelled):
            return
        # What was measured must not wait in memory for the next job.
        del curve


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket to the parent")
    parser.add_argument("--entry", required=True, help="module:function or module:class that does a job")
    return parser.parse_args()


def _load(entry: str) -> tuple[Callable[..., Any], bool]:
    """Return what does a job, and whether it follows scans that still run."""
    module, _, name = entry.partition(":")
    found = getattr(importlib.import_module(module), name)
    return (found(), True) if isinstance(found, type) else (found, False)


def _warm_up() -> None:
    """Pay for the first transform, which sets up FFT plans and thread pools, before a scan waits for it."""
    if torch := sys.modules.get("torch"):
        torch.fft.fftn(torch.zeros(8, 8, 8, dtype=torch.complex64)).abs().sum().item()
        if torch.cuda.is_available():
            torch.fft.fftn(torch.zeros(8, 8, 8, dtype=torch.complex64, device="cuda")).abs().sum().item()


def _heed_parent(cancelled: set[int], parent: int) -> None:
    """Follow standard input; leave at once, in mid-computation, when the parent has died."""
    leash = sys.stdin.fileno()
    while True:
        readable, _, _ = select.select([leash], [], [], _ORPHAN_CHECK_S)
        # A fork of the parent can keep the pipe open after the parent itself has died.
        if os.getppid() != parent:
            os._exit(1)
        if readable:
            lines = os.read(leash, 4096)
            if not lines:
                os._exit(0)
            cancelled.update(int(number) for number in lines.split())


def _answer(
    channel: socket.socket, entry: Callable[..., Any], job: tuple[int, RockingCurve, Any], cancelled: set[int]
) -> bool:
    """Do one job; False when this process should not be trusted with another."""
    number, curve, options = job
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(options.threads)

    def progress(update: Progress) -> None:
        send(channel, ("progress", update))

    try:
        result = entry(curve, options, progress=progress, cancelled=lambda: number in cancelled)
    except CdinnError as error:
        send(channel, ("error", (type(error).__name__, str(error), traceback.format_exc())))
        return True
    except Exception as error:
        # A GPU error or a failed allocation can leave the process unable to compute: start afresh.
        send(channel, ("fatal", (type(error).__name__, str(error), traceback.format_exc())))
        return False
    send(channel, ("result", result))
    return True


if __name__ == "__main__":
    main()

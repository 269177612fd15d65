"""What the tests have the worker's child process do instead of a reconstruction."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from bluesky_cdinn.errors import Cancelled, IncompleteScan
from bluesky_cdinn.records import Progress, Reconstruction


def job(curve, options, *, progress, cancelled):
    """Do what the metadata's "do" says, then give back something that shows what came."""
    metadata = dict(curve.metadata)
    action = metadata.get("do", "sum")
    progress(Progress("starts", 0.5, 0.25))
    if action == "reject":
        raise IncompleteScan("needs at least 9 points, got 3")
    if action == "bug":
        raise ZeroDivisionError("an unforeseen one")
    if action in ("die once", "die always"):
        marker = Path(metadata["marker"])
        if action == "die always" or not marker.exists():
            marker.touch()
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    if action == "segfault":
        ctypes.string_at(0)
    if action == "exit":
        os._exit(3)
    if action == "hang":
        time.sleep(3600)
    if action == "wait":
        deadline = time.monotonic() + metadata.get("seconds", 3600)
        while time.monotonic() < deadline:
            if cancelled():
                raise Cancelled("stopped on request")
            time.sleep(0.01)
    frames = np.asarray(curve.frames)
    scalars = {"total": float(frames.sum(dtype=np.float64)), "pid": float(os.getpid())}
    scalars |= {"threads": float(options.threads), "niceness": float(os.nice(0))}
    shape = (4, 5, 6)
    support = np.zeros(shape, bool)
    support[1:3, 1:4, 2:5] = True
    return Reconstruction(
        density=(support * np.exp(0.3j)).astype(np.complex64),
        support=support,
        chi2=0.005,
        free_llk=1.1,
        confidence=0.9,
        seconds=0.1,
        cpu_s=0.1,
        scalars=scalars,
        raw_uid=curve.raw_uid,
        scan_id=curve.scan_id,
        metadata=metadata,
    )

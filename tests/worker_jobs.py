"""What the tests have the worker's child process do instead of a reconstruction."""

import ctypes
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from bluesky_cdinn.errors import Cancelled, IncompleteScan
from bluesky_cdinn.records import PartialResult, Progress, Reconstruction


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


class Follower:
    """Follows running scans as the real one does: made once, looks on, gives a whole at the end."""

    def __init__(self):
        self.looked_at = {}

    def __call__(self, curve, options, *, progress, cancelled):
        """Do what the metadata says when a scan runs, as `job` does when it has ended."""
        if curve.exit_status != "unfinished":
            seen = {"updates": float(self.looked_at.pop(curve.raw_uid, 0))}
            result = job(curve, options, progress=progress, cancelled=cancelled)
            return replace(result, scalars={**result.scalars, **seen})
        progress(Progress("update", 0.5))
        update = {**curve.metadata, "do": curve.metadata.get("update", "sum")}
        job(replace(curve, metadata=update), options, progress=progress, cancelled=cancelled)
        frames = np.asarray(curve.frames)
        self.looked_at[curve.raw_uid] = self.looked_at.get(curve.raw_uid, 0) + 1
        planned = curve.planned_deg
        return PartialResult(
            points=len(frames),
            fraction=float("nan") if planned is None else len(frames) / len(planned),
            amplitude=np.full((3, 8, 8), len(frames), np.float32),
            phase=np.zeros((3, 8, 8), np.float32),
            chi2=0.01,
            free_llk=1.2,
            confidence=0.5,
            seconds=0.1,
            scalars={
                "total": float(frames.sum(dtype=np.float64)),
                "updates": float(self.looked_at[curve.raw_uid]),
                "pid": float(os.getpid()),
                "rss": float(psutil.Process().memory_info().rss),
            },
        )

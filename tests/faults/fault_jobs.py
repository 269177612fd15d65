"""What the tests of faults have the worker's child process do: die, hang or run out of memory at will."""

import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bluesky_cdinn.frame_files import load_frames
from bluesky_cdinn.records import Progress, Reconstruction


def result_of(curve, side=4):
    """Return something that shows what came."""
    support = np.ones((side, side, side), bool)
    scalars = {"total": float(np.asarray(curve.frames).sum(dtype=np.float64)), "pid": float(os.getpid())}
    return Reconstruction(
        support.astype(np.complex64),
        support,
        chi2=0.005,
        scalars=scalars,
        raw_uid=curve.raw_uid,
        scan_id=curve.scan_id,
        metadata=curve.metadata,
    )


def at_once(curve, options, *, progress, cancelled):
    """Answer without computing."""
    return result_of(curve)


def first_time(curve):
    """Whether a job is done for the first time; the next process that gets it sees the mark."""
    marker = Path(curve.metadata["marker"])
    seen = marker.exists()
    marker.touch()
    return not seen


def die():
    """Be killed as the out-of-memory killer kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_computing(curve, options, *, progress, cancelled):
    """Die in mid-job, the first time."""
    progress(Progress("starts", 0.5, 0.25))
    if first_time(curve):
        die()
    return result_of(curve)


def die_answering(curve, options, *, progress, cancelled):
    """Die with half of the answer in the socket, the first time."""
    if first_time(curve):
        main = sys.modules["__main__"]

        def half(channel: socket.socket, message: object) -> None:
            channel.sendall(struct.pack("<I", 2) + struct.pack("<2Q", 1000, 100_000_000) + bytes(5000))
            die()

        main.send = half
    return result_of(curve)


def hang(curve, options, *, progress, cancelled):
    """Compute for ever, and hear no request to stop."""
    progress(Progress("starts", 0.5))
    while "hang" in curve.metadata.get("do", ""):
        time.sleep(3600)
    return result_of(curve)


def short_of_memory(curve, options, *, progress, cancelled):
    """Reconstruct with no more memory than a few starts need."""
    import torch

    from bluesky_cdinn.fallback import within_memory
    from bluesky_cdinn.pipeline import reconstruct
    from bluesky_cdinn.records import DiffractionVolume

    torch.set_num_threads(1)
    counts = np.asarray(curve.frames, np.float32)
    volume = DiffractionVolume(counts, np.ones(counts.shape, bool))
    middle = tuple(slice(n // 2 - 16, n // 2 + 16) for n in counts.shape)
    small = DiffractionVolume(counts[middle], np.ones((32, 32, 32), bool))
    # What is loaded and planned once is there before the limit is.
    reconstruct(small, options.model_copy(update={"starts": 2}))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(curve.metadata["spare"])
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    return within_memory(lambda less: reconstruct(volume, less), options)


def always_die(curve, options, *, progress, cancelled):
    """Die in mid-job, whoever gets it."""
    die()


def wait_first(curve, options, *, progress, cancelled):
    """Be at it for ever, the first time."""
    if first_time(curve):
        time.sleep(3600)
    return result_of(curve)


def read_files(curve, options, *, progress, cancelled):
    """Read the frames, with little patience for those that don't come."""
    return result_of(load_frames(curve, patience_s=0.2))


def anything(curve, options, *, progress, cancelled):
    """Say how many points came, without a look at them."""
    return replace(
        result_of(replace(curve, frames=np.zeros(len(curve.frames)))), scalars={"points": len(curve.frames)}
    )

"""What a remote worker's child does in the tests instead of a reconstruction."""

import time
from pathlib import Path

import numpy as np
import worker_jobs

from bluesky_cdinn.errors import Cancelled, IncompleteScan
from bluesky_cdinn.frame_files import load_frames


def job(curve, options, *, progress, cancelled):
    """Read frames, make a file and wait for another if the metadata names them, then sum up."""
    if curve.exit_status == "unfinished":
        raise IncompleteScan("these tests are about what is left when a scan is over")
    curve = load_frames(curve, patience_s=0.5)
    if begun := curve.metadata.get("begun"):
        Path(begun).touch()
    until = curve.metadata.get("until")
    while until is not None and not Path(until).exists():
        if cancelled():
            raise Cancelled("stopped on request")
        time.sleep(0.01)
    assert isinstance(curve.frames, np.ndarray)
    return worker_jobs.job(curve, options, progress=progress, cancelled=cancelled)

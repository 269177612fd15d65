"""What the worker does in the plans' tests: as in `worker_jobs`, with frames read from wherever they lie."""

import worker_jobs

from bluesky_cdinn.volume import load_frames


def job(curve, options, **hooks):
    """Read the frames, then do what the metadata's "do" says."""
    return worker_jobs.job(load_frames(curve), options, **hooks)

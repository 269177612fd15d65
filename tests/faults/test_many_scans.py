"""A night of scans: memory stays flat, and no thread, file or process is left behind."""

import gc
import logging
import os
import threading

import numpy as np
import psutil
import pytest
from scans import rocking, watch

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.spool import spooled_runs

SCANS = int(os.environ.get("SCANS_IN_A_ROW", "500"))
"""More for a longer look."""

WARM = 50
MB = 1e6


@pytest.fixture(autouse=True)
def unlogged():
    """pytest keeps all that is logged, which is memory too."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def grown(before, after):
    """Say what there is more of; a connection that is open just now is none."""
    return {name: n for name, n in after.counts.items() if n > before.counts[name] + 2}


class Held:
    """What this process and the worker's hold at one moment."""

    def __init__(self, worker):
        gc.collect()
        own, child = psutil.Process(), psutil.Process(worker.pid)
        self.own_mb, self.child_mb = (p.memory_info().rss / MB for p in (own, child))
        self.counts = {
            "files": own.num_fds(),
            "threads": threading.active_count(),
            "processes": len(own.children(recursive=True)),
            "the worker's files": child.num_fds(),
            "the worker's threads": child.num_threads(),
        }


def measure(RE, live, scans, frames):
    results = [live.result(RE(rocking(frames=frames)).plan_result) for _ in range(scans)]
    assert {result.result(60).status for result in results} == {"success"}
    assert live.catalog.raw_writer().flush(30)


def test_many_scans_in_a_row(RE, quiet_catalog, make_worker):
    """Tiled is away all the while, so that the spool gets longer and longer."""
    frames = [np.full((128, 128), point, np.uint16) for point in range(4)]
    worker = make_worker(max_pending=SCANS)
    with LiveReconstruction(quiet_catalog, worker=worker) as live:
        watch(RE, live)
        measure(RE, live, WARM, frames)
        before = Held(worker)
        pid = worker.pid
        # As many at once as before: scans that wait need memory, more of it the busier the machine is.
        for _ in range(SCANS // WARM - 1):
            measure(RE, live, WARM, frames)
        after = Held(worker)
        assert worker.pid == pid
        assert grown(before, after) == {}
        # A summary of each of the last thousand is kept, and memory comes in steps of 8 MB; the frames of all
        # these scans would be 59 MB.
        assert after.own_mb - before.own_mb < 30 + 0.02 * (SCANS - WARM)
        assert after.child_mb - before.child_mb < 10
        assert len(spooled_runs(quiet_catalog.settings.spool)) == 2 * SCANS


def test_scans_in_a_row_into_tiled(RE, catalog, make_worker):
    """Its client and its writer leave nothing open either."""
    frames = [np.full((64, 64), point, np.uint16) for point in range(4)]
    worker = make_worker(max_pending=100)
    with LiveReconstruction(catalog, worker=worker) as live:
        watch(RE, live)
        measure(RE, live, 5, frames)
        assert catalog.flush(60)
        before = Held(worker)
        measure(RE, live, 15, frames)
        assert catalog.flush(120)
        after = Held(worker)
        assert grown(before, after) == {}
        assert after.own_mb - before.own_mb < 30
        assert len(catalog.raw) == len(catalog.processed) == 20

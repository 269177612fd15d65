"""The worker is killed at every stage, or hangs: real processes, really killed."""

import os
import signal
import time

import numpy as np
import pytest
from scans import POINTS, assert_whole, frame, rocking, watch

from bluesky_cdinn import worker_process
from bluesky_cdinn.callbacks import LiveReconstruction

TOTAL = sum(int(frame(point).sum()) for point in range(POINTS))
LARGE = [np.full((256, 256), 1, np.uint16)] * POINTS
"""More than a socket holds."""


@pytest.fixture
def watched(RE, quiet_catalog):
    """Give the live callback of a worker, subscribed to the RunEngine."""
    made = []

    def make(worker):
        made.append(LiveReconstruction(quiet_catalog, worker=worker))
        watch(RE, made[-1])
        return made[-1]

    yield make
    for live in made:
        live.close(wait=False)


def pid_of(worker):
    deadline = time.monotonic() + 30
    while worker.pid is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return worker.pid


def measured(RE, live, plan):
    return live.result(RE(plan).plan_result)


def test_killed_while_it_starts(RE, watched, make_worker):
    worker = make_worker()
    live = watched(worker)
    result = measured(RE, live, rocking(lambda: os.kill(pid_of(worker), signal.SIGKILL)))
    assert result.result(60).scalars["total"] == TOTAL


def test_killed_while_it_waits(RE, watched, make_worker):
    worker = make_worker(attempts=1)
    live = watched(worker)
    first = measured(RE, live, rocking()).result(60).scalars["pid"]
    os.kill(int(first), signal.SIGKILL)
    while worker.pid is not None:
        time.sleep(0.01)
    assert measured(RE, live, rocking()).result(60).scalars["pid"] != first


def test_killed_while_it_reads(RE, watched, make_worker):
    worker = make_worker()
    live = watched(worker)
    first = int(measured(RE, live, rocking()).result(60).scalars["pid"])
    # It takes what a socket holds, and the rest of the scan is still to be sent.
    os.kill(first, signal.SIGSTOP)
    result = measured(RE, live, rocking(frames=LARGE))
    time.sleep(0.3)
    os.kill(first, signal.SIGKILL)
    assert result.result(60).scalars["total"] == POINTS * 256**2


@pytest.mark.parametrize("stage", ["computing", "answering"])
def test_killed_while(RE, watched, make_worker, tmp_path, stage):
    live = watched(make_worker(f"fault_jobs:die_{stage}"))
    marker = tmp_path / "died"
    result = measured(RE, live, rocking(marker=str(marker)))
    assert result.result(60).scalars["total"] == TOTAL
    assert marker.exists()


def test_killed_again_and_again_gives_a_failed_run(RE, watched, make_worker, tmp_path):
    live = watched(make_worker("fault_jobs:always_die"))
    summary = measured(RE, live, rocking()).result(60)
    assert summary.status == "failed"
    assert "SIGKILL (often: out of memory)" in summary.reason
    assert summary.load().reason == summary.reason


@pytest.mark.parametrize("how", ["busy", "stopped"])
def test_hung(RE, watched, make_worker, how):
    """The watchdog ends a computation that hears nothing, and a process that the system has stopped."""
    worker = make_worker("fault_jobs:hang", timeout_s=1.0)
    live = watched(worker)
    first = measured(RE, live, rocking()).result(60).scalars["pid"]
    if how == "stopped":
        os.kill(int(first), signal.SIGSTOP)
    summary = measured(RE, live, rocking(do="hang" if how == "busy" else "")).result(60)
    assert summary.status == "failed"
    assert "longer than 1 s and was stopped; raise worker.timeout_s" in summary.reason
    assert measured(RE, live, rocking()).result(60).scalars["pid"] != first


def test_hung_while_it_starts(RE, watched, make_worker, monkeypatch):
    monkeypatch.setattr(worker_process, "START_TIMEOUT_S", 1.5)
    live = watched(make_worker("hangs_at_import:job"))
    summary = measured(RE, live, rocking()).result(60)
    assert summary.status == "failed"
    assert "was not ready within 1.5 s and was killed" in summary.reason
    assert "looking for a GPU" in summary.reason


def test_killed_during_the_next_scan(RE, catalog, make_worker, tmp_path):
    """Both scans are whole in Tiled, and both have their crystal."""
    worker = make_worker("fault_jobs:wait_first")
    with LiveReconstruction(catalog, worker=worker) as live:
        watch(RE, live)
        first = RE(rocking(marker=str(tmp_path / "first"))).plan_result
        while not (tmp_path / "first").exists():
            time.sleep(0.01)
        second = RE(
            rocking(lambda: os.kill(pid_of(worker), signal.SIGKILL), marker=str(tmp_path))
        ).plan_result
        assert [live.result(uid).result(60).status for uid in (first, second)] == ["success", "success"]
    for uid in (first, second):
        assert_whole(catalog, uid)
        assert catalog.latest(uid).load().status == "success"

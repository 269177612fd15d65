"""The worker dies or hangs, and the RunEngine is interrupted, while a scan is looked at as it runs."""

import time

import bluesky.plan_stubs as bps
import pytest
from bluesky.utils import RunEngineInterrupted
from scans import POINTS, frame, rocking, watch

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.settings import LiveSettings
from bluesky_cdinn.spool import running_runs, spooled_runs

MEASURED = POINTS // 2 + 1
PART = sum(int(frame(point).sum()) for point in range(MEASURED))
WHOLE = sum(int(frame(point).sum()) for point in range(POINTS))


@pytest.fixture
def live(RE, quiet_catalog, make_worker):
    """Look on from the third point, as often as can be."""
    worker = make_worker("worker_jobs:Follower", timeout_s=30)
    often = LiveSettings(least_points=3, interval_s=0)
    settings = quiet_catalog.settings.model_copy(update={"live": often})
    with LiveReconstruction(quiet_catalog, settings, worker) as live:
        watch(RE, live)
        yield live


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processed(live):
    return [run for run in spooled_runs(live.catalog.settings.spool) if run.kind == "processed"]


@pytest.mark.parametrize("update", ["die once", "die always", "segfault", "bug"])
def test_a_worker_that_dies_in_an_update(RE, live, tmp_path, update):
    """The scan goes on, and its result is as without."""
    begun = time.monotonic()
    marker = tmp_path / "died"

    def died():
        if update.startswith("die"):
            until(marker.exists)

    uid = RE(rocking(died, update=update, marker=str(marker))).plan_result
    result = live.result(uid).result(60)
    assert (result.status, result.scalars["total"]) == ("success", WHOLE)
    assert time.monotonic() - begun < 60
    assert len(processed(live)) == 1


def test_an_update_that_hangs_makes_way_for_the_result(RE, live):
    """It hears no request to stop, so that its process is killed: seconds, not the watchdog's minutes."""
    RE(rocking())
    assert live.wait(60)
    ended = RE(rocking(lambda: time.sleep(0.5), update="hang")).plan_result
    began = time.monotonic()
    assert live.result(ended).result(60).scalars["total"] == WHOLE
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("end", ["abort", "halt", "stop"])
def test_the_scan_ends_by_hand_during_an_update(RE, live, end):
    uids = []
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    with pytest.raises(RunEngineInterrupted):
        RE(rocking(then=bps.pause, update="wait"))
    until(lambda: live.worker.pid is not None)
    time.sleep(0.3)
    getattr(RE, end)()
    result = live.result(uids[0]).result(60)
    assert (result.status, result.scalars["total"]) == ("success", PART)
    assert [run.uid for run in processed(live)] == [result.processed_uid]
    assert running_runs(live.catalog.settings.spool) == []


def test_paused_between_updates_and_rewound(RE, live):
    """What is looked at meanwhile counts the repeated point once."""
    uids = []
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    with pytest.raises(RunEngineInterrupted):
        RE(rocking(then=bps.pause))
    until(lambda: (latest := live.latest(uids[0])) is not None and latest.points == MEASURED)
    assert live.latest(uids[0]).scalars["total"] == PART
    # It is shown to plans before it is on disk.
    until(lambda: [run.kind for run in running_runs(live.catalog.settings.spool)] == ["processed"])
    RE.resume()
    result = live.result(uids[0]).result(60)
    assert result.scalars["total"] == WHOLE
    assert running_runs(live.catalog.settings.spool) == []

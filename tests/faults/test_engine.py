"""The RunEngine is aborted, stopped, halted, paused, shared, or lives in a time of its own."""

import threading
import time

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from scans import POINTS, frame, rocking, watch

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.spool import spooled_runs

MEASURED = POINTS // 2 + 1
PART = sum(int(frame(point).sum()) for point in range(MEASURED))
WHOLE = sum(int(frame(point).sum()) for point in range(POINTS))


@pytest.fixture
def live(RE, quiet_catalog, make_worker):
    with LiveReconstruction(quiet_catalog, worker=make_worker()) as live:
        watch(RE, live)
        yield live


def recorded(live, uid):
    """Documents of a run as they wait for Tiled."""
    assert live.catalog.raw_writer().flush(30)
    (run,) = [run for run in spooled_runs(live.catalog.settings.spool) if run.uid == uid]
    return list(run.documents())


def started(RE):
    """Collect the uids of the runs that a RunEngine starts."""
    uids = []
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    return uids


@pytest.mark.parametrize(("end", "status"), [("abort", "abort"), ("stop", "success"), ("halt", "abort")])
def test_ended_by_hand_in_the_middle(RE, live, end, status):
    """What was measured is reconstructed, and the raw run says how it ended."""
    uids = started(RE)
    with pytest.raises(RunEngineInterrupted):
        RE(rocking(then=bps.pause))
    getattr(RE, end)()
    result = live.result(uids[0]).result(60)
    assert (result.status, result.scalars["total"]) == ("success", PART)
    documents = recorded(live, uids[0])
    assert documents[-1][0] == "stop"
    assert documents[-1][1]["exit_status"] == status
    # The next scan is as if nothing had been.
    assert live.result(RE(rocking()).plan_result).result(60).scalars["total"] == WHOLE


def test_paused_and_resumed_with_a_rewind(RE, live):
    """The point that is measured again counts once."""
    uids = started(RE)
    with pytest.raises(RunEngineInterrupted):
        RE(rocking(then=bps.pause))
    RE.resume()
    result = live.result(uids[0]).result(60)
    assert result.scalars["total"] == WHOLE
    events = [doc["seq_num"] for name, doc in recorded(live, uids[0]) if name == "event"]
    assert len(events) == POINTS + 1
    assert sorted(set(events)) == list(range(1, POINTS + 1))


def test_a_plan_that_fails(RE, live):
    uids = started(RE)

    def fail():
        yield from bps.null()
        raise RuntimeError("the shutter is stuck")

    with pytest.raises(RuntimeError, match="stuck"):
        RE(rocking(then=fail))
    assert live.result(uids[0]).result(60).scalars["total"] == PART
    assert recorded(live, uids[0])[-1][1]["exit_status"] == "fail"


def test_two_engines_at_once_in_one_process(quiet_catalog, make_worker):
    """Each has its scans, whole, from one callback and one recorder."""
    with LiveReconstruction(quiet_catalog, worker=make_worker()) as live:
        together = threading.Barrier(2, timeout=30)
        uids, errors = {}, []

        def session(number):
            try:
                engine = RunEngine({}, call_returns_result=True, context_managers=[])
                watch(engine, live)
                frames = [np.full((16, 12), number + point, np.uint16) for point in range(POINTS)]
                scans = (rocking(together.wait, frames=frames, motor_name=f"m{number}") for _ in range(3))
                uids[number] = [engine(scan).plan_result for scan in scans]
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=session, args=(number,)) for number in (100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        for number in (100, 200):
            total = 16 * 12 * sum(number + point for point in range(POINTS))
            for uid in uids[number]:
                assert live.result(uid).result(60).scalars["total"] == total
                documents = recorded(live, uid)
                assert [name for name, _ in documents].count("event") == POINTS
                motors = [doc["data"] for name, doc in documents if name == "event"]
                assert all(f"m{number}" in data for data in motors)


def test_a_scan_within_a_scan(RE, live):
    """Runs of different keys are open at once in one RunEngine."""
    uids = started(RE)

    def inner():
        yield from bpp.set_run_key_wrapper(rocking(motor_name="inner"), "inner")

    RE(bpp.set_run_key_wrapper(rocking(then=inner, motor_name="outer"), "outer"))
    assert len(uids) == 2
    for uid in uids:
        assert live.result(uid).result(60).scalars["total"] == WHOLE
        assert [name for name, _ in recorded(live, uid)].count("event") == POINTS


def test_the_clock_goes_backwards(RE, live, monkeypatch):
    """An hour between two scans, and a minute at every look within one: order and content stay right."""
    real, lost = time.time, [0.0]

    def turned_back():
        lost[0] += 60.0
        return real() - lost[0]

    first = RE(rocking()).plan_result
    live.result(first).result(60)
    monkeypatch.setattr(time, "time", turned_back)
    second = RE(rocking(lambda: time.sleep(0.01))).plan_result
    result = live.result(second).result(60)
    lost[0] += 3600.0
    third = RE(rocking()).plan_result
    live.result(third).result(60)
    monkeypatch.undo()
    assert live.catalog.raw_writer().flush(30)
    assert result.scalars["total"] == WHOLE
    waiting = spooled_runs(live.catalog.settings.spool)
    assert [run.uid for run in waiting if run.kind == "raw"] == [first, second, third]
    times = [doc["time"] for name, doc in recorded(live, second) if name in ("start", "event", "stop")]
    assert times == sorted(times, reverse=True)


def test_a_clock_that_goes_backwards_ends_no_wait(RE, live, monkeypatch):
    """Waiting goes by another clock: neither at once nor never."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 1e9)
    uid = RE(rocking()).plan_result
    assert live.result(uid).result(60).status == "success"
    began = time.monotonic()
    assert live.wait(30)
    assert not live.catalog.flush(0.5)
    assert time.monotonic() - began < 15

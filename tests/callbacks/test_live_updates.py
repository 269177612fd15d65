"""What becomes of a scan while it runs: looked at, told, shown in Tiled, replaced by the whole at its end."""

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from ophyd import Component, Device, Signal
from ophyd.sim import motor

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.callbacks._updates import FAILURES, Followed
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.errors import IncompleteScan, InvalidInput, NotFound, ReconstructionFailed
from bluesky_cdinn.settings import LiveSettings, Settings, TiledSettings, WorkerSettings
from bluesky_cdinn.worker import ReconstructionWorker

POINTS = 7
LIVE = LiveSettings(least_points=3, interval_s=0.0)
KEYS = {
    "cam": {"source": "", "dtype": "array", "shape": [3, 4], "dtype_numpy": "<i4"},
    "th": {"source": "", "dtype": "number", "shape": []},
}


class Camera(Device):
    image = Component(Signal, value=np.zeros((6, 8), np.uint16), kind="hinted")


def frame(point):
    return np.full((6, 8), point, np.uint16)


def rocking(then=lambda point: bps.null(), points=POINTS, **md):
    """A rocking scan that does something after each of its points."""
    camera = Camera(name="camera")
    cdi = {
        "detector": "camera_image",
        "rocking_motor": "motor",
        "planned_deg": [0.0, 0.01 * (POINTS - 1), POINTS],
    }

    @bpp.run_decorator(md={"purpose": "rocking_curve", "motors": ["motor"], "cdi": cdi, **md})
    def plan():
        for point in range(points):
            yield from bps.checkpoint()
            camera.image.put(frame(point))
            yield from bps.mv(motor, 0.01 * point)
            yield from bps.trigger_and_read([camera, motor])
            yield from then(point)

    return (yield from plan())


class Told:
    """Keeps the documents that a subscriber is told, and waits for what is to come."""

    def __init__(self):
        self.documents = []
        self._changed = threading.Condition()

    def __call__(self, name, doc):
        with self._changed:
            self.documents.append((name, doc))
            self._changed.notify_all()

    def partials(self):
        streams = {d["uid"] for n, d in self.documents if n == "descriptor" and d["name"] == "partial"}
        return [d for n, d in self.documents if n == "event" and d["descriptor"] in streams]

    def wait(self, points, timeout=60):
        """Block, as a slow detector would, until a partial result rests on so many points."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(d["data"]["points"] >= points for d in self.partials()), timeout
            )

    def after(self, *points):
        """Have the scan go on after those points only when they have been looked at."""

        def then(point):
            yield from bps.null()
            if point + 1 in points:
                self.wait(point + 1)

        return then


class Follower:
    """Follows one array in Tiled by its websocket; Tiled's client holds its callbacks weakly."""

    def __init__(self):
        self.came = []
        self.closed = threading.Event()

    def follow(self, client):
        self._subscription = client.subscribe()
        self._subscription.new_data.add_callback(self.on_data)
        self._subscription.stream_closed.add_callback(self.on_close)
        self._subscription.start_in_thread(1)

    def on_data(self, update):
        self.came.append(update.data())

    def on_close(self, _):
        self.closed.set()


def assert_a_run(documents):
    """Check order, schemas and references of one whole run."""
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)
    names = [name for name, _ in documents]
    assert names[0] == "start"
    assert names[-1] == "stop"
    assert names.count("start") == names.count("stop") == 1
    described, counted = {}, {}
    for name, doc in documents[1:]:
        if name == "descriptor":
            assert doc["run_start"] == documents[0][1]["uid"]
            described[doc["uid"]] = doc
        elif name == "event":
            stream = described[doc["descriptor"]]
            assert doc["data"].keys() == stream["data_keys"].keys()
            counted[stream["name"]] = counted.get(stream["name"], 0) + 1
            assert doc["seq_num"] == counted[stream["name"]]
    assert documents[-1][1]["num_events"] == counted


@pytest.fixture
def worker(jobs_on_path):
    settings = WorkerSettings(timeout_s=60)
    with ReconstructionWorker(settings, entry="worker_jobs:Follower") as worker:
        yield worker


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def away(tmp_path):
    """Name a Tiled that isn't there: what is tested needs none, and starting takes long."""
    return Settings(tiled=TiledSettings(uri="http://127.0.0.1:9"), spool=tmp_path / "spool", live=LIVE)


@pytest.fixture
def live(away, worker, told):
    with Catalog(away) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        live.subscribe(told)
        yield live


def test_a_running_scan_is_told_as_it_grows(RE, live, told):
    latest = []

    def look(point):
        yield from told.after(4, 6)(point)
        latest.append(live.latest(uids[0]))

    uids = []
    RE.subscribe(live)
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    RE(rocking(look))
    summary = live.result(uids[0]).result(60)
    assert live.latest(uids[0]) is None
    assert live.latest("never seen") is None
    assert latest[0] is None
    seen = latest[-1]
    assert (seen.points >= 6, seen.amplitude.shape) == (True, (3, 8, 8))
    assert seen.fraction == pytest.approx(seen.points / POINTS)
    assert live.wait(30)
    assert_a_run(told.documents)
    start, stop = told.documents[0][1], told.documents[-1][1]
    assert (start["status"], start["raw_uid"], start["uid"]) == ("running", uids[0], summary.processed_uid)
    assert stop["exit_status"] == summary.status == "success"
    points = [doc["data"]["points"] for doc in told.partials()]
    assert points == sorted(set(points))
    # The end of the scan may have come while one was under way.
    updates = summary.scalars["updates"]
    assert len(points) <= updates <= len(points) + 1
    stored = live.catalog.partials(uids[0])
    assert [result.points for result in stored] == points
    assert stored[-1].scalars["total"] == sum(48 * point for point in range(points[-1]))
    assert "change" not in stored[-1].scalars
    np.testing.assert_array_equal(stored[0].amplitude, np.full((3, 8, 8), points[0]))
    assert [s.points for s in live.catalog.partials(summary.processed_uid)] == points
    assert live.catalog.load(summary.processed_uid).scalars["updates"] == updates


def test_tiled_shows_the_running_scan_and_then_the_whole(RE, settings, worker, told):
    settings = settings.model_copy(update={"live": LIVE})
    seen = {}
    uids = []
    follower = Follower()

    def look(point):
        yield from told.after(4, 6)(point)
        if point == 5:
            seen["listed"] = catalog.reconstructions(uids[0])
            deadline = time.monotonic() + 60
            while not (running := catalog.reconstructions(status="running")) and time.monotonic() < deadline:
                time.sleep(0.05)
            (seen["running"],) = running
            uid = seen["running"].processed_uid
            while not (elsewhere := other.partials(uid)) and time.monotonic() < deadline:
                time.sleep(0.05)
            seen["elsewhere"] = elsewhere
            with pytest.raises(InvalidInput, match="still runs"):
                other.load(uid)
            follower.follow(plain_client(other.processed)[uid]["partial/amplitude"])

    elsewhere = settings.model_copy(update={"spool": settings.spool / "other"})
    with (
        Catalog(settings) as catalog,
        Catalog(elsewhere) as other,
        LiveReconstruction(catalog, worker=worker) as live,
    ):
        live.subscribe(told)
        RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
        RE.subscribe(live)
        RE(rocking(look))
        summary = live.result(uids[0]).result(60)
        assert seen["listed"] == []
        assert (seen["running"].status, seen["running"].processed_uid) == ("running", summary.processed_uid)
        assert "still runs" in str(seen["running"])
        assert seen["elsewhere"][-1].points >= 4
        assert catalog.flush(60)
        assert [s.status for s in catalog.reconstructions(uids[0])] == ["success"]
        assert catalog.reconstructions(status="running") == []
        points = [doc["data"]["points"] for doc in told.partials()]
        assert [result.points for result in other.partials(uids[0])] == points
        assert other.load(summary.processed_uid).status == "success"
        assert follower.closed.wait(30)
        assert follower.came[0].shape == (1, 3, 8, 8)
        assert not list(settings.spool.glob("*processed*"))
        with pytest.raises(NotFound):
            other.partials("nowhere")


def test_a_session_that_dies_in_mid_scan_leaves_a_failed_reconstruction(settings, jobs_on_path):
    script = textwrap.dedent(
        """
        import os, sys, time
        from bluesky import RunEngine
        from bluesky_cdinn.callbacks import LiveReconstruction
        from bluesky_cdinn.catalog import Catalog
        from bluesky_cdinn.settings import Settings, TiledSettings
        from bluesky_cdinn.worker import ReconstructionWorker
        from callbacks.test_live_updates import LIVE, Told, rocking
        tiled = TiledSettings(uri=sys.argv[1], api_key=sys.argv[2], raw=sys.argv[3], processed=sys.argv[4])
        catalog = Catalog(Settings(tiled=tiled, spool=sys.argv[5], live=LIVE))
        live = LiveReconstruction(catalog, worker=ReconstructionWorker(entry="worker_jobs:Follower"))
        told = Told()
        live.subscribe(told)
        def die(point):
            yield from told.after(4)(point)
            if point == 3:
                while not catalog.reconstructions(status="running"):
                    time.sleep(0.05)
                os.kill(os.getpid(), 9)
        RE = RunEngine({})
        RE.subscribe(catalog.raw_writer())
        RE.subscribe(live)
        RE(rocking(die))
        """
    )
    tiled = settings.tiled
    where = [tiled.uri, tiled.api_key.get_secret_value(), tiled.raw, tiled.processed, str(settings.spool)]
    here = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-c", script, *where]
    died = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    with Catalog(settings) as catalog:
        assert catalog.deliver_spooled() == 0
        assert catalog.reconstructions(status="running") == []
        (failed,) = catalog.reconstructions()
        assert (failed.status, failed.reason) == (
            "failed",
            "the process that ran it ended before the run did",
        )
        assert catalog.processed[failed.processed_uid].metadata["stop"]["exit_status"] == "fail"
        assert catalog.partials(failed.raw_uid)[0].points >= 3
        assert list(catalog.raw) == [failed.raw_uid]
        assert not list(settings.spool.glob("*-*"))


def test_a_peak_out_of_view_is_quiet(RE, live, told, caplog):
    RE.subscribe(live)
    with caplog.at_level(logging.INFO, "bluesky_cdinn"):
        summary = live.result(RE(rocking(update="reject")).plan_result).result(60)
        assert live.wait(30)
    assert summary.status == "success"
    assert told.partials() == []
    assert told.documents[0][1]["status"] == "success"
    assert_a_run(told.documents)
    assert "at least 9 points" not in caplog.text


@pytest.mark.parametrize("update", ["bug", "die always"])
def test_updates_that_fail_do_not_touch_the_result(RE, live, told, worker, tmp_path, update):
    asked = []
    ask = worker.update
    worker.update = lambda *args: asked.append(ask(*args)) or asked[-1]

    def until_asked(point):
        yield from bps.null()
        deadline = time.monotonic() + 60
        if point in (3, 4):
            while sum(job.done() for job in asked) < point - 2 and time.monotonic() < deadline:
                time.sleep(0.01)

    RE.subscribe(live)
    plan = rocking(until_asked, update=update, marker=str(tmp_path / "died"))
    summary = live.result(RE(plan).plan_result).result(60)
    assert summary.status == "success"
    assert summary.scalars["total"] == sum(48 * point for point in range(POINTS))
    assert len(asked) == FAILURES
    assert live.wait(30)
    assert told.partials() == []


def test_the_worker_killed_between_updates_is_sent_the_whole_again(RE, live, told, worker):
    killed = []

    def kill(point):
        yield from told.after(3, 6)(point)
        if point == 2:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    RE.subscribe(live)
    summary = live.result(RE(rocking(kill)).plan_result).result(60)
    assert summary.scalars["total"] == sum(48 * point for point in range(POINTS))
    assert told.partials()[-1]["data"]["total"] == sum(
        48 * point for point in range(told.partials()[-1]["data"]["points"])
    )
    assert summary.scalars["pid"] not in killed


def test_an_update_that_runs_makes_way_at_the_stop(RE, live, worker):
    reached = threading.Event()
    ask = worker.update
    worker.update = lambda uid, curve: ask(uid, curve, on_progress=lambda _: reached.set())

    def wait(point):
        yield from bps.null()
        if point == POINTS - 1:
            assert reached.wait(60)

    RE.subscribe(live)
    raw_uid = RE(rocking(wait, update="wait")).plan_result
    pid = worker.pid
    assert live.result(raw_uid).result(60).scalars["pid"] == pid


def test_an_aborted_scan_keeps_its_partial_results(RE, live, told):
    def stall(point):
        yield from told.after(4)(point)
        if point == 4:
            raise RuntimeError("the motor stalled")

    uids = []
    RE.subscribe(live)
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    with pytest.raises(RuntimeError, match="stalled"):
        RE(rocking(stall))
    assert live.result(uids[0]).result(60).status == "success"
    assert live.wait(30)
    assert_a_run(told.documents)
    assert live.catalog.partials(uids[0])[0].points >= 3


def test_closed_in_mid_scan(RE, live, told):
    def close(point):
        yield from told.after(4)(point)
        if point == 4:
            live.close(wait=False)

    RE.subscribe(live)
    raw_uid = RE(rocking(close)).plan_result
    summary = live.result(raw_uid).result(60)
    assert (summary.status, "closed before" in summary.reason) == ("cancelled", True)
    assert live.catalog.load(summary.processed_uid).status == "cancelled"
    assert live.catalog.partials(raw_uid)


def test_switched_off(RE, away, worker, told):
    settings = away.model_copy(update={"live": LiveSettings(updates=False)})
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        live.subscribe(told)
        RE.subscribe(live)
        summary = live.result(RE(rocking()).plan_result).result(60)
        assert summary.scalars["updates"] == 0
        assert catalog.partials(summary.raw_uid) == []


def test_a_disk_that_is_full_costs_only_what_is_shown(RE, live, told, monkeypatch):
    from bluesky_cdinn import running

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running, "RunJournal", full)
    RE.subscribe(live)
    summary = live.result(RE(rocking(told.after(4))).plan_result).result(60)
    assert summary.status == "success"
    assert live.catalog.partials(summary.raw_uid)


def test_who_subscribes_late_gets_a_run_in_order(RE, live, told):
    late = Told()

    def subscribe(point):
        yield from told.after(4, 6)(point)
        if point == 3:
            live.subscribe(late)

    RE.subscribe(live)
    live.result(RE(rocking(subscribe)).plan_result).result(60)
    assert live.wait(30)
    assert [name for name, _ in late.documents][:3] == ["start", "descriptor", "event"]
    assert late.documents[-1][0] == "stop"


def test_a_callback_that_fails_gets_no_more_of_that_run(RE, live, told):
    calls = []

    def fail(name, doc):
        calls.append(name)
        if name == "event":
            raise RuntimeError("no display")

    live.subscribe(fail)
    RE.subscribe(live)
    live.result(RE(rocking(told.after(4, 6))).plan_result).result(60)
    assert live.wait(30)
    assert calls == ["start", "descriptor", "event"]


def test_a_result_that_is_kept_keeps_neither_frames_nor_the_scan(RE, live, told):
    scans = []

    def look(point):
        yield from told.after(4)(point)
        if point == 4:
            scans.extend(map(weakref.ref, live._scans.values()))

    RE.subscribe(live)
    result = live.result(RE(rocking(look)).plan_result)
    assert result.result(60).status == "success"
    assert live.wait(30)
    # The threads let their last step and job go a moment later.
    deadline = time.monotonic() + 30
    while scans[0]() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert scans[0]() is None


@pytest.mark.parametrize(
    ("followed", "points", "wait"),
    [
        (Followed(), 2, None),
        (Followed(), 3, 0.0),
        (Followed(seen=5, asked_at=9.0), 5, None),
        (Followed(seen=5, asked_at=9.0), 6, 3.0),
        (Followed(seen=5, asked_at=5.0), 6, 0.0),
        (Followed(failures=FAILURES), 6, None),
    ],
)
def test_when_the_next_look_is_due(followed, points, wait):
    settings = LiveSettings(least_points=3, interval_s=4.0)
    assert followed.wait_s(points, 10.0, settings) == wait


def waiting_for(live, uids, asked, *, at, points, **md):
    """Return a scan that asks after a point for a partial result and waits for its outcome."""

    def then(point):
        yield from bps.null()
        if point + 1 == at:
            asked.append(live.partial(uids[0], points))
        if asked and point + 1 == max(at, points):
            asked.append(asked[0].exception(60) or asked[0].result())

    return rocking(then, **md)


@pytest.fixture
def seldom(away, worker):
    """Give a live callback that looks at a scan once an hour, unless it is asked."""
    settings = away.model_copy(update={"live": LiveSettings(least_points=3, interval_s=3600.0)})
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        yield live


@pytest.mark.parametrize(("at", "points"), [(5, 5), (4, 6), (6, 4)])
def test_a_plan_gets_the_partial_result_that_it_asks_for(RE, seldom, at, points):
    uids, asked = [], []
    RE.subscribe(seldom)
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    RE(waiting_for(seldom, uids, asked, at=at, points=points))
    assert asked[1].points >= points


@pytest.mark.parametrize(
    ("points", "md", "error"),
    [
        (2, {}, "at least 3 points"),
        (5, {"update": "reject"}, "at least 9 points"),
        (5, {"update": "bug"}, "unforeseen"),
    ],
)
def test_a_plan_is_told_why_there_is_no_partial_result(RE, seldom, points, md, error):
    uids, asked = [], []
    RE.subscribe(seldom)
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    RE(waiting_for(seldom, uids, asked, at=5, points=points, **md))
    with pytest.raises(Exception, match=error):
        asked[0].result(60)


def test_nobody_waits_for_a_scan_that_has_ended(RE, seldom):
    uids, asked = [], []

    def then(point):
        yield from bps.null()
        if point == 5:
            asked.append(seldom.partial(uids[0], 1000))

    RE.subscribe(seldom)
    RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    RE(rocking(then))
    with pytest.raises(IncompleteScan, match="has ended"):
        asked[0].result(60)
    with pytest.raises(NotFound):
        seldom.partial("never seen", 5)


def test_updates_that_are_off_are_told_of(RE, away, worker):
    uids, asked = [], []
    settings = away.model_copy(update={"live": LiveSettings(updates=False)})
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        RE.subscribe(live)
        RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
        RE(waiting_for(live, uids, asked, at=5, points=5))
        with pytest.raises(ReconstructionFailed, match="updates are off"):
            asked[0].result(60)

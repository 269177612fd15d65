"""RunEngine -> proxy -> workers -> Tiled -> plan: each a process of its own, and each of them in trouble."""

import signal
import time
from collections import defaultdict
from itertools import count

import numpy as np
import pytest
from remote_helpers import PATIENCE_S, Proxy, WorkerProcess, eventually

from bluesky_cdinn.callbacks import DocumentBroadcast, RemoteReconstruction
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import holders
from bluesky_cdinn.heartbeat import read_all
from bluesky_cdinn.plans import rocking_scan, rocking_scan_with_recon
from bluesky_cdinn.settings import Settings, TiledSettings
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.recording import Recording
from bluesky_cdinn.sim.replay import replay_beamline

ANGLES = np.linspace(-0.1, 0.1, 9)
FRAMES = np.random.default_rng(0).poisson(20.0, (9, 16, 12)).astype(np.int32)


class Workers:
    """Workers that are told, killed and started as the tests need them: each start takes long."""

    def __init__(self, settings, catalog):
        self._settings, self._catalog = settings, catalog
        self._all = []

    def living(self, number):
        """Return so many workers, and see that there are no others."""
        alive = [worker for worker in self._all if worker.process.poll() is None]
        for extra in alive[number:]:
            extra.kill(signal.SIGTERM)
            extra.process.wait(PATIENCE_S)
        for _ in range(number - len(alive)):
            self._all.append(WorkerProcess(self._settings, f"worker{len(self._all)}"))
            alive.append(self._all[-1])
        return [worker.wait_ready(self._catalog) for worker in alive[:number]]

    def close(self):
        for worker in self._all:
            worker.close()


@pytest.fixture(scope="module")
def proxied():
    with Proxy() as proxied:
        yield proxied


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with two in it: of an IOC's files, which workers see at ``mnt``, and far ones."""
    folder = tmp_path_factory.mktemp("remote")
    for name in ("ioc", "far"):
        (folder / name).mkdir()
    (folder / "mnt").symlink_to(folder / "ioc")
    return folder


@pytest.fixture(scope="module")
def settings(tiled_server, proxied, folder):
    """Containers and a proxy for these tests, and times that suit a test."""
    address = tiled_server.address()
    tiled = TiledSettings(
        uri=address.uri, api_key=address.api_key, raw="remote/raw", processed="remote/processed"
    )
    remote = proxied.remote.model_copy(
        update={
            "claims": "remote/claims",
            "workers": "remote/workers",
            "heartbeat_s": 1.0,
            "silent_s": 12.0,
            "sweep_s": 1.0,
            "stop_s": 20.0,
            "paths": {
                str(folder / "ioc"): str(folder / "mnt"),
                str(folder / "far"): str(folder / "nowhere"),
            },
        }
    )
    return Settings(tiled=tiled, remote=remote, spool=folder / "spool")


@pytest.fixture(scope="module")
def catalog(settings):
    with Catalog(settings) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def workers(settings, catalog):
    workers = Workers(settings, catalog)
    yield workers
    workers.close()


@pytest.fixture
def worker(workers):
    """Give the only one."""
    (worker,) = workers.living(1)
    return worker


@pytest.fixture
def send(settings):
    with DocumentBroadcast(settings) as send:
        yield send


@pytest.fixture
def beamline():
    return replay_beamline(Recording(FRAMES, ANGLES, gold_geometry((16, 12)), name="gold 7"))


def measure(RE, beamline, **md):
    return RE(rocking_scan(*beamline, -0.1, 0.1, 9, md=md)).plan_result


def whole_results(catalog, raw_uid):
    return [s for s in catalog.reconstructions(raw_uid) if s.status == "success"]


def assert_each_once(catalog, uids, say):
    eventually(lambda: all(whole_results(catalog, uid) for uid in uids), say)
    for uid in uids:
        (result,) = catalog.reconstructions(uid)
        assert result.scalars["total"] == FRAMES.sum()
    # Claims are given back when the result is stored.
    eventually(lambda: not holders(catalog.folder(catalog.settings.remote.claims)), say)


def test_a_plan_waits_for_a_worker_elsewhere(RE, catalog, settings, send, worker, beamline):
    def beat():
        return read_all(catalog.folder(settings.remote.workers))[worker.name]

    failed_before = beat().failed
    RE.subscribe(catalog.raw_writer())
    RE.subscribe(send)
    # It never looks by itself: what comes, comes by the websocket.
    with RemoteReconstruction(catalog, poll_s=3600) as remote:
        plan = rocking_scan_with_recon(*beamline, -0.1, 0.1, 9, live=remote, timeout=PATIENCE_S)
        summary = RE(plan).plan_result
        assert (summary.status, summary.chi2, summary.sample) == ("success", 0.005, "gold 7"), worker.log
        assert summary.scalars["total"] == FRAMES.sum()
        assert summary.load().raw_uid == summary.raw_uid

        # The worker is cut off: the plan decides how long that may take, and the result comes later.
        worker.kill(signal.SIGSTOP)
        began = time.monotonic()
        plan = rocking_scan_with_recon(*beamline, -0.1, 0.1, 9, live=remote, timeout=1)
        late = RE(plan).plan_result
        assert time.monotonic() - began < 20
        assert (late.status, "within 1 s" in late.reason) == ("failed", True)
        worker.kill(signal.SIGCONT)
        assert remote.result(late.raw_uid).result(PATIENCE_S).status == "success"

        # A failed reconstruction is a result too.
        plan = rocking_scan_with_recon(*beamline, -0.1, 0.1, 9, live=remote, md={"do": "reject"})
        failed = RE(plan).plan_result
        assert (failed.status, failed.reason) == ("failed", "needs at least 9 points, got 3")
    eventually(lambda: beat().failed == failed_before + 1)
    assert (beat().pid, beat().version) == (worker.process.pid, "0.1.0")


def test_workers_share_scans_and_one_takes_over_from_another(
    RE, catalog, settings, send, workers, beamline, tmp_path
):
    both = workers.living(2)

    def say():
        return "\n".join(worker.log for worker in both)

    RE.subscribe(catalog.raw_writer())
    RE.subscribe(send)
    gate = tmp_path / "gate"
    first = measure(RE, beamline, until=str(gate))
    claims = catalog.folder(settings.remote.claims)
    eventually(lambda: first in holders(claims), say)
    busy = holders(claims)[first].worker
    eventually(lambda: read_all(catalog.folder(settings.remote.workers))[busy].runs == (first,), say)
    # The busy one has seen by now that there is an idle one: it looks once a sweep.
    time.sleep(2 * settings.remote.sweep_s + settings.remote.heartbeat_s)
    try:
        second = measure(RE, beamline, until=str(gate))
        eventually(lambda: second in holders(claims), say)
        # The idle one has it.
        assert holders(claims)[second].worker != busy
        more = [measure(RE, beamline) for _ in range(3)]
        victim = next(worker for worker in both if worker.name == busy)
        victim.kill()
    finally:
        # Tests that follow need a worker that isn't held up.
        gate.touch()
    assert_each_once(catalog, [first, second, *more], say)
    assert "is taken over from a worker that died" in say()


def losing(send, which):
    """Return a callback that sends all documents but some, each a name and the how manieth of that name."""
    numbers = defaultdict(count)

    def lossy(name, doc):
        if (name, next(numbers[name])) not in which:
            send(name, doc)

    return lossy


def test_what_got_lost_or_nobody_followed_is_read_from_tiled(RE, catalog, send, worker, beamline):
    RE.subscribe(catalog.raw_writer())
    uids = [measure(RE, beamline)]
    other = measure(RE, beamline, purpose="alignment")
    for which in ([("event", 2), ("event", 6)], [("stop", 0)], [("start", 0)]):
        token = RE.subscribe(losing(send, which))
        uids.append(measure(RE, beamline))
        RE.unsubscribe(token)
    assert_each_once(catalog, uids, lambda: worker.log)
    assert "2 of 9 points" in worker.log
    assert catalog.reconstructions(other) == []


def test_the_proxy_is_killed_and_restarted_in_mid_scan(RE, catalog, proxied, send, worker, beamline):
    RE.subscribe(catalog.raw_writer())
    RE.subscribe(send)
    events = count(1)
    RE.subscribe(lambda *_: proxied.restart() if next(events) == 4 else None, "event")
    uids = [measure(RE, beamline) for _ in range(2)]
    assert_each_once(catalog, uids, lambda: worker.log)


def test_frames_in_files_here_or_elsewhere(RE, catalog, send, worker, folder):
    RE.subscribe(catalog.raw_writer())
    RE.subscribe(send)
    recording = Recording(FRAMES, ANGLES, gold_geometry((16, 12)))
    uids = [
        measure(RE, replay_beamline(recording, delivery="stream", directory=folder / name))
        for name in ("ioc", "far")
    ]
    assert_each_once(catalog, uids, lambda: worker.log)
    assert worker.log.count("can't be reached from here") == 1


def test_a_worker_that_is_told_to_stop_ends_what_it_has_begun(
    RE, catalog, settings, send, worker, beamline, tmp_path
):
    RE.subscribe(catalog.raw_writer())
    RE.subscribe(send)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    uid = measure(RE, beamline, until=str(gate), begun=str(begun))
    eventually(begun.exists, lambda: worker.log)
    worker.kill(signal.SIGTERM)
    eventually(lambda: "stopping" in worker.log)
    gate.touch()
    assert worker.process.wait(PATIENCE_S) == 0, worker.log
    assert_each_once(catalog, [uid], lambda: worker.log)
    assert worker.name not in read_all(catalog.folder(settings.remote.workers))

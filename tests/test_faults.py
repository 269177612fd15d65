"""What never happens: a reconstruction, or Tiled, stops or loses a scan. Real processes, really killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from ophyd import Component, Device, Signal
from ophyd.sim import motor

from bluesky_cdinn.callbacks import LiveReconstruction, stored_curve
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.embedded import EmbeddedServer
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.settings import Settings, TiledSettings, WorkerSettings
from bluesky_cdinn.spool import spooled_runs
from bluesky_cdinn.worker import ReconstructionWorker

POINTS = 8


class Camera(Device):
    """A camera whose every frame is different."""

    image = Component(Signal, value=np.zeros((16, 12), np.uint16))


def frame(point):
    return np.random.default_rng(point).poisson(50.0, (16, 12)).astype(np.uint16)


def rocking(at_half=lambda: None, **md):
    """A rocking scan that does something unheard-of half-way."""
    camera = Camera(name="camera")
    cdi = {"detector": "camera_image", "rocking_motor": "motor"}

    @bpp.run_decorator(md={"purpose": "rocking_curve", "motors": ["motor"], "cdi": cdi, **md})
    def plan():
        for point in range(POINTS):
            if point == POINTS // 2:
                at_half()
            camera.image.put(frame(point))
            yield from bps.mv(motor, 0.01 * point)
            yield from bps.trigger_and_read([camera, motor])

    return (yield from plan())


def assert_whole(catalog, raw_uid):
    run = catalog.raw[raw_uid]
    assert run.metadata["stop"]["exit_status"] == "success"
    stored = plain_client(run)["primary/camera_image"].read()
    np.testing.assert_array_equal(stored, [frame(point) for point in range(POINTS)])


def watch(RE, live):
    RE.subscribe(live.catalog.raw_writer())
    RE.subscribe(live)


@pytest.fixture
def worker(jobs_on_path):
    with ReconstructionWorker(WorkerSettings(timeout_s=60), entry="worker_jobs:job") as worker:
        yield worker


def test_worker_killed_in_mid_reconstruction(RE, catalog, worker):
    with LiveReconstruction(catalog, worker=worker) as live:
        watch(RE, live)
        first = RE(rocking(do="wait", seconds=2)).plan_result
        while (killed := worker.pid) is None:
            time.sleep(0.01)
        time.sleep(0.5)
        # The next scan is under way when it happens.
        second = RE(rocking(lambda: os.kill(killed, signal.SIGKILL))).plan_result
        summaries = [live.result(uid).result(60) for uid in (first, second)]
    assert [s.status for s in summaries] == ["success", "success"]
    assert killed not in {s.scalars["pid"] for s in summaries}
    for uid in (first, second):
        assert_whole(catalog, uid)
        assert catalog.latest(uid).load().status == "success"


def test_tiled_stopped_in_mid_scan(RE, worker, tmp_path):
    served = tmp_path / "served"
    server = EmbeddedServer(served)
    address = server.address()
    port = int(address.uri.rsplit(":", 1)[1])
    tiled = TiledSettings(uri=address.uri, api_key=address.api_key)
    settings = Settings(tiled=tiled, spool=tmp_path / "spool")
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        watch(RE, live)
        before = RE(rocking()).plan_result
        live.result(before).result(60)
        assert catalog.flush(60)
        began = time.monotonic()
        raw_uid = RE(rocking(server.close)).plan_result
        summary = live.result(raw_uid).result(60)
        # The server's own end takes most of it; Tiled's client alone would ask in vain for 45 s.
        assert time.monotonic() - began < 15
        assert summary.status == "success"
        assert summary.load().chi2 == summary.chi2
        assert not catalog.flush(5)
        assert {run.uid for run in spooled_runs(settings.spool)} == {raw_uid, summary.processed_uid}
    back = EmbeddedServer(served, port=port)
    try:
        address = back.address()
        tiled = TiledSettings(uri=address.uri, api_key=address.api_key)
        with Catalog(Settings(tiled=tiled, spool=settings.spool)) as catalog:
            assert catalog.deliver_spooled() == 0
            for uid in (before, raw_uid):
                assert_whole(catalog, uid)
                assert len(catalog.reconstructions(uid)) == 1
            assert catalog.latest(raw_uid).processed_uid == summary.processed_uid
            np.testing.assert_array_equal(
                stored_curve(catalog, raw_uid).frames, [frame(point) for point in range(POINTS)]
            )
    finally:
        back.close()


def test_tiled_that_was_never_there(RE, worker, tmp_path):
    settings = Settings(tiled=TiledSettings(uri="http://127.0.0.1:9"), spool=tmp_path)
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        watch(RE, live)
        raw_uid = RE(rocking()).plan_result
        summary = live.result(raw_uid).result(30)
        assert summary.load().raw_uid == raw_uid
    assert {run.uid for run in spooled_runs(tmp_path)} == {raw_uid, summary.processed_uid}


def test_spool_that_cannot_be_written(RE, settings, worker, tmp_path, caplog):
    (tmp_path / "spool").write_text("a file is in the way")
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=worker) as live:
        watch(RE, live)
        raw_uid = RE(rocking()).plan_result
        summary = live.result(raw_uid).result(30)
        assert summary.load().raw_uid == raw_uid
        assert_whole(catalog, raw_uid)
        assert catalog.latest(raw_uid).processed_uid == summary.processed_uid
    assert "can't be written" in caplog.text


def test_disk_full_in_mid_scan(RE, settings, worker, monkeypatch):
    kept = np.save

    def full(path, array, **options):
        if str(path).endswith("000003.npy"):
            raise OSError(28, "No space left on device")
        kept(path, array, **options)

    monkeypatch.setattr(np, "save", full)
    with Catalog(settings) as catalog:
        RE.subscribe(catalog.raw_writer())
        raw_uid = RE(rocking()).plan_result
        assert_whole(catalog, raw_uid)
    assert [path.name for path in settings.spool.iterdir()] == [".lock"]


def test_disk_full_while_a_result_is_written(settings, monkeypatch):
    size = (12, 12, 12)
    result = Reconstruction(density=np.ones(size, np.complex64), support=np.ones(size, bool))

    def full(path, array, **options):
        raise OSError(28, "No space left on device")

    with Catalog(settings) as catalog:
        with monkeypatch.context() as patched:
            patched.setattr(np, "save", full)
            uid = catalog.store(result)
        # What the disk took of it must not stand in for it, now or after the next start.
        assert not list(settings.spool.glob("*processed*"))
        assert catalog.flush(30)
        np.testing.assert_array_equal(catalog.load(uid).density, result.density)


def test_session_killed_in_mid_scan(settings, catalog):
    script = textwrap.dedent(
        """
        import os, sys, time
        from bluesky import RunEngine
        from bluesky_cdinn.catalog import Catalog
        from bluesky_cdinn.settings import Settings, TiledSettings
        from test_faults import rocking
        def die():
            time.sleep(0.5)
            os.kill(os.getpid(), 9)
        RE = RunEngine({})
        catalog = Catalog(Settings(tiled=TiledSettings(uri="http://127.0.0.1:9"), spool=sys.argv[1]))
        RE.subscribe(catalog.raw_writer())
        RE(rocking(die))
        """
    )
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", script, str(settings.spool)]
    died = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert catalog.deliver_spooled() == 0
    (run,) = catalog.raw.values()
    assert run.metadata["stop"]["exit_status"] == "fail"
    stored = plain_client(run)["primary/camera_image"].read()
    np.testing.assert_array_equal(stored, [frame(point) for point in range(POINTS // 2)])


def test_script_that_ends_without_closing_anything(settings, jobs_on_path):
    """Its last scan and reconstruction are written, and it does end."""
    script = textwrap.dedent(
        """
        import sys
        from bluesky import RunEngine
        from bluesky_cdinn.callbacks import LiveReconstruction
        from bluesky_cdinn.settings import Settings, TiledSettings
        from bluesky_cdinn.worker import ReconstructionWorker
        from test_faults import rocking
        tiled = TiledSettings(uri=sys.argv[1], api_key=sys.argv[2], raw=sys.argv[3], processed=sys.argv[4])
        live = LiveReconstruction(
            settings=Settings(tiled=tiled, spool=sys.argv[5]),
            worker=ReconstructionWorker(entry="worker_jobs:job"),
        )
        RE = RunEngine({}, call_returns_result=True)
        RE.subscribe(live.catalog.raw_writer())
        RE.subscribe(live)
        raw_uid = RE(rocking()).plan_result
        print(raw_uid, live.result(raw_uid).result(60).processed_uid)
        """
    )
    tiled = settings.tiled
    where = [tiled.uri, tiled.api_key.get_secret_value(), tiled.raw, tiled.processed, str(settings.spool)]
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", script, *where]
    ended = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=90)
    raw_uid, processed_uid = ended.stdout.split()
    with Catalog(settings) as catalog:
        assert_whole(catalog, raw_uid)
        assert catalog.latest(raw_uid).processed_uid == processed_uid

"""The session itself is killed, or ends without a farewell: real processes, really killed."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
from scans import POINTS, assert_whole, frame, rocking, watch

from bluesky_cdinn.callbacks import LiveReconstruction, stored_curve
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.embedded import SERVER_FILE
from bluesky_cdinn.settings import Settings, TiledSettings

HERE = os.path.dirname(__file__)


def test_session_killed_in_mid_scan(settings, catalog):
    script = textwrap.dedent(
        """
        import os, sys, time
        from bluesky import RunEngine
        from bluesky_cdinn.catalog import Catalog
        from bluesky_cdinn.settings import Settings, TiledSettings
        from scans import rocking
        def die():
            time.sleep(0.5)
            os.kill(os.getpid(), 9)
        RE = RunEngine({})
        catalog = Catalog(Settings(tiled=TiledSettings(uri="http://127.0.0.1:9"), spool=sys.argv[1]))
        RE.subscribe(catalog.raw_writer())
        RE(rocking(die))
        """
    )
    command = [sys.executable, "-c", script, str(settings.spool)]
    died = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert catalog.deliver_spooled() == 0
    (run,) = catalog.raw.values()
    assert run.metadata["stop"]["exit_status"] == "fail"
    stored = plain_client(run)["primary/camera_image"].read()
    np.testing.assert_array_equal(stored, [frame(point) for point in range(POINTS // 2)])


def test_script_that_ends_without_closing_anything(settings, make_worker):
    """Its last scan and reconstruction are written, and it does end."""
    script = textwrap.dedent(
        """
        import sys
        from bluesky import RunEngine
        from bluesky_cdinn.callbacks import LiveReconstruction
        from bluesky_cdinn.settings import Settings, TiledSettings
        from bluesky_cdinn.worker import ReconstructionWorker
        from scans import rocking
        tiled = TiledSettings(uri=sys.argv[1], api_key=sys.argv[2], raw=sys.argv[3], processed=sys.argv[4])
        live = LiveReconstruction(
            settings=Settings(tiled=tiled, spool=sys.argv[5]),
            worker=ReconstructionWorker(entry="fault_jobs:at_once"),
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
    command = [sys.executable, "-c", script, *where]
    ended = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=90)
    raw_uid, processed_uid = ended.stdout.split()
    with Catalog(settings) as catalog:
        assert_whole(catalog, raw_uid)
        assert catalog.latest(raw_uid).processed_uid == processed_uid


def test_the_embedded_server_killed_in_mid_scan(RE, make_worker, tmp_path):
    """It is started again by itself, and gets what it missed."""
    tiled = TiledSettings(directory=tmp_path / "tiled")
    with (
        Catalog(Settings(tiled=tiled, spool=tmp_path / "spool")) as catalog,
        LiveReconstruction(catalog, worker=make_worker()) as live,
    ):
        watch(RE, live)
        first = catalog.uri
        server = json.loads((tiled.directory / SERVER_FILE).read_text())["pid"]
        raw_uid = RE(rocking(lambda: os.kill(server, signal.SIGKILL))).plan_result
        summary = live.result(raw_uid).result(60)
        assert catalog.flush(120)
        assert catalog.uri != first
        assert_whole(catalog, raw_uid)
        assert catalog.latest(raw_uid).processed_uid == summary.processed_uid
        np.testing.assert_array_equal(
            stored_curve(catalog, raw_uid).frames, [frame(point) for point in range(POINTS)]
        )

"""The ophyd devices against a soft IOC over Channel Access on loopback, and the whole way through them."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from soft_ioc import soft_ioc

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.demo import true_error
from bluesky_cdinn.sim.crystal import random_crystal

pytest.importorskip("epics")

# Four processes that import a lot each.
pytestmark = pytest.mark.timeout(600)

SEED = 1
SIZE_NM, PHASE_RANGE_RAD = 400.0, 3.0
SCAN = (-0.175, 0.175, 32)
ARGUMENTS = ("--seed", SEED, "--pixels", 64, "--peak-rate", 1e8, "--velocity", 20)
DIED_AT = 20


@contextmanager
def session(ioc, settings, folder, *scans):
    """Start a session's process; it ends with this."""
    key = settings.tiled.api_key.get_secret_value()
    tiled = settings.tiled.model_dump(mode="json") | {"api_key": key}
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "prefix": ioc.prefix,
                "frames": str(folder),
                "settings": {"tiled": tiled, "spool": str(settings.spool)},
                "scans": [{"frames": frames, "scan": scan} for frames, scan in scans],
            }
        )
    )
    script = Path(__file__).with_name("epics_session.py")
    with (folder / "session.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, script, job], stdout=subprocess.PIPE, stderr=log, text=True, env=ioc.environment
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def answers(process, on_point=lambda point: None):
    """Return what a session answers in the end."""
    last = None
    for line in process.stdout:
        last = json.loads(line)
        if isinstance(last, dict):
            on_point(last["point"])
    assert process.wait(60) == 0
    return last


@pytest.fixture(scope="module")
def ioc():
    with soft_ioc(*ARGUMENTS) as ioc:
        yield ioc


@pytest.fixture(scope="module")
def crystal():
    return random_crystal(np.random.default_rng([SEED, 0]), SIZE_NM, PHASE_RANGE_RAD)


def test_the_true_crystal_is_found_over_channel_access(ioc, crystal, settings, catalog, tmp_path_factory):
    """Frames in events and in files; between them a scan that would run into the motor's limit."""
    # Files must lie where the shared server may read them.
    folder = Path(tmp_path_factory.mktemp("epics"))
    scans = (("event", SCAN), ("event", (-6.0, 6.0, 9)), ("file", SCAN))
    with session(ioc, settings, folder, *scans) as process:
        in_events, refused, in_files = answers(process)
    assert refused["error"] == "InvalidInput"
    assert "within the motor's limits" in refused["message"]
    assert "raw_uid" not in refused
    assert refused["stood"] == refused["stands"]
    for answer in (in_events, in_files):
        assert (answer["status"], answer["points"]) == ("success", SCAN[2]), answer
        raw = catalog.raw[answer["raw_uid"]]
        assert raw.metadata["stop"]["exit_status"] == "success"
        result = catalog.load(answer["uid"])
        error = true_error(result, crystal)
        assert error.phase_rmse < 0.1
        assert error.iou > 0.9
        assert result.raw_uid == answer["raw_uid"]
    image = plain_client(catalog.raw[in_files["raw_uid"]])["primary"]["det_image"].read()
    assert np.squeeze(image).shape == (SCAN[2], 64, 64)


def test_an_ioc_that_dies_ends_the_scan_and_not_the_session(settings, catalog, tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("dies"))
    with soft_ioc(*ARGUMENTS) as ioc:

        def die(point):
            if point == DIED_AT:
                os.kill(ioc.process.pid, signal.SIGKILL)

        with session(ioc, settings, folder, ("file", SCAN)) as process:
            (answer,) = answers(process, die)
    assert DIED_AT <= answer["points"] < SCAN[2]
    assert answer["error"]
    assert answer["staged"] == "no"
    raw = catalog.raw[answer["raw_uid"]].metadata
    assert raw["stop"]["exit_status"] == "fail"
    assert raw["stop"]["num_events"]["primary"] == answer["points"]
    # Two thirds of the curve may hold a crystal, or not; either way it is on record.
    processed = catalog.load(answer["uid"])
    assert processed.status == "success" or processed.reason

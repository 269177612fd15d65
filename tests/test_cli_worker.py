"""`cdinn worker` and `cdinn status` as they are typed."""

import json
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from remote_helpers import PATIENCE_S, Proxy, environment, eventually
from typer.testing import CliRunner

from bluesky_cdinn.callbacks import DocumentBroadcast, RemoteReconstruction
from bluesky_cdinn.cli import app
from bluesky_cdinn.doctor import ball_curve
from bluesky_cdinn.heartbeat import Heartbeat, post
from bluesky_cdinn.metrics import WorkerMetrics
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.recording import Recording
from bluesky_cdinn.sim.replay import replay_beamline
from bluesky_cdinn.summary import ReconstructionSummary


@pytest.fixture
def cdinn(settings):
    def run(*arguments, **changes):
        return CliRunner().invoke(app, arguments, env=environment(settings) | changes)

    return run


@pytest.fixture
def settings(settings):
    test = settings.tiled.raw.split("/")[0]
    remote = settings.remote.model_copy(
        update={"claims": f"{test}/claims", "workers": f"{test}/workers", "heartbeat_s": 1.0}
    )
    return settings.model_copy(update={"remote": remote})


def test_another_machine_must_be_allowed(cdinn):
    done = cdinn("worker", "--follow", "tcp://10.1.2.3:5578")
    assert done.exit_code == 1
    assert done.stderr.startswith("cdinn: documents stay on this machine")
    assert "api" not in done.stderr.lower()


def test_status_when_nothing_is_there_and_when_something_is_wrong(cdinn, catalog, settings):
    done = cdinn("status", "--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True)
    post(catalog.folder(settings.remote.workers), Heartbeat("gone", since=1.0, time=1.0, last_error="oh"))
    aside = settings.spool / "00000000000000000001-raw-x.rejected"
    aside.mkdir(parents=True)
    done = cdinn("status")
    assert done.exit_code == 1
    for said in ("gone", "oh", "has been silent", "--forget gone", "Tiled refused a run"):
        assert said in " ".join(done.stdout.split())
    aside.rmdir()
    done = cdinn("status", "--json", "--forget", "gone")
    assert (done.exit_code, json.loads(done.stdout)["workers"]) == (0, [])
    assert cdinn("status", "--forget", "gone").exit_code == 1
    away = cdinn("status", "--json", CDINN_TILED__URI="http://127.0.0.1:9")
    assert away.exit_code == 1
    assert "can't be reached" in json.loads(away.stdout)["troubles"][0]
    key = settings.tiled.api_key.get_secret_value()
    assert key not in done.stdout + done.stderr + away.stdout + away.stderr


def test_a_real_reconstruction_by_the_command_with_metrics(RE, catalog, settings, cdinn, tmp_path):
    ball = ball_curve()
    recording = Recording(np.asarray(ball.frames), ball.angles_deg, gold_geometry((32, 32)))
    log = tmp_path / "worker.log"
    command = [sys.executable, "-m", "bluesky_cdinn.cli", "worker", "--name", "ball", "--metrics-port", "0"]
    with Proxy() as proxy:
        remote = settings.remote.model_copy(
            update={"publish": proxy.remote.publish, "follow": proxy.remote.follow}
        )
        chosen = settings.model_copy(update={"remote": remote, "spool": tmp_path / "worker-spool"})
        with (
            log.open("wb") as output,
            subprocess.Popen(command, env=environment(chosen), stderr=output) as worker,
            DocumentBroadcast(chosen) as send,
            RemoteReconstruction(catalog) as results,
        ):
            try:
                eventually(lambda: "follows" in log.read_text(), log.read_text)
                RE.subscribe(catalog.raw_writer())
                RE.subscribe(send)
                det, theta = replay_beamline(recording)
                plan = rocking_scan_with_recon(
                    det, theta, *recording.scan_range, live=results, timeout=PATIENCE_S
                )
                summary = RE(plan).plan_result
                assert summary.success, log.read_text()
                assert summary.chi2 < 0.05
                served = log.read_text().partition("metrics at ")[2].split()[0]
                eventually(lambda: told(served)["cdinn_claimed_runs"] == 0.0)
                assert told(served)['cdinn_runs_total{status="success"}'] == 1.0
                assert told(served)["cdinn_documents_total"] == len(recording.angles_deg) + 3
                beat = json.loads(cdinn("status", "--json").stdout)["workers"][0]
                assert (beat["name"], beat["done"], beat["pid"]) == ("ball", 1, worker.pid)
            finally:
                worker.send_signal(signal.SIGTERM)
        assert worker.returncode == 0, log.read_text()
    assert json.loads(cdinn("status", "--json").stdout)["workers"] == []
    assert settings.tiled.api_key.get_secret_value() not in log.read_text()


def told(address):
    """Return Prometheus' numbers by name."""
    lines = urllib.request.urlopen(address).read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_what_a_worker_counts():
    metrics = WorkerMetrics()
    metrics.watch(lambda: 2, lambda: 1)
    metrics.ended(ReconstructionSummary("x", seconds=3.0))
    metrics.ended(ReconstructionSummary("x", status="failed", reason="too few points"))
    metrics.ended(ReconstructionSummary("x", status="cancelled"))
    for name, doc in (("descriptor", {"name": "partial", "uid": "d"}), ("event", {"descriptor": "d"})):
        metrics.processed(name, doc)
    assert (metrics.done, metrics.failed, metrics.updates) == (1, 1, 1)
    assert metrics.last_error == "too few points"
    value = metrics.registry.get_sample_value
    assert value("cdinn_runs_total", {"status": "cancelled"}) == 1.0
    assert value("cdinn_reconstruction_seconds_sum") == 3.0
    assert (value("cdinn_claimed_runs"), value("cdinn_queue_depth")) == (2.0, 1.0)

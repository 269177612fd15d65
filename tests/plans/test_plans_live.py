"""The whole way from a plan to its result: real RunEngine, live callback, worker process and Tiled."""

import os
from pathlib import Path

import numpy as np
import pytest

from bluesky_cdinn.callbacks import LiveReconstruction, set_default_live
from bluesky_cdinn.errors import ReconstructionFailed
from bluesky_cdinn.plans import rocking_scan, rocking_scan_with_recon
from bluesky_cdinn.settings import WorkerSettings
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.recording import Recording
from bluesky_cdinn.sim.replay import replay_beamline
from bluesky_cdinn.worker import ReconstructionWorker

ANGLES = np.linspace(-0.1, 0.1, 9)
FRAMES = np.random.default_rng(0).poisson(20.0, (9, 16, 12)).astype(np.int32)


@pytest.fixture
def live(catalog, jobs_on_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    with (
        ReconstructionWorker(WorkerSettings(), entry="reading_jobs:job") as worker,
        LiveReconstruction(catalog, worker=worker) as live,
    ):
        yield live


@pytest.fixture
def recording():
    return Recording(FRAMES, ANGLES, gold_geometry((16, 12)), name="gold 7")


@pytest.mark.parametrize("delivery", ["event", "resource", "stream"])
def test_a_scan_comes_back_with_its_result(RE, catalog, live, recording, tmp_path, delivery):
    RE.subscribe(catalog.raw_writer())
    det, theta = replay_beamline(recording, delivery=delivery, directory=tmp_path)
    summary = RE(rocking_scan_with_recon(det, theta, *recording.scan_range, live=live)).plan_result
    catalog.flush()
    assert summary.status == "success"
    assert summary.chi2 == 0.005
    assert summary.scalars["total"] == FRAMES.sum()
    assert summary.sample == "gold 7"
    assert catalog.raw[summary.raw_uid].metadata["stop"]["exit_status"] == "success"
    loaded = summary.load()
    assert loaded.raw_uid == summary.raw_uid
    # The last bit of an angle differs between processors.
    np.testing.assert_allclose(np.unique(loaded.phase[loaded.support]), [0.3], rtol=2e-7)


def test_the_session_s_own_callback_is_the_default(RE, live, recording):
    set_default_live(live)
    try:
        RE.subscribe(live)
        det, theta = replay_beamline(recording)
        first = RE(rocking_scan_with_recon(det, theta, *recording.scan_range)).plan_result
        second = RE(rocking_scan_with_recon(det, theta, *recording.scan_range)).plan_result
    finally:
        set_default_live(None)
    assert first.scalars["total"] == second.scalars["total"] == FRAMES.sum()
    assert first.processed_uid != second.processed_uid


@pytest.mark.parametrize(
    ("trouble", "reason"), [("reject", "at least 9 points"), ("bug", "unforeseen"), ("exit", "")]
)
def test_trouble_in_the_worker_is_returned(RE, live, recording, trouble, reason):
    det, theta = replay_beamline(recording)
    plan = rocking_scan_with_recon(det, theta, *recording.scan_range, live=live, md={"do": trouble})
    summary = RE(plan).plan_result
    assert summary.status == "failed"
    assert reason in summary.reason
    assert summary.processed_uid


def test_trouble_is_raised_if_asked(RE, live, recording):
    det, theta = replay_beamline(recording)
    plan = rocking_scan_with_recon(
        det, theta, *recording.scan_range, live=live, md={"do": "reject"}, on_failure="raise"
    )
    with pytest.raises(ReconstructionFailed, match="at least 9 points"):
        RE(plan)


def test_the_next_scan_needs_not_wait(RE, live, recording):
    """A plain scan beside a subscribed callback; the plan is over before the reconstruction is."""
    RE.subscribe(live)
    det, theta = replay_beamline(recording)
    uid = RE(rocking_scan(det, theta, *recording.scan_range, md={"do": "wait", "seconds": 1.0})).plan_result
    assert not live.result(uid).done()
    assert live.result(uid).result(timeout=30).status == "success"

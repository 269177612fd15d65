"""An ophyd-async detector, whose frames are in no event, under the same plan and callback as any other."""

import os
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from ophyd_async.core import TriggerInfo, init_devices
from ophyd_async.sim import SimMotor

from bluesky_cdinn.callbacks import LiveReconstruction, RockingCurveAssembler
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.errors import IncompleteScan
from bluesky_cdinn.frame_files import load_frames
from bluesky_cdinn.plans import rocking_scan, rocking_scan_with_recon
from bluesky_cdinn.settings import WorkerSettings
from bluesky_cdinn.sim.async_detector import CrystalDetector
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.recording import Recording
from bluesky_cdinn.sim.replay import RecordedFrames
from bluesky_cdinn.worker import ReconstructionWorker

ANGLES = np.linspace(-0.1, 0.1, 9)
FRAMES = np.random.default_rng(0).poisson(20.0, (9, 16, 12)).astype(np.int32)
SCAN = (-0.1, 0.1, 9)


@pytest.fixture
def live(catalog, jobs_on_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "plans"), prepend=os.pathsep)
    with (
        ReconstructionWorker(WorkerSettings(), entry="reading_jobs:job") as worker,
        LiveReconstruction(catalog, worker=worker) as live,
    ):
        yield live


@pytest.fixture
def devices(RE, tmp_path_factory):
    """Make them in the RunEngine's event loop; the files lie where the shared server may read them."""
    source = RecordedFrames(Recording(FRAMES, ANGLES, gold_geometry((16, 12)), name="gold 7"))
    folder = Path(tmp_path_factory.mktemp("frames"))
    with init_devices():
        theta = SimMotor(units="deg")
        det = CrystalDetector(source, theta.user_readback.get_value, folder)
    return det, theta


def test_the_plan_and_the_callback_take_it_as_any_other(RE, catalog, live, devices):
    det, theta = devices
    RE.subscribe(catalog.raw_writer())
    plan = rocking_scan_with_recon(det, theta, *SCAN, count_time=0.001, cdi={"sample": "gold 7"}, live=live)
    summary = RE(plan).plan_result
    catalog.flush()
    assert (summary.status, summary.reason) == ("success", "")
    assert summary.scalars["total"] == FRAMES.sum()
    run = catalog.raw[summary.raw_uid]
    assert run.metadata["stop"]["exit_status"] == "success"
    np.testing.assert_array_equal(np.squeeze(plain_client(run)["primary"]["det"].read()), FRAMES)


def test_what_the_documents_say_is_understood(RE, devices):
    det, theta = devices
    assembler = RockingCurveAssembler()
    RE(rocking_scan(det, theta, *SCAN, count_time=0.002), assembler)
    curve = load_frames(assembler.curve())
    np.testing.assert_array_equal(curve.frames, FRAMES)
    np.testing.assert_allclose(curve.angles_deg, ANGLES)
    np.testing.assert_allclose(curve.count_time_s, 0.002)
    assert curve.geometry == gold_geometry((16, 12))
    assert curve.missing == ()


def test_frames_can_be_read_while_the_scan_runs(RE, devices):
    """Documents of a point come before its event: the file holds the frames of all points so far."""
    det, theta = devices
    assembler = RockingCurveAssembler()
    read = []

    def look(name, doc):
        assembler(name, doc)
        if name == "event" and doc["seq_num"] >= 3:
            curve = load_frames(assembler.curve(), patience_s=0.0)
            assert curve.exit_status == "unfinished"
            np.testing.assert_array_equal(curve.frames, FRAMES[: doc["seq_num"]])
            read.append(len(curve.frames))

    RE(rocking_scan(det, theta, *SCAN, count_time=0.001), look)
    assert read == list(range(3, 10))


def test_exposures_that_vary_are_set_and_read_with_each_point(RE, devices):
    det, theta = devices
    assembler = RockingCurveAssembler()
    times = np.linspace(0.001, 0.009, 9)
    RE(rocking_scan(det, theta, *SCAN, count_time=times.tolist()), assembler)
    np.testing.assert_allclose(assembler.curve().count_time_s, times)


def test_a_point_may_hold_several_frames(RE, devices):
    det, theta = devices
    assembler = RockingCurveAssembler()

    @bpp.stage_decorator([det, theta])
    @bpp.run_decorator(md={"purpose": "rocking_curve", "motors": ["theta"]})
    def plan():
        yield from bps.prepare(det, TriggerInfo(livetime=0.001, collections_per_event=2), wait=True)
        for angle in ANGLES[:4]:
            yield from bps.mv(theta, angle)
            yield from bps.trigger_and_read([det, theta])

    RE(plan(), assembler)
    curve = load_frames(assembler.curve())
    np.testing.assert_array_equal(curve.frames, np.repeat(FRAMES[:4], 2, axis=0))
    np.testing.assert_allclose(curve.angles_deg, np.repeat(ANGLES[:4], 2))


def fly(det, theta, frames):
    """Take frames one after another while the motor turns; documents come in batches."""

    @bpp.stage_decorator([det, theta])
    @bpp.run_decorator(md={"purpose": "rocking_curve", "cdi": {"rocking_motor": "det-angle"}})
    def plan():
        yield from bps.mv(theta, ANGLES[0], theta.velocity, 0.5)
        yield from bps.prepare(det, TriggerInfo(livetime=0.05, number_of_events=frames), wait=True)
        yield from bps.declare_stream(det, name="primary", collect=True)
        yield from bps.abs_set(theta, ANGLES[-1], group="turn")
        yield from bps.kickoff(det, wait=True)
        yield from bps.collect_while_completing([det], [det], flush_period=0.1, stream_name="primary")
        yield from bps.wait("turn")

    return plan()


def test_a_fly_scan_has_its_angles_in_the_file_too(RE, catalog, live, devices):
    det, theta = devices
    RE.subscribe(catalog.raw_writer())
    RE.subscribe(live)
    assembler, batches = RockingCurveAssembler(), []

    def watch(name, doc):
        assembler(name, doc)
        assert name != "event"
        if name == "stream_datum":
            batches.append(doc)

    uid = RE(fly(det, theta, 20), watch).run_start_uids[0]
    curve = load_frames(assembler.curve())
    assert len(curve.frames) == 20
    nearest = [int(np.abs(ANGLES - angle).argmin()) for angle in curve.angles_deg]
    np.testing.assert_array_equal(curve.frames, FRAMES[nearest])
    assert len(set(nearest)) > 3
    assert len(batches) < 2 * 20
    summary = live.result(uid).result(timeout=60)
    assert (summary.status, summary.reason) == ("success", "")
    assert summary.scalars["total"] == curve.frames.sum()


def test_angles_in_a_file_that_is_gone_are_named(RE, devices):
    det, theta = devices
    assembler = RockingCurveAssembler()
    RE(fly(det, theta, 4), assembler)
    (path,) = {frame.path for frame in assembler.curve().frames}
    path.unlink()
    with pytest.raises(IncompleteScan, match=r"angles in .* can't be read"):
        assembler.curve()

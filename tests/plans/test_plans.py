"""The plans under a real RunEngine: what they emit, how they stop, how they wait."""

import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import FailedStatus, RunEngineInterrupted
from event_model import DocumentNames, schema_validators
from ophyd import Component, Device, Signal
from ophyd.sim import SynAxis, SynGauss
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import PatternGenerator, SimBlobDetector, SimMotor

from bluesky_cdinn.callbacks import ReconstructionSummary, RockingCurveAssembler
from bluesky_cdinn.errors import InvalidInput, NotFound, ReconstructionFailed
from bluesky_cdinn.plans import rocking_scan, rocking_scan_with_recon
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.devices import RockingStage, SimulatedAreaDetector
from bluesky_cdinn.volume import load_frames

DELIVERIES = ("event", "resource", "stream")


class AngleStamp:
    """Frames that say at which angle they were taken; the beam is lost above 4.5 deg."""

    geometry = Geometry(9.0, 0.5, (55.0, 55.0), (32.0, 12.0), (4.0, 4.0))
    shape = (8, 8)
    dtype = np.dtype("int32")

    def frame(self, angle_deg, count_time_s):
        if angle_deg > 4.5:
            raise ValueError("the beam is lost")
        return np.full(self.shape, round(angle_deg * 1000), np.int32)


@pytest.fixture
def theta():
    return RockingStage(name="theta", settle_time_s=0.0, time_scale=0.0, initial_deg=0.5)


@pytest.fixture
def make_detector(theta, tmp_path):
    def make(**options):
        settings = {"name": "det", "source": AngleStamp(), "time_scale": 0.0, "directory": tmp_path}
        return SimulatedAreaDetector(stage=theta, **{**settings, **options})

    return make


@pytest.fixture
def det(make_detector):
    return make_detector(cdi={"sample": "gold 7", "reflection": (1, 1, 1)})


@pytest.fixture
def documents():
    return []


@pytest.fixture
def RE(documents):
    engine = RunEngine({}, call_returns_result=True)
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    return engine


def named(documents, name):
    return [doc for kind, doc in documents if kind == name]


def angles(documents):
    return [doc["data"]["theta"] for doc in named(documents, "event")]


class TestRockingScan:
    @pytest.mark.parametrize("delivery", DELIVERIES)
    def test_every_document_is_valid(self, RE, documents, theta, make_detector, delivery):
        result = RE(rocking_scan(make_detector(delivery=delivery), theta, -0.3, 0.3, 7))
        for name, doc in documents:
            schema_validators[DocumentNames[name]].validate(doc)
        assert result.plan_result == documents[0][1]["uid"]
        assert named(documents, "stop")[0]["exit_status"] == "success"
        np.testing.assert_allclose(angles(documents), np.linspace(-0.3, 0.3, 7))

    def test_the_start_document_is_complete(self, RE, documents, theta, det):
        RE(
            rocking_scan(
                det,
                theta,
                -0.3,
                0.3,
                61,
                count_time=0.5,
                cdi={"lattice_nm": 0.4078, "sample": "gold 8"},
                md={"operator": "A. Scientist", "cdi": {"sample": "gold 9", "energy_keV": 9.1}},
            )
        )
        start = documents[0][1]
        assert start["plan_name"] == "rocking_scan"
        assert start["purpose"] == "rocking_curve"
        assert start["detectors"] == ["det"]
        assert start["motors"] == ["theta"]
        assert start["num_points"] == 61
        assert start["num_intervals"] == 60
        assert start["operator"] == "A. Scientist"
        assert start["hints"]["dimensions"] == [(["theta"], "primary")]
        assert start["plan_args"]["count_time"] == 0.5
        assert start["cdi"] == {
            "detector": "det",
            "rocking_motor": "theta",
            "reflection": (1, 1, 1),
            "sample": "gold 8",
            "lattice_nm": 0.4078,
            "energy_keV": 9.1,
            "planned_deg": [-0.3, 0.3, 61],
        }

    def test_several_detectors(self, RE, documents, theta, det):
        diode = SynGauss("diode", theta, "theta", center=0, Imax=1)
        RE(rocking_scan([diode, det], theta, -0.3, 0.3, 3))
        assert {"diode", "det_image"} <= named(documents, "event")[0]["data"].keys()
        assert documents[0][1]["detectors"] == ["diode", "det"]
        assert "detector" not in documents[0][1]["cdi"]

    def test_downwards(self, RE, documents, theta, det):
        RE(rocking_scan(det, theta, 0.3, -0.3, 4))
        np.testing.assert_allclose(angles(documents), [0.3, 0.1, -0.1, -0.3])

    def test_repeats_go_there_and_back(self, RE, documents, theta, det):
        RE(rocking_scan(det, theta, 0, 2, 3, repeats=3, count_time=[1.0, 2.0, 3.0]))
        np.testing.assert_allclose(angles(documents), [0, 1, 2, 2, 1, 0, 0, 1, 2])
        exposures = [doc["data"]["det_count_time"] for doc in named(documents, "event")]
        assert exposures == [1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0]
        assert documents[0][1]["num_points"] == 9

    def test_one_exposure_is_configuration(self, RE, documents, theta, det):
        RE(rocking_scan(det, theta, 0, 1, 3, count_time=0.25))
        (descriptor,) = named(documents, "descriptor")
        assert descriptor["configuration"]["det"]["data"]["det_count_time"] == 0.25
        assert "det_count_time" not in descriptor["data_keys"]

    def test_varied_exposures_are_read_with_each_point(self, RE, documents, theta, det):
        RE(rocking_scan(det, theta, 0, 1, 3, count_time=[0.1, 0.2, 0.1]))
        (descriptor,) = named(documents, "descriptor")
        assert "det_count_time" in descriptor["data_keys"]
        exposures = [doc["data"]["det_count_time"] for doc in named(documents, "event")]
        assert exposures == [0.1, 0.2, 0.1]

    def test_relative_goes_back(self, RE, documents, theta, det):
        RE(rocking_scan(det, theta, -0.2, 0.2, 3, relative=True))
        np.testing.assert_allclose(angles(documents), [0.3, 0.5, 0.7])
        assert theta.position == 0.5

    def test_relative_goes_back_after_a_failure(self, RE, documents, theta, det):
        with pytest.raises(FailedStatus):
            RE(rocking_scan(det, theta, 0.0, 4.4, 12, relative=True))
        assert theta.position == 0.5
        assert named(documents, "stop")[0]["exit_status"] == "fail"

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((-0.3, 0.3, 2), "num"),
            ((-0.3, 0.3, 7.5), "num"),
            ((0.3, 0.3, 7), "two different angles"),
            ((float("nan"), 0.3, 7), "two different angles"),
            ((0.0, float("inf"), 7), "two different angles"),
            ((0.0, 5.1, 7), "between -5.0 and 5.0 deg, got 5.1"),
            ((-5.1, 0.0, 7), "between -5.0 and 5.0 deg, got -5.1"),
        ],
    )
    def test_bad_angles_move_nothing(self, RE, documents, theta, det, arguments, complaint):
        with pytest.raises(InvalidInput, match=complaint):
            RE(rocking_scan(det, theta, *arguments))
        assert not documents
        assert theta.position == 0.5

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"count_time": 0.0}, "count_time must be positive"),
            ({"count_time": [1.0, float("nan"), 1.0]}, "count_time must be positive"),
            ({"count_time": [1.0, 1.0]}, "one for each of the 3 angles"),
            ({"repeats": 0}, "repeats"),
            ({"relative": True, "stop": 4.6}, "got 5.1"),
        ],
    )
    def test_bad_options_move_nothing(self, RE, documents, theta, det, options, complaint):
        stop = options.pop("stop", 1.0)
        with pytest.raises(InvalidInput, match=complaint):
            RE(rocking_scan(det, theta, 0.0, stop, 3, **options))
        assert not documents
        assert theta.position == 0.5

    def test_detectors_must_be_readable(self, RE, theta):
        with pytest.raises(InvalidInput, match="readable"):
            RE(rocking_scan(["det"], theta, 0, 1, 3))

    def test_an_exposure_needs_a_signal_for_it(self, RE, theta):
        with pytest.raises(InvalidInput, match=r"diode has none"):
            RE(rocking_scan(SynGauss("diode", theta, "theta", 0, 1), theta, 0, 1, 3, count_time=1.0))

    def test_a_motor_without_limits(self, RE, documents, det):
        RE(rocking_scan(det, SynAxis(name="phi"), 0, 1, 3, relative=True))
        assert [doc["data"]["phi"] for doc in named(documents, "event")] == [0.0, 0.5, 1.0]

    def test_an_ophyd_async_motor(self, RE, documents, det):
        with init_devices():
            phi = SimMotor(instant=True)
        RE(rocking_scan(det, phi, -1, 1, 3, relative=True))
        assert [doc["data"]["phi"] for doc in named(documents, "event")] == [-1.0, 0.0, 1.0]

    def test_an_ophyd_async_detector(self, RE, documents, tmp_path):
        paths = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
        with init_devices():
            phi = SimMotor(instant=True)
            blob = SimBlobDetector(paths, PatternGenerator())
        assembler = RockingCurveAssembler()
        RE(rocking_scan(blob, phi, -1, 1, 5), assembler)
        curve = assembler.curve()
        assert [frame.index for frame in curve.frames] == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(curve.angles_deg, np.linspace(-1, 1, 5))

    def test_the_exposure_of_an_area_detector(self, RE, documents, theta):
        """By the name that areaDetector's ophyd devices have for it."""

        class Camera(Device):
            acquire_time = Component(Signal, value=1.0, kind="config")

        class AreaDetector(Device):
            cam = Component(Camera, kind="config")
            total = Component(Signal, value=0.0)

        RE(rocking_scan(AreaDetector(name="eiger"), theta, 0, 1, 3, count_time=[0.1, 0.2, 0.3]))
        exposures = [doc["data"]["eiger_cam_acquire_time"] for doc in named(documents, "event")]
        assert exposures == [0.1, 0.2, 0.3]


class PausesOnce(AngleStamp):
    """Asks for a pause in the middle of the exposure at one angle, or right after its event."""

    def __init__(self, angle_deg):
        self.angle_deg = angle_deg
        self.RE = None

    def frame(self, angle_deg, count_time_s):
        if self.RE is not None and abs(angle_deg - self.angle_deg) < 1e-6:
            RE, self.RE = self.RE, None
            threading.Thread(target=RE.request_pause).start()
            time.sleep(0.02)
        return super().frame(angle_deg, count_time_s)


class TestInterruptions:
    def test_abort_in_the_middle(self, RE, documents, make_detector):
        theta = RockingStage(name="theta", velocity_deg_s=0.5)
        det = make_detector()
        timer = threading.Timer(0.6, RE.request_pause)
        timer.start()
        with pytest.raises(RunEngineInterrupted):
            RE(rocking_scan(det, theta, 0.0, 1.0, 3))
        RE.abort("enough")
        assert not theta.moving
        assert 0.0 < theta.position < 1.0
        (stop,) = named(documents, "stop")
        assert stop["exit_status"] == "abort"
        assert det._staged.value == "no"

    def test_relative_goes_back_after_an_abort(self, RE, theta, make_detector):
        source = PausesOnce(0.5)
        det = make_detector(source=source)
        source.RE = RE
        with pytest.raises(RunEngineInterrupted):
            RE(rocking_scan(det, theta, -0.2, 0.2, 5, relative=True))
        theta.set(0.7).wait(timeout=1)
        RE.abort()
        assert theta.position == 0.5

    @pytest.mark.parametrize("exposure_s", [0.0, 0.3], ids=["after the exposure", "in the exposure"])
    @pytest.mark.parametrize("delivery", DELIVERIES)
    def test_pause_and_resume_measures_every_angle(
        self, RE, documents, theta, make_detector, delivery, exposure_s
    ):
        source = PausesOnce(0.4)
        det = make_detector(source=source, delivery=delivery, count_time_s=0.1, time_scale=exposure_s / 0.1)
        source.RE = RE
        with pytest.raises(RunEngineInterrupted):
            RE(rocking_scan(det, theta, 0.0, 1.0, 6))
        RE.resume()
        for name, doc in documents:
            schema_validators[DocumentNames[name]].validate(doc)
        last = {doc["seq_num"]: doc for doc in named(documents, "event")}
        assert list(last) == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose([doc["data"]["theta"] for doc in last.values()], np.linspace(0, 1, 6))
        np.testing.assert_allclose([doc["data"]["det_max"] for doc in last.values()], np.linspace(0, 1000, 6))
        assert named(documents, "stop")[0]["exit_status"] == "success"

    @pytest.mark.parametrize("delivery", DELIVERIES)
    def test_the_curve_of_a_paused_scan_is_whole(self, RE, theta, make_detector, delivery):
        """What was measured twice because of the pause is counted once."""
        source = PausesOnce(0.4)
        det = make_detector(source=source, delivery=delivery)
        source.RE = RE
        assembler = RockingCurveAssembler()
        with pytest.raises(RunEngineInterrupted):
            RE(rocking_scan(det, theta, 0.0, 1.0, 6), assembler)
        RE.resume()
        curve = load_frames(assembler.curve())
        np.testing.assert_allclose(curve.angles_deg, np.linspace(0, 1, 6))
        np.testing.assert_array_equal(np.squeeze(curve.frames)[:, 0, 0], np.arange(0, 1001, 200))


class FakeLive:
    """Answers a while after the stop document, from another thread, as the real callback does."""

    def __init__(self, outcome=None, delay=0.05):
        self.outcome, self.delay = outcome, delay
        self.documents = []
        self._futures = {}
        self._pool = ThreadPoolExecutor(1)

    def __call__(self, name, doc):
        self.documents.append((name, doc))
        if name == "start":
            self._uid = doc["uid"]
            self._futures[self._uid] = Future()
        if name == "stop" and self.delay is not None:
            self._pool.submit(self._answer, self._uid)

    def _answer(self, raw_uid):
        time.sleep(self.delay)
        if isinstance(self.outcome, Exception):
            self._futures[raw_uid].set_exception(self.outcome)
        else:
            self._futures[raw_uid].set_result(replace(self.outcome, raw_uid=raw_uid))

    def result(self, raw_uid):
        if raw_uid not in self._futures:
            raise NotFound(f"no run {raw_uid} was seen")
        return self._futures[raw_uid]


GOOD = ReconstructionSummary(raw_uid="", processed_uid="p", status="success", chi2=0.004)
BAD = ReconstructionSummary(raw_uid="", processed_uid="p", status="failed", reason="no peak")


class Deaf(FakeLive):
    """Takes no document."""

    def __call__(self, name, doc):
        pass


class TestRockingScanWithRecon:
    def test_returns_the_summary(self, RE, documents, theta, det):
        summary = RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 9, live=FakeLive(GOOD))).plan_result
        assert summary.status == "success"
        assert summary.chi2 == 0.004
        assert summary.raw_uid == documents[0][1]["uid"]
        assert documents[0][1]["plan_name"] == "rocking_scan"

    @pytest.mark.parametrize("subscribed", [False, True])
    def test_the_callback_gets_each_document_once(self, RE, documents, theta, det, subscribed):
        live = FakeLive(GOOD)
        if subscribed:
            RE.subscribe(live)
        for _ in range(2):
            RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 9, live=live))
        assert live.documents == documents

    def test_the_subscription_ends_with_the_plan(self, RE, theta, det):
        live = FakeLive(GOOD)
        RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 9, live=live))
        seen = len(live.documents)
        RE(rocking_scan(det, theta, -0.3, 0.3, 3))
        assert len(live.documents) == seen

    @pytest.mark.parametrize(
        ("live", "reason"),
        [
            (FakeLive(BAD), "no peak"),
            (FakeLive(ReconstructionFailed("out of memory")), "ReconstructionFailed: out of memory"),
            (FakeLive(GOOD, delay=None), "no result within 0.2 s"),
            (Deaf(), "has not taken this run"),
        ],
    )
    @pytest.mark.parametrize("on_failure", ["return", "raise"])
    def test_a_failure_leaves_the_scan_alone(self, RE, documents, theta, det, live, reason, on_failure):
        plan = rocking_scan_with_recon(det, theta, 0, 1, 9, live=live, timeout=0.2, on_failure=on_failure)
        if on_failure == "raise":
            with pytest.raises(ReconstructionFailed, match=reason):
                RE(plan)
        else:
            summary = RE(plan).plan_result
            assert summary.status == "failed"
            assert reason in summary.reason
            assert summary.raw_uid == documents[0][1]["uid"]
        assert named(documents, "stop")[0]["exit_status"] == "success"
        assert len(named(documents, "event")) == 9

    def test_a_result_that_comes_too_late_harms_nothing(self, RE, theta, det, caplog):
        live = FakeLive(GOOD, delay=0.4)
        summary = RE(rocking_scan_with_recon(det, theta, 0, 1, 9, live=live, timeout=0.1)).plan_result
        assert summary.status == "failed"
        assert live.result(summary.raw_uid).result(timeout=2).status == "success"
        assert not [record for record in caplog.records if record.exc_info]

    def test_pauses_and_resumes_while_it_waits(self, RE, theta, det):
        live = FakeLive(GOOD, delay=0.6)
        pause = threading.Timer(0.2, RE.request_pause)
        RE.subscribe(lambda name, doc: pause.start(), "stop")
        with pytest.raises(RunEngineInterrupted):
            RE(rocking_scan_with_recon(det, theta, 0, 1, 9, live=live))
        assert RE.resume().plan_result.status == "success"

    def test_a_failed_scan_is_not_hidden(self, RE, documents, theta, det):
        with pytest.raises(FailedStatus):
            RE(rocking_scan_with_recon(det, theta, 4.0, 4.9, 8, live=FakeLive(GOOD)))
        assert named(documents, "stop")[0]["exit_status"] == "fail"

    @pytest.mark.parametrize(
        ("option", "value"), [("timeout", 0.0), ("on_failure", "cry"), ("num", 1), ("num", 7)]
    )
    def test_bad_arguments_move_nothing(self, RE, documents, theta, det, option, value):
        options = {"num": 9, "live": FakeLive(GOOD), option: value}
        with pytest.raises(InvalidInput, match=option):
            RE(rocking_scan_with_recon(det, theta, 0, 1, **options))
        assert not documents
        assert theta.position == 0.5


class TestQueueserver:
    @pytest.fixture(autouse=True)
    def operations(self):
        self.ops = pytest.importorskip("bluesky_queueserver.manager.profile_ops")

    @pytest.mark.parametrize("plan", [rocking_scan, rocking_scan_with_recon])
    @pytest.mark.parametrize("detectors", ["det", ["det"], ["det", "diode"]])
    def test_takes_the_plans(self, theta, det, plan, detectors):
        devices = {"det": det, "theta": theta, "diode": SynGauss("diode", theta, "theta", 0, 1)}
        described = self.ops._prepare_devices(devices)
        plans = self.ops._prepare_plans({plan.__name__: plan}, existing_devices=described)
        item = {
            "name": plan.__name__,
            "args": [detectors, "theta", -0.3, 0.3, 61],
            "kwargs": {"count_time": [0.5] * 61, "relative": True, "cdi": {"sample": "gold"}},
            "item_type": "plan",
        }
        valid, complaint = self.ops.validate_plan(item, allowed_plans=plans, allowed_devices=described)
        assert valid, complaint
        (parameters,) = [plans[plan.__name__]["parameters"]]
        assert all(parameter["description"] for parameter in parameters)


def test_a_session_never_imports_torch():
    code = (
        "import sys, bluesky_cdinn.plans, bluesky_cdinn.callbacks, bluesky_cdinn.sim.devices;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The simulated stage and detector under a real RunEngine, their frames read back from a real Tiled."""

import subprocess
import sys
import threading
import time

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import FailedStatus
from bluesky_tiled_plugins import TiledWriter
from event_model import DocumentNames, schema_validators
from ophyd.utils import LimitError

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.delivery import DATASET
from bluesky_cdinn.sim.devices import RockingStage, SimulatedAreaDetector

DELIVERIES = ("event", "resource", "stream")
GEOMETRY = Geometry(
    energy_keV=9.0,
    detector_distance_m=0.5,
    pixel_size_um=(55.0, 50.0),
    detector_angles_deg=(32.0, 12.0),
    beam_centre_px=(6.0, 8.0),
    reflection=(1, 1, 1),
)


class AngleStamp:
    """Frames that say at which angle and exposure they were taken, and whose pixels all differ."""

    geometry = GEOMETRY
    shape = (12, 16)
    dtype = np.dtype("int32")

    def frame(self, angle_deg, count_time_s):
        if angle_deg > 4.5:
            raise InvalidInput("the beam is lost up there")
        frame = np.arange(192, dtype=np.int32).reshape(self.shape)
        frame[0, :2] = round(angle_deg * 1000), round(count_time_s * 1000)
        return frame


@pytest.fixture
def theta():
    return RockingStage(name="theta", velocity_deg_s=2.0, settle_time_s=0.0, time_scale=0.0)


@pytest.fixture
def make_detector(theta, tmp_path):
    def make(**options):
        settings = {"source": AngleStamp(), "time_scale": 0.0, "directory": tmp_path / "frames"}
        return SimulatedAreaDetector(name="det", stage=theta, **{**settings, **options})

    return make


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


class TestRockingStage:
    def test_takes_the_time_that_its_speed_and_settling_need(self):
        theta = RockingStage(name="theta", velocity_deg_s=4.0, settle_time_s=0.1, time_scale=0.5)
        began = time.monotonic()
        theta.set(2.0).wait(timeout=5)
        assert 0.3 <= time.monotonic() - began < 0.6
        assert theta.position == 2.0

    def test_reads_on_its_way(self):
        theta = RockingStage(name="theta", velocity_deg_s=1.0, settle_time_s=0.0, time_scale=0.2)
        seen = []
        theta.readback.subscribe(lambda value, **_: seen.append(value))
        theta.set(1.0).wait(timeout=5)
        assert len(seen) > 4
        assert seen == sorted(seen)
        assert theta.read()["theta"]["value"] == theta.read()["theta_setpoint"]["value"] == 1.0

    @pytest.mark.parametrize("target", [-5.001, 5.001, float("nan"), float("inf")])
    def test_refuses_what_is_outside_its_limits(self, theta, target):
        with pytest.raises(LimitError, match=r"between -5\.0 and 5\.0 deg"):
            theta.set(target)
        assert theta.position == 0.0

    @pytest.mark.parametrize("success", [True, False])
    def test_stops_where_it_is(self, success):
        theta = RockingStage(name="theta", velocity_deg_s=1.0)
        status = theta.set(3.0)
        time.sleep(0.1)
        theta.stop(success=success)
        assert not theta.moving
        assert 0.0 < theta.position < 1.0
        assert (status.exception(timeout=1) is None) is success

    def test_moves_again_after_a_stop(self):
        theta = RockingStage(name="theta", velocity_deg_s=50.0, settle_time_s=0.0)
        theta.set(3.0)
        theta.stop()
        theta.set(-1.0).wait(timeout=2)
        time.sleep(0.1)
        assert theta.position == -1.0

    def test_refuses_a_second_move_meanwhile(self):
        theta = RockingStage(name="theta", velocity_deg_s=1.0)
        theta.set(1.0)
        with pytest.raises(RuntimeError, match=r"is moving to 1\.0 deg"):
            theta.set(2.0)
        theta.stop()

    def test_jitters_about_the_setpoint(self):
        theta = RockingStage(name="theta", jitter_deg=1e-3, time_scale=0.0, seed=1)
        errors = []
        for target in np.linspace(-1, 1, 50):
            theta.set(target).wait(timeout=1)
            errors.append(theta.position - target)
        assert 0.7e-3 < np.std(errors) < 1.3e-3
        assert abs(np.mean(errors)) < 0.5e-3

    def test_speed_must_be_positive(self, theta):
        theta.velocity.put(0.0)
        with pytest.raises(InvalidInput, match="velocity must be positive"):
            theta.set(1.0)

    def test_configuration_and_units(self, theta):
        assert theta.read_configuration()["theta_velocity"]["value"] == 2.0
        assert theta.describe()["theta"]["units"] == "deg"
        assert theta.hints == {"fields": ["theta"]}
        assert theta.locate() == {"setpoint": 0.0, "readback": 0.0}


class TestDetector:
    @pytest.mark.parametrize("delivery", DELIVERIES)
    def test_every_document_is_valid(self, RE, documents, theta, make_detector, delivery):
        RE(bp.scan([make_detector(delivery=delivery)], theta, -1, 1, 5))
        for name, doc in documents:
            schema_validators[DocumentNames[name]].validate(doc)
        assert len(named(documents, "event")) == 5
        counts = {name: len(named(documents, name)) for name, _ in documents}
        assert counts.get("resource", 0) == (delivery == "resource")
        assert counts.get("datum", 0) == 5 * (delivery == "resource")
        assert counts.get("stream_resource", 0) == (delivery == "stream")
        assert counts.get("stream_datum", 0) == 5 * (delivery == "stream")

    def test_configuration_carries_the_geometry(self, RE, documents, theta, make_detector):
        RE(bp.scan([make_detector(count_time_s=0.25)], theta, -1, 1, 3))
        configuration = named(documents, "descriptor")[0]["configuration"]["det"]["data"]
        assert configuration == {
            "det_count_time": 0.25,
            "det_energy_keV": 9.0,
            "det_detector_distance_m": 0.5,
            "det_pixel_size_um": [55.0, 50.0],
            "det_detector_angles_deg": [32.0, 12.0],
            "det_beam_centre_px": [6.0, 8.0],
            "det_rocking_axis": [0.0, 1.0, 0.0],
            "det_reflection": [1.0, 1.0, 1.0],
        }

    def test_statistics_are_hinted(self, RE, documents, theta, make_detector):
        det = make_detector()
        RE(bp.scan([det], theta, 0, 2, 3))
        assert set(det.hints["fields"]) == {"det_total", "det_max"}
        for event in named(documents, "event"):
            image = event["data"]["det_image"]
            assert event["data"]["det_total"] == image.sum()
            assert event["data"]["det_max"] == image.max()

    def test_exposure_takes_its_time_without_blocking(self, make_detector):
        det = make_detector(count_time_s=2.0, time_scale=0.1)
        began = time.monotonic()
        status = det.trigger()
        assert time.monotonic() - began < 0.1
        assert not status.done
        status.wait(timeout=2)
        assert time.monotonic() - began >= 0.2

    def test_double_trigger_is_an_error(self, make_detector):
        det = make_detector(time_scale=0.1)
        status = det.trigger()
        with pytest.raises(RuntimeError, match="is exposing"):
            det.trigger()
        status.wait(timeout=2)
        det.trigger().wait(timeout=2)

    def test_stop_ends_an_exposure(self, make_detector):
        det = make_detector(count_time_s=60.0, time_scale=1.0)
        status = det.trigger()
        det.stop()
        assert isinstance(status.exception(timeout=1), RuntimeError)
        det.count_time.put(0.01)
        det.trigger().wait(timeout=1)

    def test_a_failing_source_fails_the_exposure_only(self, RE, theta, make_detector):
        det = make_detector()

        def too_far():
            yield from bps.mv(theta, 4.8)
            yield from bps.trigger(det, wait=True)

        with pytest.raises(FailedStatus) as failure:
            RE(too_far())
        assert "the beam is lost" in str(failure.value.__cause__) + str(failure.value)
        theta.set(0.0).wait(timeout=1)
        det.trigger().wait(timeout=1)

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
    def test_count_time_must_be_positive(self, make_detector, value):
        with pytest.raises(InvalidInput, match="positive number of seconds"):
            make_detector().count_time.put(value)

    @pytest.mark.parametrize("delivery", ["resource", "stream"])
    def test_files_need_a_directory_and_staging(self, make_detector, delivery):
        with pytest.raises(InvalidInput, match="give the directory"):
            make_detector(delivery=delivery, directory=None)
        status = make_detector(delivery=delivery).trigger()
        assert "stage the detector" in str(status.exception(timeout=1))

    def test_unknown_delivery(self, make_detector):
        with pytest.raises(InvalidInput, match="'event', 'resource' or 'stream'"):
            make_detector(delivery="pigeon")


class TestFiles:
    @pytest.mark.parametrize("delivery", ["resource", "stream"])
    def test_another_process_reads_while_the_scan_runs(self, RE, theta, make_detector, tmp_path, delivery):
        det = make_detector(delivery=delivery)
        shapes = []

        def look(name, doc):
            if name == "event":
                (path,) = (tmp_path / "frames").iterdir()
                read = (
                    "import h5py, sys; f = h5py.File(sys.argv[1], swmr=True); "
                    f"d = f['{DATASET}']; print(d.shape[0], d[-1, 0, 0])"
                )
                shapes.append(subprocess.check_output([sys.executable, "-c", read, path], text=True).split())

        RE(bp.scan([det], theta, 1, 2, 3), look)
        assert shapes == [["1", "1000"], ["2", "1500"], ["3", "2000"]]

    @pytest.mark.parametrize("delivery", ["resource", "stream"])
    def test_this_process_reads_at_the_stop_document(self, RE, theta, make_detector, tmp_path, delivery):
        """The detector isn't unstaged yet then, its file still open for writing."""
        det = make_detector(delivery=delivery)
        frames = []

        def look(name, doc):
            if name == "stop":
                (path,) = (tmp_path / "frames").iterdir()
                with h5py.File(path, "r", swmr=True) as file:
                    frames.append(file[DATASET][:])

        RE(bp.scan([det], theta, 0, 2, 3), look)
        assert frames[0][:, 0, 0].tolist() == [0, 1000, 2000]

    @pytest.mark.parametrize("delivery", ["resource", "stream"])
    def test_each_staging_has_its_own_file(self, RE, documents, theta, make_detector, tmp_path, delivery):
        det = make_detector(delivery=delivery)
        RE(bp.scan([det], theta, 0, 1, 3))
        RE(bp.scan([det], theta, 0, 1, 3))
        assert len(list((tmp_path / "frames").iterdir())) == 2

    def test_a_frame_that_no_event_refers_to_is_overwritten(self, RE, theta, make_detector, tmp_path):
        det = make_detector(delivery="stream")

        @bpp.stage_decorator([det])
        @bpp.run_decorator()
        def retake():
            for angle in (0.0, 1.0):
                yield from bps.mv(theta, angle + 0.5)
                yield from bps.trigger(det, wait=True)
                yield from bps.mv(theta, angle)
                yield from bps.trigger_and_read([det, theta])

        RE(retake())
        (path,) = (tmp_path / "frames").iterdir()
        with h5py.File(path) as file:
            assert file[DATASET][:, 0, 0].tolist() == [0, 1000]


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_tiled_gives_the_frames_back(RE, theta, make_detector, catalog, delivery):
    det = make_detector(delivery=delivery)
    RE.subscribe(TiledWriter(catalog.raw))
    (uid,) = RE(bp.scan([det], theta, -2, 2, 5)).run_start_uids
    stored = catalog.raw[uid]["primary"]
    image = stored["det_image"].read().squeeze()
    assert image.shape == (5, 12, 16)
    assert image.dtype == np.int32
    assert image[:, 0, 0].tolist() == [-2000, -1000, 0, 1000, 2000]
    expected = np.arange(192).reshape(12, 16)
    expected[0, :2] = 2000, 1000
    np.testing.assert_array_equal(image[-1], expected)
    np.testing.assert_allclose(np.asarray(stored["theta"].read()), np.linspace(-2, 2, 5))


def test_nothing_of_this_imports_torch():
    code = (
        "import sys, bluesky_cdinn.sim.devices, bluesky_cdinn.sim.replay; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_thread_is_left(theta, make_detector):
    theta.set(1.0).wait(timeout=1)
    make_detector().trigger().wait(timeout=1)
    time.sleep(0.1)
    assert not [t.name for t in threading.enumerate() if t.name in ("theta-move", "det-exposure")]

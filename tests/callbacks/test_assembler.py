"""From documents to a rocking curve, with real RunEngines and with documents made by event-model."""

import contextlib
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import event_model
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ophyd.sim import SynAxis, SynGauss, SynSignal

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler, is_rocking_curve
from bluesky_cdinn.callbacks._assets import stream_frames, uri_path
from bluesky_cdinn.callbacks._router import MAX_OPEN_RUNS, RunRouter
from bluesky_cdinn.errors import CdinnError, IncompleteScan, InvalidInput
from bluesky_cdinn.records import FrameReference

SHAPE = (4, 5)

GEOMETRY = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": 55.0,
    "detector_angles_deg": (32.2, 12.6),
    "beam_centre_px": (126.0, 127.0),
}


class Frames:
    """Gives a frame that holds its own number, however often it is asked."""

    def __init__(self, shape=SHAPE):
        self.shape, self.taken = shape, 0

    def __call__(self):
        self.taken += 1
        return np.full(self.shape, self.taken, dtype=np.uint16)


@pytest.fixture
def motor():
    return SynAxis(name="theta")


@pytest.fixture
def detector():
    return SynSignal(name="det", func=Frames())


@pytest.fixture
def engine():
    return RunEngine({})


def numbers(curve):
    return [int(frame.flat[0]) for frame in curve.frames]


def assembled(docs, **kwargs):
    assembler = RockingCurveAssembler(**kwargs)
    for name, doc in docs:
        assembler(name, doc)
    assert assembler.done
    return assembler.curve()


class Run:
    """Documents of one run, composed by event-model."""

    def __init__(self, data_keys=None, configuration=None, hints=None, object_keys=None, **start):
        start = {"motors": ["theta"], **start}
        self.docs = []
        self.bundle = event_model.compose_run(metadata=start, validate=False)
        self._add("start", self.bundle.start_doc)
        data_keys = data_keys or {
            "det_image": {"source": "x", "dtype": "array", "shape": list(SHAPE)},
            "theta": {"source": "x", "dtype": "number", "shape": []},
            "theta_setpoint": {"source": "x", "dtype": "number", "shape": []},
        }
        self.primary = self.bundle.compose_descriptor(
            name="primary",
            data_keys=data_keys,
            object_keys=object_keys or {"det": ["det_image"], "theta": ["theta", "theta_setpoint"]},
            hints=hints or {},
            configuration=configuration or {},
            validate=False,
        )
        self._add("descriptor", self.primary.descriptor_doc)

    def _add(self, name, doc):
        self.docs.append((name, doc))

    def event(self, theta, frame=None, **more):
        data = {"theta": theta, "theta_setpoint": -theta, **more}
        if frame is not None:
            data["det_image"] = frame
        doc = self.primary.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
        self._add("event", doc)
        return doc

    def stop(self, exit_status="success"):
        self._add("stop", self.bundle.compose_stop(exit_status=exit_status, validate=False))
        return self.docs


def simple_run(n=5, **kwargs):
    run = Run(**kwargs)
    for i in range(n):
        run.event(0.1 * i, np.full(SHAPE, i))
    return run


# --- A real RunEngine -------------------------------------------------------------------------------------


def test_a_scan_gives_the_readback_and_the_frames(engine, motor, detector):
    motor = SynAxis(name="theta", readback_func=lambda x: x + 0.001)
    assembler = RockingCurveAssembler()
    engine.subscribe(assembler)
    engine(bp.scan([detector], motor, -1, 1, 5, md={"purpose": "rocking_curve", "sample": "gold"}))

    curve = assembler.curve()

    np.testing.assert_allclose(curve.angles_deg, np.linspace(-1, 1, 5) + 0.001)
    assert curve.frames.shape == (5, *SHAPE)
    assert curve.frames.dtype == np.uint16
    assert curve.exit_status == "success"
    assert curve.expected_points == 5
    assert curve.metadata["sample"] == "gold"
    assert curve.scan_id == 1
    assert curve.geometry is None
    assert "energy_keV" in curve.missing


def test_points_measured_again_after_a_pause_replace_the_first(engine, motor, detector):
    assembler, docs = RockingCurveAssembler(), []
    engine.subscribe(assembler)
    engine.subscribe(lambda name, doc: docs.append((name, doc)))
    paused = []

    @bpp.run_decorator(md={"motors": ["theta"]})
    def plan():
        for angle in range(5):
            yield from bps.checkpoint()
            yield from bps.mv(motor, angle)
            yield from bps.trigger_and_read([detector, motor])
            if angle == 2 and not paused:
                paused.append(angle)
                yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        engine(plan())
    engine.resume()

    events = [doc for name, doc in docs if name == "event"]
    assert [event["seq_num"] for event in events] == [1, 2, 3, 3, 4, 5]
    curve = assembler.curve()
    np.testing.assert_array_equal(curve.angles_deg, [0, 1, 2, 3, 4])
    third = [event["data"]["det"].flat[0] for event in events if event["seq_num"] == 3]
    assert numbers(curve)[2] == third[1] != third[0]


@pytest.mark.parametrize(("end", "status"), [("abort", "abort"), ("fail", "fail")])
def test_a_scan_that_ends_early_still_gives_its_points(engine, motor, detector, end, status):
    assembler = RockingCurveAssembler()
    engine.subscribe(assembler)

    def plan():
        yield from bps.open_run({"motors": ["theta"], "num_points": 11})
        for angle in range(4):
            yield from bps.checkpoint()
            yield from bps.mv(motor, angle)
            yield from bps.trigger_and_read([detector, motor])
        if end == "fail":
            raise RuntimeError("the stage stalled")
        yield from bps.pause()

    with pytest.raises((RunEngineInterrupted, RuntimeError)):
        engine(plan())
    if end == "abort":
        engine.abort()

    curve = assembler.curve()
    assert curve.exit_status == status
    assert len(curve.frames) == 4
    assert curve.expected_points == 11


def test_nested_and_interleaved_runs_are_kept_apart(engine, motor, detector):
    other = SynGauss("point", motor, "theta", center=0, Imax=1)
    assemblers = {}

    def factory(start):
        if not is_rocking_curve(start):
            return None
        return assemblers.setdefault(start["name"], RockingCurveAssembler())

    router = RunRouter(factory)
    engine.subscribe(router)

    def rocking(name, key):
        @bpp.set_run_key_decorator(key)
        @bpp.run_decorator(md={"name": name, "purpose": "rocking_curve", "motors": ["theta"]})
        def inner():
            for angle in range(4):
                yield from bps.mv(motor, angle)
                yield from bps.trigger_and_read([detector, motor])
                if name == "outer":
                    yield from bpp.set_run_key_wrapper(bp.count([other]), f"alignment{angle}")
                    if angle == 1:
                        yield from rocking("inner", "b")

        return (yield from inner())

    engine(rocking("outer", "a"))

    assert numbers(assemblers["outer"].curve()) == [2, 3, 8, 9]
    assert numbers(assemblers["inner"].curve()) == [4, 5, 6, 7]
    assert router.open_runs == ()


def test_a_baseline_gives_metadata_and_no_points(engine, motor, detector):
    energy = SynAxis(name="mono_energy", value=9.0)
    arm = SynAxis(name="arm_detector_distance_m", value=0.5)
    assembler = RockingCurveAssembler()
    engine.subscribe(assembler)
    cdi = {**GEOMETRY, "energy_keV": "mono_energy"}
    del cdi["detector_distance_m"]
    engine(
        bpp.baseline_wrapper(
            bp.scan([detector], motor, 0, 1, 4, md={"purpose": "rocking_curve", "cdi": cdi}), [energy, arm]
        )
    )
    curve = assembler.curve()
    assert len(curve.frames) == 4
    assert curve.geometry.energy_keV == 9.0
    assert curve.geometry.detector_distance_m == 0.5
    assert curve.missing == ("count_time",)


# --- Which runs, which keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        ({"purpose": "rocking_curve"}, True),
        ({"purpose": "reconstruction", "cdi": {}}, False),
        ({"cdi": {"sample": "gold"}}, True),
        ({"cdi": {"rocking_motor": "theta"}, "motors": ["theta"]}, True),
        ({"cdi": {"rocking_motor": "theta"}, "motors": ["x"]}, False),
        ({"cdi": "nonsense"}, False),
        ({"plan_name": "count"}, False),
    ],
)
def test_which_runs_are_rocking_curves(start, wanted):
    assert is_rocking_curve(start) is wanted


TWO_DETECTORS = {
    "det_image": {"source": "x", "dtype": "array", "shape": [1, *SHAPE]},
    "cam_image": {"source": "x", "dtype": "array", "shape": [9, 9]},
    "theta": {"source": "x", "dtype": "number", "shape": []},
    "spectrum": {"source": "x", "dtype": "array", "shape": [100]},
}


@pytest.mark.parametrize("name", ["det", "det_image"])
def test_the_detector_is_chosen_by_device_or_key(name):
    run = Run(TWO_DETECTORS, object_keys={"det": ["det_image"]}, cdi={"detector": name})
    for i in range(3):
        run.event(i, np.full((1, *SHAPE), i), cam_image=np.zeros((9, 9)))
    assert assembled(run.stop()).frames.shape == (3, *SHAPE)


@pytest.mark.parametrize("cdi", [{}, {"detector": "nobody"}])
def test_an_ambiguous_or_absent_detector_is_named(cdi):
    run = Run(TWO_DETECTORS, object_keys={"det": ["det_image"]}, cdi=cdi)
    for i in range(3):
        run.event(i, np.zeros((1, *SHAPE)), cam_image=np.zeros((9, 9)))
    with pytest.raises(InvalidInput, match=r"'cam_image', 'det_image'.*cdi.detector"):
        assembled(run.stop())


def test_the_readback_is_taken_and_not_the_setpoint():
    keys = {
        "det_image": {"source": "x", "dtype": "array", "shape": list(SHAPE)},
        "theta_readback": {"source": "x", "dtype": "number", "shape": [], "units": "mrad"},
        "theta_setpoint": {"source": "x", "dtype": "number", "shape": []},
    }
    run = Run(keys, object_keys={"theta": list(keys)[1:]})
    for i in range(3):
        run.event(0.0, np.zeros(SHAPE), theta_readback=float(i))
    np.testing.assert_allclose(assembled(run.stop()).angles_deg, np.degrees([0, 1e-3, 2e-3]))


@pytest.mark.parametrize(
    ("unit", "deg"),
    [
        ("degrees", 1.0),
        ("\N{DEGREE SIGN}", 1.0),
        ("Radian", np.degrees(1)),
        ("milliradians", np.degrees(1e-3)),
        ("\N{MICRO SIGN}rad", np.degrees(1e-6)),
        ("arcsec", 1 / 3600),
        ("mils", 1.0),
    ],
)
def test_angles_come_in_many_units_and_unknown_ones_are_told(unit, deg, caplog):
    keys = {
        "det_image": {"source": "x", "dtype": "array", "shape": list(SHAPE)},
        "theta": {"source": "x", "dtype": "number", "shape": [], "units": unit},
    }
    run = Run(keys)
    for i in range(3):
        run.event(float(i), np.zeros(SHAPE))
    np.testing.assert_allclose(assembled(run.stop()).angles_deg, np.multiply([0, 1, 2], deg))
    assert ("'mils' of theta is not known" in caplog.text) == (unit == "mils")


def test_two_motors_need_a_name():
    run = simple_run(motors=["theta", "theta_setpoint"])
    with pytest.raises(InvalidInput, match=r"cdi\.rocking_motor"):
        assembled(run.stop())
    run = simple_run(motors=["theta", "theta_setpoint"], cdi={"rocking_motor": "theta_setpoint"})
    np.testing.assert_allclose(assembled(run.stop()).angles_deg, [0, -0.1, -0.2, -0.3, -0.4])


def test_geometry_exposure_and_monitor_come_from_devices_start_and_settings():
    keys = {
        "det_image": {"source": "x", "dtype": "array", "shape": list(SHAPE)},
        "theta": {"source": "x", "dtype": "number", "shape": []},
        "i0": {"source": "x", "dtype": "number", "shape": []},
    }
    configured = {"det_cam_acquire_time": 250.0, "det_energy_keV": 8.0, "det_pixel_size_um": [55.0, 55.0]}
    described = {"det_cam_acquire_time": {"source": "x", "dtype": "number", "shape": [], "units": "ms"}}
    run = Run(
        keys,
        object_keys={"det": ["det_image"]},
        configuration={"det": {"data": configured, "timestamps": {}, "data_keys": described}},
        cdi={"energy_keV": 9.0, "monitor": "i0", "beam_centre_px": (2, 2), "detector_angles_deg": (30, 0)},
    )
    for i in range(3):
        run.event(i, np.zeros(SHAPE), i0=100.0 + i)
    curve = assembled(run.stop(), defaults={"detector_distance_m": 1.5, "energy_keV": 7.0, "sample": "gold"})
    assert curve.geometry.energy_keV == 9.0
    assert curve.geometry.pixel_size_um == (55.0, 55.0)
    assert curve.geometry.detector_distance_m == 1.5
    np.testing.assert_allclose(curve.count_time_s, 0.25)
    np.testing.assert_allclose(curve.monitor, [100, 101, 102])
    assert curve.metadata["cdi"]["sample"] == "gold"
    assert curve.missing == ()


def test_a_geometry_in_the_wrong_unit_costs_the_geometry_only():
    curve = assembled(simple_run(cdi={**GEOMETRY, "energy_keV": 9000.0}).stop())
    assert curve.geometry is None
    assert "energy_keV" in curve.missing[0]


def test_the_exposure_of_each_event_is_taken():
    curve = assembled(_run_with_count_times([0.1, 0.2, 0.4]))
    np.testing.assert_allclose(curve.count_time_s, [0.1, 0.2, 0.4])


def _run_with_count_times(times):
    keys = {
        "det_image": {"source": "x", "dtype": "array", "shape": list(SHAPE)},
        "det_count_time": {"source": "x", "dtype": "number", "shape": [], "units": "s"},
        "theta": {"source": "x", "dtype": "number", "shape": []},
    }
    run = Run(keys, object_keys={"det": ["det_image", "det_count_time"]})
    for i, seconds in enumerate(times):
        run.event(i, np.zeros(SHAPE), det_count_time=seconds)
    return run.stop()


# --- Frames in events -------------------------------------------------------------------------------------


def test_frames_are_kept_by_reference():
    run, frames = Run(), [np.zeros(SHAPE) for _ in range(3)]
    for i, frame in enumerate(frames):
        run.event(i, frame)
    assembler = RockingCurveAssembler()
    for name, doc in run.docs:
        assembler(name, doc)
    frames[1][:] = 7
    assert assembler.curve().frames[1].min() == 7


def test_several_frames_of_one_event_are_summed():
    run = Run()
    for i in range(3):
        run.event(i, np.full((4, *SHAPE), 60_000, dtype=np.uint16))
    assert (assembled(run.stop()).frames == 240_000).all()


def test_flat_and_listed_frames_get_their_described_shape():
    run = Run()
    run.event(0.0, np.arange(20))
    run.event(1.0, np.arange(20).reshape(SHAPE).tolist())
    run.event(2.0, np.arange(20).reshape(1, *SHAPE))
    frames = assembled(run.stop()).frames
    assert (frames == np.arange(20).reshape(SHAPE)).all()


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 3)), np.zeros(SHAPE, dtype=complex), np.zeros(7), np.zeros((0, 5))]
)
def test_frames_that_cannot_be_stacked_are_refused(bad):
    run = simple_run()
    run.event(9.0, bad)
    with pytest.raises(InvalidInput, match="frame"):
        assembled(run.stop())


def test_points_without_a_frame_or_an_angle_are_left_out():
    run = simple_run(4)
    run.event(1.0)
    run.event(float("nan"), np.zeros(SHAPE))
    assert len(assembled(run.stop()).frames) == 4


@pytest.mark.parametrize("n", [0, 2])
def test_too_few_points_are_an_incomplete_scan(n):
    with pytest.raises(IncompleteScan, match="3 or more"):
        assembled(simple_run(n).stop())


def test_points_are_ordered_by_number_and_a_partial_curve_can_be_had():
    run = simple_run(4)
    start, descriptor, *events = run.docs
    assembler = RockingCurveAssembler()
    for name, doc in [start, descriptor, *reversed(events)]:
        assembler(name, doc)
    curve = assembler.curve()
    assert not assembler.done
    assert curve.exit_status == "unfinished"
    np.testing.assert_allclose(curve.angles_deg, [0, 0.1, 0.2, 0.3])


def test_event_pages_are_understood():
    start, descriptor, *events = simple_run(4).docs
    page = event_model.pack_event_page(*(doc for _, doc in events))
    assembler = RockingCurveAssembler()
    for name, doc in [start, descriptor, ("event_page", page)]:
        assembler(name, doc)
    assert numbers(assembler.curve()) == [0, 1, 2, 3]


# --- Frames in files --------------------------------------------------------------------------------------


def with_datums(run, n, spec="AD_HDF5", order="before", pages=False, **kwargs):
    resource = run.bundle.compose_resource(
        spec=spec, root="/data", resource_path="scan/a.h5", resource_kwargs=kwargs, validate=False
    )
    run._add("resource", resource.resource_doc)
    datums = [resource.compose_datum(datum_kwargs={"point_number": i}, validate=False) for i in range(n)]
    if pages:
        run._add("datum_page", event_model.pack_datum_page(*datums))
    for i, datum in enumerate(datums):
        if order == "before" and not pages:
            run._add("datum", datum)
        run.event(0.1 * i, datum["datum_id"])
        if order == "after":
            run._add("datum", datum)
    return run.stop()


@pytest.mark.parametrize("options", [{}, {"order": "after"}, {"pages": True}])
@pytest.mark.parametrize("spec", ["AD_HDF5", "AD_HDF5_SWMR", "AD_HDF5_SWMR_STREAM", "HDF5"])
def test_datums_become_references(spec, options):
    curve = assembled(with_datums(Run(), 4, spec, **options))
    assert curve.frames == tuple(
        FrameReference(Path("/data/scan/a.h5"), "/entry/data/data", i) for i in range(4)
    )


def test_several_frames_a_datum_give_as_many_entries():
    curve = assembled(with_datums(Run(num_points=3), 3, frame_per_point=2, dataset="/frames"))
    assert [reference.index for reference in curve.frames] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(curve.angles_deg, [0, 0, 0.1, 0.1, 0.2, 0.2])
    assert curve.frames[0].dataset == "/frames"
    assert curve.expected_points == 6


def test_a_file_for_each_frame():
    docs = with_datums(Run(), 3, "AD_HDF5_SINGLE", template="%s%s_%6.6d.h5", filename="au", frame_per_point=1)
    assert assembled(docs).frames[2] == FrameReference(
        Path("/data/scan/a.h5/au_000002.h5"), "/entry/data/data", 0
    )


def test_an_unknown_spec_is_refused_and_can_be_added():
    docs = with_datums(Run(), 3, "HOME_MADE")
    with pytest.raises(InvalidInput, match="HOME_MADE"):
        assembled(docs)

    def reader(resource, datum):
        return (FrameReference(Path("/x.h5"), resource["spec"], datum["datum_kwargs"]["point_number"]),)

    assert assembled(docs, readers={"HOME_MADE": reader}).frames[1].index == 1


def streaming(shape=SHAPE, parameters=None):
    keys = {
        "det_image": {"source": "x", "dtype": "array", "shape": list(shape), "external": "STREAM:"},
        "theta": {"source": "x", "dtype": "number", "shape": []},
    }
    run = Run(keys)
    resource = {
        "uid": "r",
        "run_start": run.bundle.start_doc["uid"],
        "data_key": "det_image",
        "mimetype": "application/x-hdf5",
        "uri": "file://localhost/data/scan%201.h5",
        "parameters": {"dataset": "/entry/data/data", **(parameters or {})},
    }
    run._add("stream_resource", resource)
    return run


def stream_datum(run, indices, seq_nums):
    doc = {
        "uid": f"r/{indices[0]}",
        "stream_resource": "r",
        "descriptor": run.primary.descriptor_doc["uid"],
        "indices": dict(zip(("start", "stop"), indices, strict=True)),
        "seq_nums": dict(zip(("start", "stop"), seq_nums, strict=True)),
    }
    run._add("stream_datum", doc)


def test_stream_datums_become_references_early_or_late():
    run = streaming()
    stream_datum(run, (0, 2), (1, 3))
    for i in range(4):
        run.event(0.1 * i)
    stream_datum(run, (2, 4), (3, 5))
    assert assembled(run.stop()).frames == tuple(
        FrameReference(Path("/data/scan 1.h5"), "/entry/data/data", i) for i in range(4)
    )


def test_a_rewound_stream_datum_points_to_the_later_frame():
    run = streaming()
    for i in range(3):
        run.event(0.1 * i)
    stream_datum(run, (0, 3), (1, 4))
    stream_datum(run, (3, 4), (3, 4))
    assert [reference.index for reference in assembled(run.stop()).frames] == [0, 1, 3]


@pytest.mark.parametrize(
    ("shape", "parameters", "indices", "rows"),
    [
        (SHAPE, {}, (0, 6), [0, 1, 2, 3, 4, 5]),
        ((2, *SHAPE), {}, (0, 3), [0, 1, 2, 3, 4, 5]),
        ((1, *SHAPE), {"multiplier": 2}, (0, 3), [0, 1, 2, 3, 4, 5]),
        ((2, *SHAPE), {"join_method": "stack"}, (0, 3), [0, 1, 2]),
        ((1, *SHAPE), {}, (5, 8), [5, 6, 7]),
        ((2, *SHAPE), {}, (5, 8), [10, 11, 12, 13, 14, 15]),
    ],
)
def test_several_frames_an_event_in_a_stream(shape, parameters, indices, rows):
    run = streaming(shape, parameters)
    for i in range(3):
        run.event(0.1 * i)
    stream_datum(run, indices, (1, 4))
    curve = assembled(run.stop())
    assert [reference.index for reference in curve.frames] == rows
    np.testing.assert_allclose(curve.angles_deg, np.repeat([0, 0.1, 0.2], len(rows) // 3))


def test_frames_that_never_came_leave_their_points_out():
    run = streaming()
    for i in range(5):
        run.event(0.1 * i)
    stream_datum(run, (0, 3), (1, 4))
    assert len(assembled(run.stop("abort")).frames) == 3


@pytest.mark.parametrize(
    ("resource", "match"),
    [({"mimetype": "image/tiff"}, "HDF5"), ({"uri": "s3://bucket/a.h5"}, "path of this machine")],
)
def test_streams_that_cannot_be_read_are_refused(resource, match):
    run = streaming()
    run.docs[-1][1].update(resource)
    for i in range(3):
        run.event(i)
    stream_datum(run, (0, 3), (1, 4))
    with pytest.raises(InvalidInput, match=match):
        assembled(run.stop())


@pytest.mark.parametrize("indices", [(0, 5), (-2, 2), (3, 3), (0, 10**12)])
def test_a_stream_datum_must_divide_among_its_events(indices):
    datum = {
        "indices": dict(zip(("start", "stop"), indices, strict=True)),
        "seq_nums": {"start": 1, "stop": 3},
    }
    with pytest.raises(InvalidInput, match="a whole number of indices for each event"):
        stream_frames({"uri": "file:///a.h5", "parameters": {}}, datum, SHAPE)


@pytest.mark.parametrize("uri", ["file://localhost/a/b.h5", "file:///a/b.h5", "/a/b.h5"])
def test_file_uris(uri):
    assert uri_path(uri) == Path("/a/b.h5")


def test_a_real_ophyd_async_detector_is_understood(engine, tmp_path):
    from ophyd_async.core import StaticFilenameProvider, StaticPathProvider, init_devices
    from ophyd_async.sim import PatternGenerator, SimBlobDetector, SimStage

    provider = StaticPathProvider(StaticFilenameProvider("blob"), tmp_path)
    with init_devices():
        stage = SimStage(PatternGenerator())
        blob = SimBlobDetector(provider, PatternGenerator())
    assembler = RockingCurveAssembler({"detector": "blob"})
    engine.subscribe(assembler)
    engine(bp.scan([blob], stage.x, 0, 0.01, 4, md={"purpose": "rocking_curve"}))
    curve = assembler.curve()
    assert len(curve.frames) == 4
    with h5py.File(curve.frames[3].path, swmr=True) as file:
        assert file[curve.frames[3].dataset].shape[0] == 4


@pytest.mark.parametrize("delivery", ["event", "resource", "stream"])
def test_frames_measured_again_after_a_pause_are_the_ones_that_are_read(engine, tmp_path, delivery):
    from bluesky_cdinn.sim.devices import simulated_beamline
    from bluesky_cdinn.volume import load_frames

    det, theta = simulated_beamline(time_scale=0.0, delivery=delivery, directory=tmp_path)
    assembler, totals, paused = RockingCurveAssembler(), {}, []

    @bpp.stage_decorator([det])
    @bpp.run_decorator(md={"motors": ["theta"], "purpose": "rocking_curve"})
    def plan():
        for n in range(5):
            yield from bps.checkpoint()
            yield from bps.mv(theta, 0.01 * n)
            reading = yield from bps.trigger_and_read([det, theta])
            totals[n] = reading["det_total"]["value"]
            if n == 2 and not paused:
                paused.append(totals[n])
                yield from bps.pause()

    engine.subscribe(assembler)
    with pytest.raises(RunEngineInterrupted):
        engine(plan())
    engine.resume()

    curve = load_frames(assembler.curve())
    sums = curve.frames.sum(axis=(1, 2), dtype=float)
    assert len(sums) == 5
    np.testing.assert_array_equal(sums[[0, 1, 3, 4]], [totals[n] for n in (0, 1, 3, 4)])
    # The photons of the second try: the plan itself only saw the first.
    assert sums[2] != paused[0]
    assert sums[2] == pytest.approx(paused[0], rel=0.01)


# --- Nonsense ---------------------------------------------------------------------------------------------

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([*(name.name for name in event_model.DocumentNames), "other", 5])


def whole_documents():
    run = streaming((2, *SHAPE))
    for i in range(4):
        run.event(0.1 * i)
    stream_datum(run, (0, 4), (1, 5))
    return [*run.stop(), *with_datums(Run(cdi=GEOMETRY), 3)]


DOCUMENTS = whole_documents()


@st.composite
def spoilt_documents(draw):
    """Real documents in any order, some of them missing, some with fields taken out or replaced."""
    docs = [
        (name, dict(doc)) for name, doc in draw(st.lists(st.sampled_from(DOCUMENTS), min_size=1, max_size=20))
    ]
    docs = draw(st.sampled_from([docs, [(name, dict(doc)) for name, doc in DOCUMENTS]]))
    for _ in range(draw(st.integers(0, 4))):
        _, doc = draw(st.sampled_from(docs))
        path = doc
        while path:
            key = draw(st.sampled_from(sorted(path)))
            if isinstance(path[key], dict) and path[key] and draw(st.booleans()):
                path[key] = path = dict(path[key])
                continue
            if draw(st.booleans()):
                del path[key]
            else:
                path[key] = draw(json_like)
            break
    return docs


@given(st.one_of(spoilt_documents(), st.lists(st.tuples(names, json_like), max_size=8)))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_only_errors_of_ours_come_out_whatever_comes_in(docs):
    assemblers = []

    def factory(start):
        assemblers.append(RockingCurveAssembler(start.get("cdi") if is_rocking_curve(start) else None))
        return assemblers[-1]

    router, alone = RunRouter(factory), RockingCurveAssembler()
    for name, doc in docs:
        for take in (router, alone):
            with contextlib.suppress(CdinnError):
                take(name, doc)
    for assembler in [*assemblers, alone]:
        with contextlib.suppress(CdinnError):
            assert len(assembler.curve().frames) >= 3


def test_a_run_that_never_stops_is_given_up():
    router = RunRouter(lambda start: lambda name, doc: None)
    for i in range(MAX_OPEN_RUNS + 3):
        router("start", {"uid": str(i)})
    assert len(router.open_runs) == MAX_OPEN_RUNS
    assert router.open_runs[0] == "3"


def test_a_run_is_closed_when_its_callback_fails_at_the_stop():
    def callback(name, doc):
        if name == "stop":
            raise InvalidInput("bad stop")

    router = RunRouter(lambda start: callback)
    router("start", {"uid": "a"})
    with pytest.raises(InvalidInput):
        router("stop", {"run_start": "a"})
    assert router.open_runs == ()

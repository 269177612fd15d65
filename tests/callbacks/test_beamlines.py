"""A beamline by name, its circles among the devices: through the RunEngine to a geometry."""

import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky import RunEngine
from ophyd.sim import SynAxis, SynSignal

from bluesky_cdinn.callbacks import RockingCurveAssembler
from bluesky_cdinn.callbacks._circles import angles_read, circle_readings
from bluesky_cdinn.callbacks._keys import Stream, geometry_readings
from bluesky_cdinn.geometry import geometry_from
from bluesky_cdinn.goniometer import load_beamline
from bluesky_cdinn.plans import rocking_scan

SAID = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": 55.0,
    "beam_centre_px": (2.0, 2.5),
}
STOOD = {"mu": 0.2, "om": 12.0, "chi": 91.0, "gamma": 5.0, "delta": 31.0}


@pytest.fixture
def detector():
    return SynSignal(name="det", func=lambda: np.full((4, 5), 7, dtype=np.uint16))


def curve_of(plan, defaults=None):
    assembler = RockingCurveAssembler(defaults)
    RunEngine({})(plan, assembler)
    return assembler.curve()


def axis(name, position):
    motor = SynAxis(name=name)
    motor.set(position).wait()
    return motor


def expected(**more):
    geometry, missing = geometry_from({**SAID, "beamline": "p10", "circles_deg": STOOD, **more})
    assert missing == ()
    return geometry


def test_circles_are_read_from_the_baseline_whatever_carries_their_names(detector):
    others = [axis(f"diffractometer_{name}", angle) for name, angle in STOOD.items() if name != "om"]
    motor = axis("samth", 12.0)
    plan = bpp.baseline_wrapper(rocking_scan(detector, motor, 11.9, 12.1, 5, cdi=SAID), others)
    curve = curve_of(plan, {"beamline": "p10"})
    assert curve.missing == ("count_time",)
    assert curve.geometry == expected(rocking_motor="om")
    assert curve.metadata["cdi"]["circles_deg"]["chi"] == 91.0
    assert curve.metadata["cdi"]["rocking_circle"] == "om"


def test_an_inner_circle_is_turned_by_those_that_are_read_with_each_point(detector):
    others = [axis(name, angle) for name, angle in STOOD.items()]
    phi = axis("phi", 0.0)
    cdi = {**SAID, "beamline": "p10"}
    plan = rocking_scan([detector, *others], phi, -0.1, 0.1, 5, cdi={**cdi, "detector": "det"})
    curve = curve_of(plan)
    assert curve.geometry == expected(rocking_motor="phi")
    assert curve.geometry.rocking_axis != expected(rocking_motor="om").rocking_axis


def test_what_nobody_says_is_named(detector):
    curve = curve_of(rocking_scan(detector, axis("om", 0), -0.1, 0.1, 5, cdi={**SAID, "beamline": "p10"}))
    assert curve.geometry is None
    assert curve.missing[:2] == ("circles_deg.gamma", "circles_deg.delta")


def test_the_start_document_says_angles_or_whose_they_are(detector):
    tth = axis("robot", 31.0)
    cdi = {**SAID, "beamline": "p10", "circles_deg": {"gamma": 5.0, "delta": "robot", "mu": 0.2}}
    plan = bpp.baseline_wrapper(rocking_scan(detector, axis("om", 12.0), 11.9, 12.1, 5, cdi=cdi), [tth])
    curve = curve_of(plan)
    assert curve.geometry == expected(rocking_motor="om")


def test_a_circle_s_motor_may_be_read_with_each_point_and_in_radians(detector):
    robot = InRadians(name="robot")
    robot.set(np.radians(31.0)).wait()
    cdi = {**SAID, "beamline": "p10", "detector": "det", "circles_deg": {"gamma": 5.0, "delta": "robot"}}
    cdi["circles_deg"]["mu"] = 0.2
    for plan in (
        rocking_scan([detector, robot], axis("om", 12.0), 11.9, 12.1, 5, cdi=cdi),
        bpp.baseline_wrapper(rocking_scan(detector, axis("om", 12.0), 11.9, 12.1, 5, cdi=cdi), [robot]),
    ):
        geometry = curve_of(plan).geometry
        assert geometry.detector_angles_deg == pytest.approx(expected(rocking_motor="om").detector_angles_deg)


class InRadians(SynAxis):
    def describe(self):
        return {key: {**described, "units": "radians"} for key, described in super().describe().items()}


def test_angles_are_numbers_of_any_kind_and_a_circle_s_own_name_comes_first():
    beamline = load_beamline("p10")
    stream = Stream({"gamma": {"units": "deg"}, "arm_delta": {}, "delta": {}}, {}, {}, {}, {})
    values = {
        "arm_delta": 3.0,
        "delta": np.array([31.0]),
        "gamma": np.float32(5.0),
        "mu": float("nan"),
        "chi": "no",
        "om": True,
    }
    assert circle_readings(beamline, [angles_read(stream, values)]) == {"delta": 31.0, "gamma": 5.0}


def test_no_device_says_what_is_scanned():
    assert geometry_readings([("det", {"det_frames_scanned": 61, "det_energy_keV": 9.0})]) == {
        "energy_keV": 9.0
    }


def test_a_motor_of_no_circle_leaves_voxel_units_and_says_why(detector, caplog):
    cdi = {**SAID, "beamline": "p10", "circles_deg": STOOD}
    curve = curve_of(rocking_scan(detector, axis("north", 0), -0.1, 0.1, 5, cdi=cdi))
    assert curve.geometry is None
    assert "rocking_circle" in curve.missing[0]
    named = curve_of(
        rocking_scan(detector, axis("north", 0), -0.1, 0.1, 5, cdi={**cdi, "rocking_circle": "om"})
    )
    assert named.geometry == expected(rocking_motor="om")


class Monochromator(SynAxis):
    def describe(self):
        return {key: {**described, "units": "eV"} for key, described in super().describe().items()}


def test_a_motor_that_is_read_in_ev_makes_an_energy_scan(detector):
    mono = Monochromator(name="mono")
    cdi = {key: value for key, value in SAID.items() if key != "energy_keV"}
    cdi |= {"detector_angles_deg": (32.0, 5.0)}
    curve = curve_of(rocking_scan(detector, mono, 8990.0, 9010.0, 5, cdi=cdi))
    np.testing.assert_allclose(curve.angles_deg, [8.99, 8.995, 9.0, 9.005, 9.01])
    np.testing.assert_allclose(curve.planned_deg, curve.angles_deg)
    assert curve.geometry.scanned == "energy"
    assert curve.geometry.energy_keV == pytest.approx(9.0)
    assert curve.missing == ("count_time",)


def test_a_motor_without_units_is_said_to_be_the_energy_in_kev(detector):
    cdi = {**SAID, "beamline": "hxn", "circles_deg": {"gamma": 30.0, "delta": 0.0}, "scanned": "energy"}
    curve = curve_of(rocking_scan(detector, axis("mono", 9), 8.99, 9.01, 5, cdi=cdi))
    assert curve.geometry.scanned == "energy"
    assert curve.geometry.energy_keV == pytest.approx(9.0)

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xrayutilities
from scipy.spatial.transform import Rotation

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import geometry_from, reciprocal_basis, scattering_vectors
from bluesky_cdinn.goniometer import PRESETS, Beamline, Circle, Mount, beamline_names, load_beamline, rotation

SHAPE = (6, 5)
SAID = {
    "energy_keV": 9.3,
    "detector_distance_m": 0.73,
    "pixel_size_um": (55.0, 75.0),
    "beam_centre_px": (2.5, 1.25),
}
# Beamline, its circles, the rocked one, how xrayutilities calls detector rows and columns. In 34idc the
# axis is vertical; in p10 the columns run backwards; in the others rocking isn't about the vertical.
MEASURED = [
    ("34idc", {"theta": 0.4, "chi": 90.0, "phi": -5.0, "delta": 32.2, "gamma": 12.6}, "theta"),
    ("34idc", {"theta": 10.4, "chi": 88.0, "phi": -5.0, "delta": 32.2, "gamma": 12.6}, "phi"),
    ("id01", {"mu": 0.7, "eta": 17.1, "phi": 33.0, "nu": 5.0, "delta": 35.3}, "eta"),
    ("p10", {"mu": 0.3, "om": 16.9, "chi": 91.3, "phi": 21.0, "gamma": 4.4, "delta": 34.0}, "om"),
    ("p10", {"mu": 0.3, "om": 16.9, "chi": 91.3, "phi": 21.0, "gamma": 24.4, "delta": 14.0}, "phi"),
    ("p10", {"mu": 0.3, "om": 16.9, "chi": 91.3, "phi": 21.0, "gamma": 24.4, "delta": 14.0}, "chi"),
    ("hxn", {"theta": -12.0, "gamma": 31.0, "delta": 3.0}, "theta"),
    ("nanomax", {"theta": 14.0, "phi": 40.0, "gamma": -8.0, "delta": 29.0}, "theta"),
    ("sixs", {"beta": 0.9, "mu": 12.0, "gamma": 30.0, "delta": 6.0}, "mu"),
    ("cristal", {"omega": 15.0, "phi": 2.0, "gamma": 3.0, "delta": 31.0}, "omega"),
]


def _letter(direction):
    axis = int(np.argmax(np.abs(direction)))
    return "xyz"[axis] + ("+" if direction[axis] > 0 else "-")


def by_xrayutilities(beamline, angles, rocked, offsets):
    """Return q in the frame of the innermost circle's crystal, 1/nm, (3, offsets, rows, columns)."""
    converter = xrayutilities.experiment.QConversion(
        [_letter(circle.axis) for circle in beamline.sample],
        [_letter(circle.axis) for circle in beamline.arm],
        [0, 0, 1],
        en=SAID["energy_keV"] * 1e3,
    )
    converter.init_area(
        _letter(beamline.detector.rows),
        _letter(beamline.detector.columns),
        *SAID["beam_centre_px"],
        *SHAPE,
        distance=SAID["detector_distance_m"],
        pwidth1=SAID["pixel_size_um"][0] * 1e-6,
        pwidth2=SAID["pixel_size_um"][1] * 1e-6,
    )

    def stand(circle):
        read = angles[circle.name] + circle.offset_deg
        return read + offsets if circle.name == rocked else read

    q = converter.area(
        *(stand(circle) for circle in beamline.sample), *(stand(circle) for circle in beamline.arm)
    )
    # Its wave vectors are in 1/angstrom.
    return 10 * np.array(q)


@pytest.mark.parametrize(("name", "angles", "rocked"), MEASURED)
def test_q_of_every_pixel_is_that_of_xrayutilities(name, angles, rocked):
    beamline = load_beamline(name)
    geometry, missing = geometry_from(
        {**SAID, "beamline": name, "circles_deg": angles, "rocking_motor": rocked}
    )
    assert missing == ()
    offsets = np.linspace(-1.0, 1.0, 5)
    q = scattering_vectors(geometry, offsets, np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1]))
    # Ours is in the lab at the centre, theirs in what sits on the innermost circle there.
    turn = np.eye(3)
    for circle in beamline.sample:
        turn = turn @ rotation(circle.axis, angles[circle.name] + circle.offset_deg)
    theirs = np.moveaxis(by_xrayutilities(beamline, angles, rocked, offsets), 0, -1) @ turn.T
    np.testing.assert_allclose(q, theirs, atol=1e-6 * np.abs(theirs).max(), rtol=0)
    # Differences between voxels are a thousandth of q: they too agree.
    basis = reciprocal_basis(geometry, 0.005, (2, 2))
    near = (
        np.moveaxis(by_xrayutilities(beamline, angles, rocked, np.array([-0.005, 0.0, 0.005])), 0, -1)
        @ turn.T
    )
    numeric = [
        (near[2, 2, 2] - near[0, 2, 2]) / 2,
        (near[1, 3, 2] - near[1, 1, 2]) / 2,
        (near[1, 2, 3] - near[1, 2, 1]) / 2,
    ]
    np.testing.assert_allclose(basis, np.column_stack(numeric), atol=1e-6 * np.abs(basis).max(), rtol=0)


def described(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


ROLLED = """
title = "mine"
[[sample]]
name = "omega"
axis = "y+"
[[arm]]
name = "tth"
axis = "y+"
[detector]
rows = "y-"
columns = "x-"
roll_deg = 7.0
tilt_deg = [1.5, -2.5]
"""


def test_a_rolled_and_tilted_detector_faces_where_it_was_turned(tmp_path):
    path = described(tmp_path, ROLLED)
    said = {**SAID, "beamline": str(path), "circles_deg": {"tth": 30.0}, "rocking_motor": "omega"}
    geometry, _ = geometry_from(said)
    rows, columns, arm = (np.array(axis) for axis in geometry.detector_axes)
    carried = Rotation.from_rotvec([0, np.radians(30), 0])
    np.testing.assert_allclose(arm, carried.apply([0, 0, 1]), atol=1e-14)
    roll = Rotation.from_rotvec([0, 0, np.radians(7)])
    own = [roll.apply([0, -1, 0]), roll.apply([-1, 0, 0])]
    tilt = Rotation.from_rotvec(np.radians(1.5) * own[0]) * Rotation.from_rotvec(np.radians(-2.5) * own[1])
    np.testing.assert_allclose(rows, carried.apply(tilt.apply(own[0])), atol=1e-14)
    np.testing.assert_allclose(columns, carried.apply(tilt.apply(own[1])), atol=1e-14)
    # The bases follow the tilt, to first order in it.
    numeric = scattering_vectors(geometry, 0.0, [2.5, 3.5], 1.25)
    basis = reciprocal_basis(geometry, 0.01)
    np.testing.assert_allclose(basis[:, 1], numeric[1] - numeric[0], rtol=1e-3)


def test_a_roll_is_the_one_of_xrayutilities(tmp_path):
    path = described(tmp_path, ROLLED.replace("tilt_deg = [1.5, -2.5]", ""))
    said = {**SAID, "beamline": str(path), "circles_deg": {"tth": 30.0}, "rocking_motor": "omega"}
    geometry, _ = geometry_from(said)
    converter = xrayutilities.experiment.QConversion("y+", "y+", [0, 0, 1], en=9300.0)
    row_pitch, column_pitch = np.multiply(SAID["pixel_size_um"], 1e-6)
    converter.init_area(
        "y-", "x-", 2.5, 1.25, *SHAPE, distance=0.73, pwidth1=row_pitch, pwidth2=column_pitch, detrot=7.0
    )
    theirs = 10 * np.moveaxis(np.array(converter.area(0.0, 30.0)), 0, -1)
    q = scattering_vectors(geometry, 0.0, np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1]))
    np.testing.assert_allclose(q, theirs, atol=1e-6 * np.abs(theirs).max(), rtol=0)


def test_an_energy_scan_is_that_of_xrayutilities():
    angles = {"gamma": 31.0, "delta": 3.0}
    said = {**SAID, "beamline": "hxn", "circles_deg": angles, "scanned": "energy"}
    geometry, missing = geometry_from(said)
    assert missing == ()
    assert geometry.scanned == "energy"
    energies = SAID["energy_keV"] + np.array([-0.02, 0.0, 0.02])
    rows, columns = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])
    q = scattering_vectors(geometry, energies - SAID["energy_keV"], rows, columns)
    for energy, ours in zip(energies, q, strict=True):
        converter = xrayutilities.experiment.QConversion("y+", ["y-", "x-"], [0, 0, 1], en=energy * 1e3)
        row_pitch, column_pitch = np.multiply(SAID["pixel_size_um"], 1e-6)
        converter.init_area(
            "y-", "x-", 2.5, 1.25, *SHAPE, distance=0.73, pwidth1=row_pitch, pwidth2=column_pitch
        )
        theirs = 10 * np.moveaxis(np.array(converter.area(0.0, 31.0, 3.0)), 0, -1)
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max(), rtol=0)
    basis = reciprocal_basis(geometry, 0.02, (2, 3))
    np.testing.assert_allclose(basis[:, 0], q[2, 2, 3] - q[1, 2, 3], rtol=1e-9)
    np.testing.assert_allclose(basis[:, 1], (q[1, 3, 3] - q[1, 1, 3]) / 2, rtol=1e-6)


def test_34idc_by_its_circles_is_34idc_by_its_arm():
    angles = {"delta": 32.174, "gamma": 12.6346}
    by_arm, _ = geometry_from({**SAID, "detector_angles_deg": list(angles.values())})
    by_circles, _ = geometry_from(
        {**SAID, "beamline": "34idc", "rocking_motor": "theta", "circles_deg": angles}
    )
    assert by_circles.rocking_axis == by_arm.rocking_axis
    assert by_circles.detector_angles_deg == pytest.approx(by_arm.detector_angles_deg, abs=1e-12)
    pixels = np.arange(4)[:, None], np.arange(3)
    np.testing.assert_allclose(
        scattering_vectors(by_circles, 0.3, *pixels), scattering_vectors(by_arm, 0.3, *pixels), atol=1e-12
    )


@pytest.mark.parametrize("name", beamline_names())
def test_every_beamline_that_ships_says_where_it_is_from(name):
    beamline = load_beamline(name)
    assert beamline.sources
    assert beamline.assumed
    assert (PRESETS / f"{name}.toml").read_text(encoding="utf-8").isascii()


def test_what_ships():
    assert beamline_names() == ("34idc", "cristal", "hxn", "id01", "nanomax", "p10", "sixs")


def test_a_beamline_is_a_file():
    assert load_beamline(PRESETS / "id01.toml") == load_beamline("id01")


def test_a_motor_is_a_circle_by_any_of_its_names():
    beamline = load_beamline("34idc")
    for motor in ("theta", "th", "diffractometer_theta", "huber.th"):
        assert beamline.rocked_by(motor).name == "theta"
    assert beamline.rocked_by("delta") is None
    assert beamline.rocked_by("north") is None


def test_only_circles_outside_of_the_rocked_one_are_needed():
    p10 = load_beamline("p10")
    assert [circle.name for circle in p10.needed(p10.rocked_by("mu"))] == ["gamma", "delta"]
    assert [c.name for c in p10.needed(p10.rocked_by("chi"))] == ["mu", "om", "gamma", "delta"]
    sixs = load_beamline("sixs")
    assert [c.name for c in sixs.needed(sixs.rocked_by("mu"))] == ["beta", "gamma", "delta"]
    said = {**SAID, "beamline": "sixs", "rocking_motor": "mu", "circles_deg": {"delta": 5.0}}
    assert geometry_from(said) == (None, ("circles_deg.beta", "circles_deg.gamma"))
    assert geometry_from({"beamline": "sixs"})[1][-1] == "rocking_motor"


def test_layers_go_before_the_beamline_s_own_values(tmp_path):
    path = described(tmp_path, ROLLED + "[cdi]\nenergy_keV = 7.0\ncircles_deg = {tth = 20.0}\n")
    said = {key: value for key, value in SAID.items() if key != "energy_keV"} | {"beamline": str(path)}
    geometry, _ = geometry_from(said, {"rocking_circle": "omega"})
    assert geometry.energy_keV == 7.0
    assert geometry.detector_angles_deg == pytest.approx((20.0, 0.0))
    geometry, _ = geometry_from({"circles_deg": {"my_tth": 10.0}}, {**said, "rocking_circle": "omega"})
    assert geometry.detector_angles_deg == pytest.approx((10.0, 0.0))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('axis = "y+"', 'axis = "up"', r'sample\.0\.axis: .*must be one of "x\+"'),
        ('axis = "y+"', "axis = [0, 0, 0]", "three numbers that are not all zero"),
        ('columns = "x-"', 'columns = "y-"', "must be at right angles"),
        ('name = "omega"', 'name = "omega"\nsign = 1', r"sample\.0\.sign: Extra inputs"),
        ('name = "omega"', 'name = "omega"\nmotors = ["omega"]', r"named once, got \['omega'\]"),
        ("roll_deg = 7.0", "roll_deg = 700", r"detector\.roll_deg: .*less than or equal to 360"),
        ("[[sample]]", "[[samples]]", "sample: Field required"),
        (
            'title = "mine"',
            'title = "mine"\ncdi = {pixel_size = 55}',
            r"cdi: .*pixel_size_um.*got \['pixel_size'\]",
        ),
        ('title = "mine"', 'title = "mine"\ncdi = {scanned = "energy"}', r"got \['scanned'\]"),
        ('title = "mine"', "title = mine", "can't be read as TOML: .*line 2"),
    ],
)
def test_a_file_that_is_wrong_is_told_where(tmp_path, old, new, message):
    path = described(tmp_path, ROLLED.replace(old, new, 1))
    with pytest.raises(InvalidInput, match=message) as error:
        load_beamline(path)
    assert "mine.toml" in str(error.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"beamline": "nowhere"}, "one of 34idc, .*got 'nowhere'"),
        ({"beamline": 34}, "beamline must be a name"),
        ({"beamline": "34idc", "rocking_motor": "north"}, "theta, chi, phi, got 'north'.*rocking_circle"),
        ({"beamline": "sixs", "rocking_motor": "beta"}, "beta of SOLEIL SIXS, until 2021 carries it"),
        ({"beamline": "34idc", "circles_deg": {"delta": "x"}}, "circles_deg.delta must be a number"),
        ({"beamline": "34idc", "circles_deg": {"th": 4000}}, "circles_deg.theta must be .*check its unit"),
        ({"beamline": "34idc", "circles_deg": 3}, "circles_deg must be a mapping"),
        ({"scanned": "time"}, "scanned must be 'angle' or 'energy'"),
        ({"detector_axes": np.eye(3) * 0.9}, "detector_axes must be three unit vectors"),
    ],
)
def test_metadata_that_cannot_be_is_refused(said, message):
    with pytest.raises(InvalidInput, match=message):
        geometry_from({**SAID, **said})


def test_explicit_axes_do_without_an_arm():
    by_arm, _ = geometry_from({**SAID, "detector_angles_deg": [20.0, 10.0]})
    turn = Rotation.from_euler("YX", [20.0, -10.0], degrees=True)
    axes = turn.apply([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    explicit, missing = geometry_from({**SAID, "detector_axes": axes.ravel().tolist()})
    assert missing == ()
    assert explicit.detector_angles_deg == pytest.approx((20.0, 10.0))
    np.testing.assert_allclose(
        scattering_vectors(explicit, 0.1, 3, 2), scattering_vectors(by_arm, 0.1, 3, 2), atol=1e-12
    )
    flipped, _ = geometry_from({**SAID, "detector_axes": axes * [[1], [-1], [1]]})
    basis = reciprocal_basis(by_arm, 0.01)
    np.testing.assert_allclose(reciprocal_basis(flipped, 0.01), basis * [1, 1, -1], atol=1e-15)
    assert replace(flipped, detector_axes=None) == replace(
        by_arm, detector_angles_deg=flipped.detector_angles_deg
    )


def test_the_reference_page_has_every_entry():
    page = (Path(__file__).parents[1] / "docs/reference/beamlines.md").read_text(encoding="utf-8")
    names = [name for model in (Beamline, Circle, Mount) for name in model.model_fields]
    names = {"sample": "[[sample]]", "arm": "arm", "detector": "[detector]", "cdi": "[cdi]"} | {
        name: name for name in names if name not in ("sample", "detector", "cdi")
    }
    assert [name for name in names.values() if f"`{name}`" not in page] == []


def test_the_how_to_s_example_is_a_beamline(tmp_path):
    page = (Path(__file__).parents[1] / "docs/how-to/describe-your-beamline.md").read_text(encoding="utf-8")
    (example,) = [
        block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[[sample]]" in block
    ]
    beamline = load_beamline(described(tmp_path, example))
    assert [circle.name for circle in beamline.circles] == ["mu", "eta", "nu", "delta"]

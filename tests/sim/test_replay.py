"""Recorded scans: read from every format, and played back under a real RunEngine."""

import json
import os
from pathlib import Path

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
import tifffile
from bluesky import RunEngine
from bluesky.utils import FailedStatus

from bluesky_cdinn.callbacks import RockingCurveAssembler
from bluesky_cdinn.errors import CdinnWarning, InvalidInput, MissingMetadata
from bluesky_cdinn.plans import rocking_scan
from bluesky_cdinn.preprocess import detector_fields
from bluesky_cdinn.sim.recording import load_recording
from bluesky_cdinn.sim.replay import RecordedFrames, replay_beamline

POINTS, SHAPE = 11, (6, 8)
ANGLES = np.linspace(-0.05, 0.05, POINTS)
FRAMES = np.random.default_rng(0).poisson(5.0, (POINTS, *SHAPE)).astype(np.uint16)
DARK = np.random.default_rng(1).integers(0, 2, (10, 12))
WHITEFIELD = np.random.default_rng(2).uniform(0.9, 1.1, (10, 12)).astype(np.float32)
REGION = (2, 8, 3, 11)
GEOMETRY = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_m": 55e-6,
    "delta_deg": 32.0,
    "gamma_deg": 12.5,
}
CONTENTS = {"theta_deg": ANGLES, "count_time_s": 0.25, "dark": DARK, "whitefield": WHITEFIELD}


def write_hdf5(folder):
    path = folder / "scan.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = FRAMES
        for name, value in CONTENTS.items():
            file[name] = value
        file.attrs.update(GEOMETRY, region=REGION)
    return path


def write_npz(folder):
    path = folder / "scan.npz"
    np.savez(path, frames=FRAMES, region=REGION, **CONTENTS, **GEOMETRY)
    return path


def _write_json(path):
    plain = {name: np.asarray(value).tolist() for name, value in CONTENTS.items()}
    path.write_text(json.dumps({**plain, **GEOMETRY, "region": REGION}))


def write_tiff(folder):
    tifffile.imwrite(folder / "scan.tif", FRAMES)
    _write_json(folder / "scan.json")
    return folder / "scan.tif"


def write_tiff_folder(folder):
    (folder / "scan").mkdir()
    for index, frame in enumerate(FRAMES):
        tifffile.imwrite(folder / "scan" / f"frame_{index:04d}.tiff", frame)
    _write_json(folder / "scan.json")
    return folder / "scan"


WRITERS = (write_hdf5, write_npz, write_tiff, write_tiff_folder)


@pytest.fixture
def recording(tmp_path):
    return load_recording(write_hdf5(tmp_path))


@pytest.fixture
def documents():
    return []


@pytest.fixture
def RE(documents):
    engine = RunEngine({}, call_returns_result=True)
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    return engine


def images(documents):
    return [doc["data"]["det_image"] for name, doc in documents if name == "event"]


# npz and TIFF can't be referred to for their fields: each of them warns.
pytestmark = pytest.mark.filterwarnings("ignore::bluesky_cdinn.errors.CdinnWarning")


class TestLoading:
    @pytest.mark.parametrize("write", WRITERS)
    def test_every_format_says_the_same(self, tmp_path, write):
        recording = load_recording(write(tmp_path))
        np.testing.assert_array_equal(np.stack([recording.frames[i] for i in range(POINTS)]), FRAMES)
        np.testing.assert_allclose(recording.angles_deg, ANGLES)
        np.testing.assert_allclose(recording.count_time_s, np.full(POINTS, 0.25))
        np.testing.assert_array_equal(recording.dark, DARK[2:8, 3:11])
        np.testing.assert_allclose(recording.whitefield, WHITEFIELD[2:8, 3:11])
        geometry = recording.geometry
        assert geometry.energy_keV == 9.0
        assert geometry.pixel_size_um == pytest.approx((55.0, 55.0))
        assert geometry.detector_angles_deg == (32.0, 12.5)
        assert geometry.beam_centre_px == (3.0, 4.0)
        assert recording.name == "scan"
        assert recording.step_deg == pytest.approx(0.01)
        assert recording.scan_range == pytest.approx((-0.05, 0.05, POINTS))

    def test_keywords_override_the_file(self, tmp_path):
        recording = load_recording(
            write_npz(tmp_path),
            angles_deg=ANGLES + 1,
            energy_keV=10.0,
            pixel_size_um=(20, 30),
            detector_angles_deg=(1, 2),
            reflection=[1, 1, 1],
            lattice_nm=0.4078,
            sample="gold 7",
        )
        np.testing.assert_allclose(recording.angles_deg, ANGLES + 1)
        assert recording.geometry.energy_keV == 10.0
        assert recording.geometry.pixel_size_um == (20.0, 30.0)
        assert recording.geometry.detector_angles_deg == (1.0, 2.0)
        assert recording.geometry.reflection == (1, 1, 1)
        assert recording.cdi["sample"] == "gold 7"

    def test_fields_are_referred_to_where_they_lie(self, tmp_path):
        path = write_hdf5(tmp_path)
        cdi = load_recording(path).cdi
        assert cdi["dark_file"] == {"path": str(path), "dataset": "dark", "region": [2, 8, 3, 11]}
        assert cdi["flat_file"] == {"path": str(path), "dataset": "whitefield", "region": [2, 8, 3, 11]}

    def test_fields_that_a_run_cannot_refer_to_are_warned_of(self, tmp_path):
        with pytest.warns(CdinnWarning, match=r"won't be corrected for dark and whitefield of scan\.npz"):
            recording = load_recording(write_npz(tmp_path))
        assert recording.cdi == {"sample": "scan"}

    def test_a_field_given_by_keyword_lies_in_no_file(self, tmp_path):
        recording = load_recording(write_hdf5(tmp_path), dark=np.zeros((10, 12)))
        assert "dark_file" not in recording.cdi
        assert "flat_file" in recording.cdi

    @pytest.mark.parametrize(
        ("order", "expected"),
        [
            (np.arange(POINTS), (-0.05, 0.05, POINTS)),
            (np.arange(POINTS)[::-1], (0.05, -0.05, POINTS)),
            (np.r_[0:POINTS, POINTS - 1 : -1 : -1], None),
            (np.random.default_rng(3).permutation(POINTS), None),
        ],
        ids=["upwards", "downwards", "there and back", "shuffled"],
    )
    def test_an_even_scan_covers_any_order(self, tmp_path, order, expected):
        jitter = np.random.default_rng(4).normal(0, 1e-4, len(order))
        jitter[[ANGLES[order].argmin(), ANGLES[order].argmax()]] = 0
        recording = load_recording(
            write_npz(tmp_path), frames=FRAMES[order], angles_deg=ANGLES[order] + jitter
        )
        assert recording.step_deg == pytest.approx(0.01, rel=0.05)
        start, stop, num = recording.scan_range
        if expected is not None:
            assert (start, stop, num) == pytest.approx(expected, abs=3e-4)
        source = RecordedFrames(recording)
        frames = [source.frame(angle, 1.0) for angle in np.linspace(min(start, stop), max(start, stop), num)]
        np.testing.assert_array_equal(frames, FRAMES)

    def test_hdf5_frames_stay_in_the_file(self, tmp_path):
        path = write_hdf5(tmp_path)
        recording = load_recording(path)
        assert not isinstance(recording.frames, np.ndarray)
        os.rename(path, tmp_path / "gone.h5")
        with pytest.raises(FileNotFoundError):
            recording.frames[0]

    def test_what_is_missing_is_named(self, tmp_path):
        np.savez(tmp_path / "bare.npz", frames=FRAMES, energy_keV=9.0)
        with pytest.raises(
            MissingMetadata, match="angles_deg, detector_distance_m, pixel_size_um, detector_a"
        ):
            load_recording(tmp_path / "bare.npz")

    @pytest.mark.parametrize(
        ("overrides", "complaint"),
        [
            ({"angles_deg": ANGLES[:-1]}, "angle for each of the 11 frames"),
            ({"count_time_s": np.ones(5)}, "count_time_s must have"),
            ({"angles_deg": np.full(POINTS, np.nan)}, "finite angle"),
            ({"region": (0, 6, 8, 16)}, "region"),
            ({"frames": FRAMES[0]}, "points, rows, columns"),
        ],
    )
    def test_contents_must_fit_together(self, tmp_path, overrides, complaint):
        with pytest.raises(InvalidInput, match=complaint):
            load_recording(write_npz(tmp_path), **overrides)

    @pytest.mark.parametrize("name", ["scan.txt", "absent.h5", "empty"])
    def test_other_files_are_refused(self, tmp_path, name):
        (tmp_path / "scan.txt").write_text("no frames")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidInput):
            load_recording(tmp_path / name)

    def test_pickles_are_refused(self, tmp_path):
        np.savez(tmp_path / "scan.npz", frames=np.array([{"a": 1}], dtype=object))
        with pytest.raises(InvalidInput, match="plain arrays"):
            load_recording(tmp_path / "scan.npz")


class TestReplay:
    @pytest.mark.parametrize("write", WRITERS)
    def test_a_scan_measures_it_again(self, RE, documents, tmp_path, write):
        recording = load_recording(write(tmp_path))
        det, theta = replay_beamline(recording)
        RE(rocking_scan(det, theta, *recording.scan_range))
        np.testing.assert_array_equal(np.stack(images(documents)), FRAMES)
        start = documents[0][1]
        assert start["cdi"]["sample"] == "scan"
        assert start["cdi"].get("dark_file") == recording.cdi.get("dark_file")

    def test_dark_and_flat_reach_the_reconstruction(self, RE, recording):
        det, theta = replay_beamline(recording)
        assembler = RockingCurveAssembler()
        RE(rocking_scan(det, theta, *recording.scan_range), assembler)
        fields = detector_fields(assembler.curve())
        np.testing.assert_array_equal(fields["dark"], DARK[2:8, 3:11])
        np.testing.assert_allclose(fields["flat"], WHITEFIELD[2:8, 3:11])

    def test_in_any_order(self, RE, documents, recording):
        det, theta = replay_beamline(recording)
        RE(bp.list_scan([det], theta, list(ANGLES[[7, 2, 2, 0]])))
        np.testing.assert_array_equal(np.stack(images(documents)), FRAMES[[7, 2, 2, 0]])

    @pytest.mark.parametrize("offset", [-0.0049, 0.0049])
    def test_the_nearest_frame_within_half_a_step(self, recording, offset):
        np.testing.assert_array_equal(RecordedFrames(recording).frame(ANGLES[4] + offset, 1.0), FRAMES[4])

    def test_outside_is_an_error(self, RE, recording):
        det, theta = replay_beamline(recording)
        with pytest.raises(FailedStatus) as failure:
            RE(bp.list_scan([det], theta, [0.05, 0.0585]))
        assert "scan has no frame at 0.05850 deg" in str(failure.value.__cause__ or failure.value)

    def test_outside_is_empty_if_asked(self, RE, documents, recording):
        det, theta = replay_beamline(recording, outside="empty")
        RE(bp.list_scan([det], theta, [0.05, 0.1]))
        first, second = images(documents)
        np.testing.assert_array_equal(first, FRAMES[-1])
        assert not second.any()
        assert second.dtype == FRAMES.dtype

    def test_the_exposure_is_the_recorded_one(self, RE, documents, recording):
        det, theta = replay_beamline(recording)
        with pytest.raises(InvalidInput, match=r"recorded with 0\.25 s each"):
            det.count_time.put(1.0)
        RE(rocking_scan(det, theta, *recording.scan_range, count_time=0.25))
        descriptor = next(doc for name, doc in documents if name == "descriptor")
        assert descriptor["configuration"]["det"]["data"]["det_count_time"] == 0.25

    def test_varied_exposures_come_from_the_plan(self, RE, documents, tmp_path):
        recording = load_recording(write_npz(tmp_path), count_time_s=np.linspace(0.1, 1.1, POINTS))
        det, theta = replay_beamline(recording)
        RE(rocking_scan(det, theta, *recording.scan_range, count_time=recording.count_time_s))
        events = [doc["data"] for name, doc in documents if name == "event"]
        np.testing.assert_allclose([data["det_count_time"] for data in events], recording.count_time_s)


def measured_data():
    folder = os.environ.get("CDINN_DATA", Path(__file__).parents[2].parent / "shared" / "data")
    return Path(folder) / "aps34idc_scan54.h5"


@pytest.mark.skipif(not measured_data().is_file(), reason="the measured scan isn't here (CDINN_DATA)")
def test_a_measured_scan(RE, documents):
    """201 frames of a gold crystal, against the sums that the beamline itself recorded."""
    recording = load_recording(measured_data())
    assert recording.geometry.energy_keV == 9.0
    assert recording.geometry.pixel_size_um == pytest.approx((55.0, 55.0))
    assert recording.geometry.detector_angles_deg == (32.174, 12.6346)
    assert recording.whitefield.shape == recording.frames.shape[1:] == (256, 256)
    det, theta = replay_beamline(recording)
    RE(rocking_scan(det, theta, *recording.scan_range))
    events = [doc["data"] for name, doc in documents if name == "event"]
    with h5py.File(measured_data()) as file:
        np.testing.assert_array_equal([data["det_total"] for data in events], file["image_total"][:])
        np.testing.assert_array_equal([data["det_max"] for data in events], file["image_max"][:])
        np.testing.assert_array_equal(events[99]["det_image"], file["frames"][99])
    assert np.argmax([data["det_max"] for data in events]) == 99

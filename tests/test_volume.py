"""Frames and angles to a volume: exact for regular scans, honest about everything else."""

import os
import threading
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.frame_files import open_frames
from bluesky_cdinn.records import FrameReference, RockingCurve
from bluesky_cdinn.rocking_grid import rocking_grid
from bluesky_cdinn.volume import VolumeBuilder, assemble, load_frames

SHAPE = (6, 7)


def random_frames(n=9, shape=SHAPE, rate=20.0, seed=0):
    return np.random.default_rng(seed).poisson(rate, (n, *shape)).astype(np.uint16)


def curve(frames, angles, **kwargs):
    return RockingCurve(frames=frames, angles_deg=np.asarray(angles, dtype=float), **kwargs)


def step(volume):
    return volume.history[-1]


# --- The grid of angles -----------------------------------------------------------------------------------


@given(
    st.floats(-90, 90),
    st.floats(1e-4, 1.0),
    st.integers(12, 60),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_grid_is_found_in_spite_of_jitter_repeats_gaps_and_order(first, width, n, seed):
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(n)[: int(0.8 * n)])
    places = np.union1d(places, [0, 1, n - 1])
    points = rng.permutation(np.concatenate([places, rng.choice(places, n // 2)]))
    angles = first + width * (points + rng.uniform(-0.03, 0.03, len(points)))
    got_first, got_step, got_n = rocking_grid(angles)
    assert got_n == n
    assert got_step == pytest.approx(width, rel=0.06 / (n - 1) + 1e-6)
    assert got_first == pytest.approx(first, abs=0.06 * width)


def test_a_median_step_that_is_off_does_not_add_up():
    rng = np.random.default_rng(1)
    angles = 0.005 * np.arange(1000) + rng.normal(0, 0.0002, 1000)
    first, width, n = rocking_grid(angles)
    assert n == 1000
    assert abs(first + width * 999 - 0.005 * 999) < 0.0001


@pytest.mark.parametrize("angles", [[], [1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
def test_a_motor_that_did_not_move_is_an_incomplete_scan(angles):
    with pytest.raises(IncompleteScan, match="3 values"):
        rocking_grid(angles)


def test_an_encoder_that_jumped_is_refused():
    with pytest.raises(InvalidInput, match="evenly spaced"):
        rocking_grid([*np.arange(20) * 0.01, 0.095 + 0.0001, *(np.arange(20) * 0.01 + 30)])


# --- From frames to a volume ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64, np.float32, np.float64])
def test_a_regular_scan_is_just_its_frames(dtype):
    frames = random_frames().astype(dtype)
    volume = assemble(curve(frames, 0.01 * np.arange(9)))
    np.testing.assert_array_equal(volume.intensity, frames)
    assert volume.intensity.dtype == np.float32
    assert volume.valid.all()
    np.testing.assert_allclose(volume.angles_deg, 0.01 * np.arange(9), atol=1e-12)
    assert step(volume)["merged_points"] == step(volume)["interpolated_slices"] == 0


@given(st.permutations(range(9)))
@settings(max_examples=20)
def test_the_order_of_measurement_does_not_matter(order):
    frames, angles = random_frames(), 0.01 * np.arange(9)
    volume = assemble(curve(frames[list(order)], angles[list(order)]))
    np.testing.assert_array_equal(volume.intensity, frames)


def test_repeated_points_add_up_at_the_common_exposure():
    frames = random_frames(12)
    angles = 0.01 * np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 4, 4])
    volume = assemble(curve(frames, angles))
    np.testing.assert_allclose(volume.intensity[4], frames[[4, 9, 10, 11]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(volume.intensity[5], frames[5])
    assert step(volume)["merged_points"] == 3
    assert step(volume)["scale_lowest"] == 0.25


def test_several_frames_of_every_point_are_summed_counts():
    frames = random_frames(18)
    volume = assemble(curve(frames, np.repeat(0.01 * np.arange(9), 2)))
    np.testing.assert_array_equal(volume.intensity, frames[::2] + frames[1::2])
    assert step(volume)["scale_lowest"] == step(volume)["scale_highest"] == 1


def test_exposure_and_flux_are_divided_out():
    rates = random_frames().astype(float)
    seconds = np.array([1, 1, 1, 2, 4, 2, 1, 1, 1.0])
    flux = np.linspace(0.9, 1.1, 9) * 1e9
    relative = seconds * flux / flux.mean()
    volume = assemble(
        curve(rates * relative[:, None, None], np.arange(9), count_time_s=seconds, monitor=flux)
    )
    scale = volume.intensity / rates
    np.testing.assert_allclose(scale, scale.mean(), rtol=1e-5)
    assert step(volume)["normalised_by"] == "count_time, monitor"


def test_a_frame_without_beam_is_no_measurement():
    flux = np.full(9, 1e9)
    flux[3] = 0.0
    flux[5] = np.nan
    volume = assemble(curve(random_frames(), np.arange(9), monitor=flux))
    assert not volume.valid[3].any()
    assert volume.valid[5].all()
    assert step(volume)["points_without_beam"] == 1
    assert step(volume)["unmeasured_slices"] == 1


def test_slices_that_were_not_measured_are_not_zeros():
    frames, kept = random_frames(), [0, 1, 2, 5, 6, 7, 8]
    volume = assemble(curve(frames[kept], 0.01 * np.arange(9)[kept]))
    assert volume.intensity.shape == (9, *SHAPE)
    np.testing.assert_array_equal(volume.valid.all(axis=(1, 2)), np.isin(np.arange(9), kept))
    np.testing.assert_array_equal(volume.intensity[kept], frames[kept])


def test_frames_between_slices_are_interpolated():
    def rate(angle):
        return 100 + 10 * angle * np.ones(SHAPE)

    angles = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.4, 11.4, 12.0, 13.0, 14, 15, 16, 17, 18, 19])
    volume = assemble(curve(np.stack([rate(a) for a in angles]), angles))
    assert step(volume)["interpolated_slices"] >= 1
    seen = volume.valid.all(axis=(1, 2))
    expected = np.stack([rate(a) for a in volume.angles_deg])
    # A polynomial through neighbours makes a straight line exactly, whatever the common exposure.
    ratio = volume.intensity[seen] / expected[seen]
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-3)
    assert 1.0 <= ratio[0, 0, 0] < 1.05


def test_values_that_are_no_counts_are_not_trusted():
    frames = random_frames().astype(np.float32)
    frames[2, 1, 1] = np.nan
    frames[3, 1, 1] = np.inf
    frames[4, 2, 2] = -3.0
    frames[:, 0, 0] = -1.0
    volume = assemble(curve(frames, np.arange(9)))
    assert not volume.valid[2, 1, 1]
    assert not volume.valid[3, 1, 1]
    assert volume.valid[4, 2, 2]
    assert volume.intensity[4, 2, 2] == 0
    assert not volume.valid[:, 0, 0].any()
    assert volume.valid.sum() == volume.valid.size - 11
    assert np.isfinite(volume.intensity).all()
    assert volume.intensity.min() == 0


def test_the_flag_of_unsigned_detectors_is_not_trusted():
    frames = random_frames().astype(np.uint32)
    frames[:, 3] = 2**32 - 1
    volume = assemble(curve(frames, np.arange(9)))
    assert not volume.valid[:, 3].any()
    assert volume.intensity[:, 3].max() == 0


def test_a_bad_pixel_of_one_repeat_leaves_the_other():
    frames = random_frames(10).astype(float)
    frames[4, 1, 1] = np.nan
    volume = assemble(curve(frames, [*range(9), 4]))
    assert volume.intensity[4, 1, 1] == frames[9, 1, 1]
    assert volume.intensity[4, 1, 2] == pytest.approx(frames[[4, 9], 1, 2].mean())


def test_a_bad_pixel_of_a_neighbour_is_not_interpolated_over():
    frames = np.full((9, *SHAPE), 50.0)
    frames[4, 1, 1] = np.nan
    angles = np.array([0, 1, 2, 3.6, 4.6, 5.6, 7, 8, 9])
    volume = assemble(curve(frames, angles))
    assert step(volume)["interpolated_slices"] >= 2
    between = np.flatnonzero(~volume.valid[:, 1, 1] & volume.valid[:, 0, 0])
    assert len(between) >= 1
    assert not volume.intensity[between, 1, 1].any()


def test_frames_without_beam_make_no_volume():
    with pytest.raises(IncompleteScan, match="none among 0"):
        VolumeBuilder(planned_deg=np.arange(9)).volume()
    builder = VolumeBuilder()
    for angle in range(9):
        builder.add(np.ones(SHAPE), angle, monitor=1e9 if angle == 0 else 0.0)
    with pytest.raises(IncompleteScan, match="3 values"):
        builder.volume()


@pytest.mark.parametrize("frames", [np.zeros((9, 4)), np.zeros((9, 4, 4), complex), np.zeros((9, 2, 4, 4))])
def test_frames_must_be_real_images(frames):
    with pytest.raises(InvalidInput, match="2D array of real numbers"):
        assemble(curve(frames, np.arange(9)))


def test_frames_of_one_by_rows_by_columns():
    frames = random_frames()
    np.testing.assert_array_equal(assemble(curve(frames[:, None], np.arange(9))).intensity, frames)


# --- Filling as frames come -------------------------------------------------------------------------------


def test_the_volume_fills_as_frames_come():
    frames, angles = random_frames(), 0.01 * np.arange(9)
    builder = VolumeBuilder(planned_deg=angles)
    for n, place in enumerate([4, 3, 5, 0, 8, 1, 2, 6, 7], start=1):
        builder.add(frames[place], angles[place])
        volume = builder.volume()
        assert len(builder) == n
        assert volume.intensity.shape == frames.shape
        measured = volume.valid.all(axis=(1, 2))
        assert measured.sum() == n
        np.testing.assert_array_equal(volume.intensity[measured], frames[measured])
    np.testing.assert_array_equal(volume.intensity, assemble(curve(frames, angles)).intensity)


@pytest.mark.parametrize(
    ("frame", "angle"),
    [(np.zeros(3), 0.0), (np.zeros((3, 3)), 0.0), (np.zeros(SHAPE), np.nan), (np.zeros(SHAPE, complex), 0.0)],
)
def test_the_builder_refuses_what_is_no_frame(frame, angle):
    builder = VolumeBuilder()
    builder.add(np.zeros(SHAPE), 0.0)
    with pytest.raises(InvalidInput):
        builder.add(frame, angle)
    assert len(builder) == 1


# --- Frames in files --------------------------------------------------------------------------------------


def references(path, indices, dataset="/entry/data/data"):
    return tuple(FrameReference(path, dataset, i) for i in indices)


@pytest.fixture
def stored(tmp_path):
    frames, path = random_frames(), tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry/data/data", data=frames, chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle())
    return path, frames


@pytest.mark.parametrize("order", [range(9), [8, 3, 4, 5, 0, 0, 1]])
def test_compressed_frames_are_read_in_any_order(stored, order):
    path, frames = stored
    loaded = load_frames(curve(references(path, order), np.arange(len(order))))
    np.testing.assert_array_equal(loaded.frames, frames[list(order)])
    assert loaded.frames.dtype == np.uint16


@pytest.mark.parametrize(
    ("shape", "added"), [((9, 1, *SHAPE), 1), ((9, 3, *SHAPE), 3), ((9, 1, 2, *SHAPE), 2)]
)
def test_leading_axes_go(tmp_path, shape, added):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = np.ones(shape, np.uint16)
    loaded = load_frames(curve(references(tmp_path / "a.h5", range(9), "frames"), np.arange(9)))
    assert loaded.frames.shape == (9, *SHAPE)
    assert (loaded.frames == added).all()


def test_a_file_for_each_frame(tmp_path):
    frames, places = random_frames(), []
    for i, frame in enumerate(frames):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["data"] = frame
        places += references(tmp_path / f"{i}.h5", [0], "data")
    np.testing.assert_array_equal(load_frames(curve(tuple(places), np.arange(9))).frames, frames)


def test_a_file_that_is_still_being_written_is_read(tmp_path):
    frames, path = random_frames(), tmp_path / "open.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset(
            "data", frames.shape, np.uint16, maxshape=(None, *SHAPE), chunks=(1, *SHAPE)
        )
        file.swmr_mode = True
        data[:] = frames
        data.flush()
        loaded = load_frames(curve(references(path, range(9), "data"), np.arange(9)))
    np.testing.assert_array_equal(loaded.frames, frames)


def test_frames_that_come_late_are_waited_for(tmp_path):
    frames, path = random_frames(), tmp_path / "late.h5"

    def write():
        time.sleep(0.4)
        with h5py.File(tmp_path / "part.h5", "w") as file:
            file["data"] = frames
        os.replace(tmp_path / "part.h5", path)

    writer = threading.Thread(target=write)
    writer.start()
    loaded = load_frames(curve(references(path, range(9), "data"), np.arange(9)), patience_s=20)
    writer.join()
    np.testing.assert_array_equal(loaded.frames, frames)


@pytest.mark.parametrize("lost", [99, -1])
def test_a_frame_that_never_comes_leaves_its_point_out_on_record(stored, lost):
    path, _ = stored
    late = curve(
        references(path, [0, 1, 2, lost, 4, 5, 6, 7, 8]), np.arange(9), count_time_s=np.arange(9.0) + 1
    )
    loaded = load_frames(late, patience_s=0.0)
    assert loaded.metadata["unreadable_points"] == [3]
    np.testing.assert_array_equal(loaded.angles_deg, [0, 1, 2, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(loaded.count_time_s, [1, 2, 3, 5, 6, 7, 8, 9])
    volume = assemble(loaded)
    assert step(volume)["unreadable_points"] == 1
    assert not volume.valid[3].any()


@pytest.mark.parametrize(
    ("name", "dataset", "match"),
    [("frames.h5", "/nothing", "no dataset '/nothing', only entry/data/data"), ("no.h5", "/x", "no.h5")],
)
def test_files_that_cannot_be_read_are_named(stored, name, dataset, match):
    path = stored[0].parent / name
    with pytest.raises(IncompleteScan, match=match):
        load_frames(curve(references(path, range(9), dataset), np.arange(9)), patience_s=0.0)


def test_frames_of_different_shapes_are_refused(tmp_path, stored):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["/entry/data/data"] = np.zeros((9, 3, 3))
    mixed = references(stored[0], range(5)) + references(other, range(5))
    with pytest.raises(InvalidInput, match="one shape"):
        load_frames(curve(mixed, np.arange(10)))


def test_open_frames_names_what_there_is(stored):
    with pytest.raises(KeyError, match="entry/data/data"), open_frames(stored[0], "wrong"):
        pass


# --- The real scan ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan54():
    folder = Path(os.environ.get("CDINN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "aps34idc_scan54.h5"
    if not path.is_file():
        pytest.skip("the measured scan is not here")
    return path


def test_the_measured_scan_is_assembled_to_the_beamlines_own_sums(scan54):
    with h5py.File(scan54) as file:
        angles, totals, seconds = (file[name][()] for name in ("theta_deg", "image_total", "count_time_s"))
    volume = assemble(curve(references(scan54, range(201), "frames"), angles, count_time_s=seconds))
    assert np.unravel_index(volume.intensity.argmax(), volume.intensity.shape) == (99, 126, 127)
    np.testing.assert_array_equal(volume.intensity.sum(axis=(1, 2), dtype=float), totals)
    assert volume.valid.all()
    assert step(volume)["step_deg"] == pytest.approx(0.005, rel=1e-5)

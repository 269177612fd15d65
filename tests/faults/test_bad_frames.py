"""Frames that no detector should give: what can be used of them is, and the rest is told in words."""

import time

import numpy as np
import pytest
from crystals import crystal_and_counts

from bluesky_cdinn.errors import CdinnError, IncompleteScan, InvalidInput
from bluesky_cdinn.pipeline import reconstruct_curve
from bluesky_cdinn.plans._rocking_scan_with_recon import LEAST_ANGLES
from bluesky_cdinn.posing import FEWEST_SLICES
from bluesky_cdinn.preprocess import find_peak, prepare
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.volume import assemble

SHAPE = (24, 32, 32)
OPTIONS = ReconstructionOptions(starts=2, start="autocorrelation", device="cpu")
COUNTS = crystal_and_counts(1, 1.0, SHAPE, peak=1e5)[1]


def reconstructed(frames, angles=None, **also):
    angles = 0.01 * np.arange(len(frames)) if angles is None else angles
    return reconstruct_curve(RockingCurve(frames, angles, **also), OPTIONS)


def spoilt(change):
    frames = COUNTS.copy()
    change(frames)
    return frames


def bad_frame(frames):
    frames[5] = np.nan


def bad_rows(frames):
    frames[:, 3:5] = -1
    frames[:, 27] = np.nan


def bad_memory(frames):
    frames[2:20:3, 5, 7] = [np.inf, -np.inf, 3e38, -1e30, 1e25, np.nan]


@pytest.mark.parametrize("harm", [bad_frame, bad_rows, bad_memory])
def test_what_is_no_count_is_left_out(harm):
    good = prepare(assemble(RockingCurve(COUNTS, 0.01 * np.arange(24))))
    bad = prepare(assemble(RockingCurve(spoilt(harm), 0.01 * np.arange(24))))
    touched = spoilt(harm) != COUNTS
    assert not (bad.valid & touched).any()
    np.testing.assert_array_equal(bad.intensity[bad.valid & good.valid], COUNTS[bad.valid & good.valid])
    assert np.abs(np.subtract(find_peak(bad), find_peak(good))).max() < 1


def test_a_crystal_among_frames_with_every_harm():
    def every(frames):
        bad_frame(frames)
        bad_rows(frames)
        bad_memory(frames)

    result = reconstructed(spoilt(every))
    assert result.chi2 < 0.02
    assert np.isfinite(result.density).all()


LARGEST = np.full(SHAPE, 65535, np.uint16)
ONE_VOXEL = np.zeros(SHAPE, np.float32)
ONE_VOXEL[12, 16, 16] = 1e6


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        pytest.param(np.full(SHAPE, np.nan), "no number", id="NaN"),
        pytest.param(np.full(SHAPE, np.inf), "no number", id="infinite"),
        pytest.param(-COUNTS, "is the crystal in the beam", id="negative"),
        pytest.param(np.zeros(SHAPE), "shutter open", id="all zero"),
        pytest.param(np.zeros(SHAPE, np.uint16), "shutter open", id="all zero, whole numbers"),
        pytest.param(LARGEST, "saturated", id="saturated"),
        pytest.param(np.full(SHAPE, 1e300), "no number", id="beyond any count"),
        pytest.param(ONE_VOXEL, "no counts beyond single voxels", id="one hot voxel"),
        pytest.param(COUNTS[:, 15:16, 15:16], "no counts beyond single voxels", id="1 x 1"),
        pytest.param(COUNTS[11:14], "at least 8 rocking angles", id="three frames"),
        pytest.param(COUNTS[:0], "among 0", id="no frame"),
        pytest.param(COUNTS[:, :0], "2D array of real numbers", id="no rows"),
        pytest.param(COUNTS.astype(np.complex64), "complex64", id="complex"),
        pytest.param(COUNTS.astype(object), "object", id="objects"),
        pytest.param(COUNTS[:, :4, :4].astype("U8"), "<U8", id="text"),
        pytest.param(COUNTS[:, None, None], "2D array", id="five axes"),
        pytest.param(COUNTS * 1e-30, "500 valid counts", id="next to nothing"),
    ],
)
def test_what_no_crystal_can_be_had_of_is_told(frames, said):
    with pytest.raises(CdinnError, match=said):
        reconstructed(frames)


@pytest.mark.parametrize(
    ("angles", "error"),
    [
        (np.full(24, np.nan), InvalidInput),
        (np.zeros(24), IncompleteScan),
        (np.r_[0.01 * np.arange(23), 1e9], InvalidInput),
        (np.r_[0.01 * np.arange(23), np.inf], InvalidInput),
    ],
    ids=["NaN", "the motor never moved", "an encoder that jumped", "infinite"],
)
def test_angles_that_are_no_scan_are_told(angles, error):
    with pytest.raises(error, match="angle"):
        reconstructed(COUNTS, angles)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u4", "i8", "u8", "f2", "f8", "g"])
def test_every_real_type_is_counts(dtype):
    """Those that are too small for the counts are saturated where they are at their end."""
    with np.errstate(over="ignore", invalid="ignore"):
        top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else np.finfo("f2").max
        frames = np.minimum(COUNTS, min(top, 2**53)).astype(dtype)
    volume = prepare(assemble(RockingCurve(frames, 0.01 * np.arange(24))))
    assert volume.intensity.dtype == np.float32
    # A plateau has its brightest voxel anywhere.
    assert np.abs(np.subtract(find_peak(volume), (12, 16, 16))).max() < 10


@pytest.mark.parametrize("side", [3, 8])
def test_frames_of_few_pixels(side):
    middle = slice(16 - side // 2, 16 - side // 2 + side)
    result = reconstructed(COUNTS[:, middle, middle])
    assert np.isfinite(result.density).all()
    assert result.confidence < 0.5


@pytest.mark.parametrize(
    "readings",
    [
        {"count_time_s": np.zeros(24)},
        {"count_time_s": np.full(24, np.nan)},
        {"monitor": -np.ones(24)},
        {"monitor": np.r_[np.full(20, 1e300), np.full(4, 1e-300)]},
    ],
)
def test_exposures_that_say_nothing(readings):
    volume = assemble(RockingCurve(COUNTS, 0.01 * np.arange(24), **readings))
    assert np.isfinite(volume.intensity).all()
    assert np.abs(np.subtract(find_peak(volume), (12, 16, 16))).max() < 3


def test_frames_of_many_pixels():
    """16 million each: what is computed on is the peak and its surroundings."""
    frames = np.zeros((24, 4096, 4096), np.uint16)
    frames[:, 1000:1032, 2000:2032] = COUNTS
    frames[3, 77, 4000] = 65000
    began = time.process_time()
    result = reconstructed(frames)
    assert time.process_time() - began < 60
    assert max(result.density.shape) < 200
    assert result.chi2 < 0.05


def test_the_plan_asks_for_as_many_angles_as_a_crystal_needs():
    assert LEAST_ANGLES == FEWEST_SLICES

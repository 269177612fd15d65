import numpy as np
import pytest

from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.region import SIDE, box_around_peak, cut


def curve(frames):
    return RockingCurve(frames=frames, angles_deg=np.linspace(-0.1, 0.1, len(frames)))


def frames_with_peak(place, shape=(600, 700), dtype=np.uint16, points=9):
    rng = np.random.default_rng(0)
    frames = rng.poisson(0.1, (points, *shape)).astype(dtype)
    rows, columns = np.indices(shape)
    spot = 400 * np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / 8)
    profile = np.exp(-((np.arange(points) - points // 2) ** 2) / 4)
    return frames + (profile[:, None, None] * spot).astype(dtype)


@pytest.mark.parametrize("place", [(300, 350), (5, 690), (590, 20)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_the_box_holds_the_peak_and_is_no_larger_than_needed(place, dtype):
    frames = frames_with_peak(place, dtype=dtype)
    rows, columns = box_around_peak(curve(frames))
    assert rows.stop - rows.start == columns.stop - columns.start == SIDE
    assert rows.start <= place[0] < rows.stop
    assert columns.start <= place[1] < columns.stop
    assert cut(curve(frames), (rows, columns)).frames.shape == (9, SIDE, SIDE)


def test_what_stays_the_same_or_stands_alone_is_no_peak():
    frames = frames_with_peak((100, 100))
    frames[:, 400:410, 500:510] = 60_000  # a hot cluster
    frames[:, 300, :] = 65_535  # a gap
    frames[4, 550, 650] = 50_000  # a cosmic ray
    rows, columns = box_around_peak(curve(frames))
    assert rows.start <= 100 < rows.stop
    assert columns.start <= 100 < columns.stop
    holes = frames.astype(np.float32)
    holes[3, 200:230, 200:230] = np.nan
    assert box_around_peak(curve(holes)) == (rows, columns)


def test_small_frames_stay_whole_and_a_larger_volume_gets_a_larger_box():
    small = frames_with_peak((100, 100), (SIDE, 200))
    assert box_around_peak(curve(small)) == (slice(0, SIDE), slice(0, 200))
    large = frames_with_peak((300, 350))
    rows, columns = box_around_peak(curve(large), (9, 200, 20))
    assert rows.stop - rows.start == 400
    assert columns.stop - columns.start == SIDE


def test_frames_of_nothing_have_a_box_too():
    rows, columns = box_around_peak(curve(np.zeros((4, 300, 300), np.uint8)))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (SIDE, SIDE)


def test_one_frame_an_angle_may_have_an_axis_of_its_own():
    frames = frames_with_peak((300, 350))
    box = box_around_peak(curve(frames[:, None]))
    assert box == box_around_peak(curve(frames))
    assert cut(curve(frames[:, None]), box).frames.shape == (9, 1, SIDE, SIDE)

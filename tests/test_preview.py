import numpy as np
import pytest

from bluesky_cdinn.preview import SIDE, Frame, preview


def ball(n, radius):
    grid = np.indices((n, n, n)) - n // 2
    return (grid**2).sum(axis=0) <= radius**2


@pytest.mark.parametrize(("n", "radius", "step"), [(32, 8, 1), (64, 24, 1), (128, 40, 2), (65, 20, 1)])
def test_an_object_fits_its_frame_with_room_to_grow(n, radius, step):
    support = ball(n, radius)
    frame = Frame.around(support)
    assert frame.step == step
    density = support * np.exp(0.5j).astype(np.complex64)
    amplitude, phase = preview(density, support, frame)
    assert amplitude.shape == phase.shape == (3, SIDE, SIDE)
    assert amplitude.dtype == phase.dtype == np.float32
    for picture in amplitude:
        across = picture[SIDE // 2]
        assert across.sum() == pytest.approx((2 * (radius // step) + 1), abs=0.01)
        assert across[SIDE // 2] == pytest.approx(1)
        assert picture[0].max() == picture[-1].max() == 0
    assert phase[amplitude > 0] == pytest.approx(0.5)
    assert not phase[amplitude == 0].any()


def test_slices_go_through_the_middle_across_each_axis():
    density = np.zeros((16, 20, 24), np.complex64)
    density[8, 10, 12] = 3j
    density[8, 11, 12] = 1
    amplitude, phase = preview(density, density != 0, Frame())
    assert amplitude[:, 32, 32] == pytest.approx([3, 3, 3])
    assert phase[0, 32, 32] == pytest.approx(np.pi / 2)
    assert amplitude[0, 33, 32] == amplitude[2, 32, 33] == pytest.approx(1)
    assert amplitude[1].sum() == pytest.approx(3)


def test_nothing_has_a_frame_too():
    empty = np.zeros((8, 8, 8), np.complex64)
    amplitude, _ = preview(empty, empty != 0, Frame.around(empty != 0))
    assert not amplitude.any()

import numpy as np
import pytest

from bluesky_cdinn.rocking_grid import frame_shares, rocking_grid
from bluesky_cdinn.uneven import EVEN, fitted_shares, is_even


def slices(positions, values, measured, exposures=None):
    """Return slices at the rate of a frame of exposure one."""
    exposures = np.ones(len(positions)) if exposures is None else exposures
    made = []
    for share in fitted_shares(np.asarray(positions), exposures, measured):
        counts = sum(weight * values[i] * exposures[i] for i, weight in share.items())
        made.append(counts / sum(weight * exposures[i] for i, weight in share.items()) if share else np.nan)
    return np.array(made)


def fringes(positions, n=40):
    """Return a pattern that is oversampled three times: its fringes are three slices long."""
    x = np.asarray(positions) - n / 2
    return 1e4 * np.sinc(x / 6.3) ** 2 * (1.2 + np.cos(2 * np.pi * x / 9.1))


def test_frames_on_the_grid_are_summed_as_ever():
    positions = np.sort(np.tile(np.arange(10.0), 2))
    shares = fitted_shares(positions, np.ones(20), np.ones(10, bool))
    for index, share in enumerate(shares):
        assert share == pytest.approx({2 * index: 1.0, 2 * index + 1: 1.0}, abs=0.01)


@pytest.mark.parametrize("jitter", [0.1, 0.2, 0.3])
def test_jitter_is_undone(jitter):
    n = 40
    positions = np.arange(n) + np.random.default_rng(3).normal(size=n) * jitter
    found = slices(positions, fringes(positions), np.ones(n, bool))
    inside = slice(2, -2)
    error = np.abs(found - fringes(np.arange(n)))[inside].max()
    taken_as_it_is = np.abs(fringes(positions) - fringes(np.arange(n)))[inside].max()
    assert error < 0.35 * taken_as_it_is
    assert error < 0.04 * 1e4 * 2.2


def test_a_longer_exposure_counts_more():
    positions = np.array([0, 1, 2, 3, 4, 5, 3.0])
    exposures = np.array([1, 1, 1, 1, 1, 1, 3.0])
    values = np.array([5, 5, 5, 1, 5, 5, 9.0])
    found = slices(positions, values, np.ones(6, bool), exposures)
    assert found[3] == pytest.approx((1 + 3 * 9) / 4, rel=0.01)


def test_counts_stay_as_noisy_as_their_square_root_says():
    n, rate = 40, 400.0
    rng = np.random.default_rng(4)
    positions = np.arange(n) + rng.normal(size=n) * 0.2
    shares = fitted_shares(positions, np.ones(n), np.ones(n, bool))
    counts = rng.poisson(rate, (4000, n))
    for share in shares[3:-3]:
        made = counts[:, list(share)] @ np.array(list(share.values()))
        assert made.var() / made.mean() == pytest.approx(1.0, abs=0.12)


def test_nothing_is_made_up_in_a_gap():
    positions = np.concatenate([np.arange(10.0), np.arange(20.0, 30.0)]) + 0.2 * np.sin(np.arange(20.0))
    shares = frame_shares(positions, 30)
    assert [bool(share) for share in shares] == [i < 10 or i >= 20 for i in range(30)]
    for index, share in enumerate(shares):
        assert all((positions[frame] < 15) == (index < 15) for frame in share)


def test_a_small_jitter_is_left_alone():
    positions = np.arange(30) + 0.8 * EVEN * np.random.default_rng(1).normal(size=30)
    assert is_even(positions)
    assert frame_shares(positions, 30) == [{i: 1.0} for i in range(30)]


def test_steps_that_grow_keep_as_many_slices_as_angles():
    u = np.linspace(-1, 1, 64)
    first, step, n = rocking_grid(0.6 * u + 0.4 * u**3)
    assert (first, n) == (-1.0, 64)
    assert step == pytest.approx(2 / 63)


def test_repeats_at_uneven_angles_leave_no_end_of_the_scan_out():
    u = np.cumsum(np.linspace(0.6, 1.8, 60))
    angles = np.concatenate([u, u + np.random.default_rng(5).normal(0, 0.1, 60)])
    first, step, n = rocking_grid(angles)
    assert (first, first + step * (n - 1)) == pytest.approx((angles.min(), angles.max()))
    used = [frame for share in frame_shares((angles - first) / step, n) for frame in share]
    assert set(used) == set(range(120))


def test_a_frame_between_the_slices_of_a_coarse_wing_is_used():
    positions = np.concatenate([np.arange(0.5, 10, 2), np.arange(10.0, 20.0)])
    shares = frame_shares(positions, 20)
    assert {frame for share in shares for frame in share} == set(range(len(positions)))

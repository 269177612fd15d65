from itertools import pairwise

import numpy as np
import pytest
import scipy.fft
from crystals import crystal_and_counts, far_field, random_object

from bluesky_cdinn.grid import (
    FLOOR,
    SHARE,
    coarse_levels,
    fill_invalid,
    held_out_voxels,
    resample_intensity,
    signal_window,
    sufficient_shape,
    window_on_grid,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def spot(shape, width=2.0, height=1e6):
    """Return a Gaussian peak about n // 2."""
    axes = [np.exp(-0.5 * ((np.arange(n) - n // 2) / width) ** 2) for n in shape]
    return (height * np.einsum("a,b,c->abc", *axes)).astype(np.float32)


@pytest.mark.parametrize("shape", [(10, 11, 12), (9, 8, 7)])
@pytest.mark.parametrize("inner", [(4, 5, 6), (5, 4, 7), (9, 8, 7)])
def test_window_keeps_the_origin(shape, inner):
    point = np.zeros(shape)
    point[tuple(n // 2 for n in shape)] = 1
    cut = point[window_on_grid(shape, inner)]
    assert cut.shape == inner
    assert cut[tuple(n // 2 for n in inner)] == 1


@pytest.mark.parametrize(
    "shape", [(128, 128, 128), (201, 256, 250), (45, 64, 50), (33, 33, 33), (16, 128, 100)]
)
@pytest.mark.parametrize("size", [4, 11, 20, 40, 300])
def test_levels_climb_to_the_whole_grid(shape, size):
    levels = coarse_levels(spot(shape), (size,) * 3)
    assert levels[-1] == shape
    for axis, n in enumerate(shape):
        sides = [level[axis] for level in levels]
        assert sides == sorted(sides)
        assert all(n == m or (m % 2 == 0 and scipy.fft.next_fast_len(m) == m) for m in sides)
        assert all(fine <= 2 * coarse + 1 for coarse, fine in pairwise(sides))
        assert min(sides) >= min(n, FLOOR)
        # Still enough voxels across the crystal.
        assert sides[0] * size / n >= min(11, size) - 1e-9
    for coarse, fine in pairwise(levels):
        assert np.prod(coarse) <= 0.5 * np.prod(fine)


def test_coarsest_level_holds_nearly_all_counts():
    intensity = spot((128, 128, 128), width=20.0)
    levels = coarse_levels(intensity, (60, 60, 60))
    core = intensity[window_on_grid(intensity.shape, levels[0])]
    # An even window has one voxel less on its far side.
    assert core.sum(dtype=float) > 0.99 * SHARE**3 * intensity.sum(dtype=float)
    assert levels[0] > coarse_levels(spot((128, 128, 128)), (60, 60, 60))[0]


def test_a_background_does_not_count_for_the_coarsest_level():
    """Of all counts it is more than the crystal's."""
    alone = spot((96, 96, 96))
    background = np.full_like(alone, 2 * alone.sum() / alone.size)
    assert coarse_levels(alone + background, (40, 40, 40)) == coarse_levels(alone, (40, 40, 40))


def test_levels_of_an_empty_volume_still_end_with_it():
    assert coarse_levels(np.zeros((40, 50, 60), dtype=np.float32), (10, 10, 10))[-1] == (40, 50, 60)


def test_sufficient_shape_oversamples_twice_and_never_exceeds_the_measured():
    assert sufficient_shape((128, 128, 128), (20, 20, 20)) == (50, 50, 50)
    # Too little to gain: as measured, odd sizes too.
    assert sufficient_shape((45, 64, 51), (20, 25, 20)) == (45, 64, 51)
    shape = sufficient_shape((20, 256, 256), (30, 20, 20))
    assert shape[0] == 20
    assert all(n % 2 == 0 and n >= 40 for n in shape[1:])


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((48, 48, 48), (24, 24, 24)), ((45, 64, 51), (24, 30, 26)), ((40, 40, 40), (40, 20, 40))],
)
def test_band_limited_pattern_is_resampled_exactly(rng, shape, inner):
    density = np.zeros(inner, dtype=np.complex128)
    core = window_on_grid(inner, tuple(n // 2 - 1 for n in inner))
    density[core] = random_object(rng, density[core].shape)
    large = np.zeros(shape, dtype=np.complex128)
    large[window_on_grid(shape, inner)] = density
    fine = (1e3 * np.abs(far_field(large)) ** 2).astype(np.float32)
    direct = 1e3 * np.abs(far_field(density)) ** 2
    coarse = resample_intensity(fine, np.ones(shape, dtype=bool), inner)
    assert coarse.dtype == np.float32
    # Both transforms are orthonormal, so that the same field on fewer voxels has the same total power.
    np.testing.assert_allclose(coarse, direct, rtol=1e-3, atol=1e-4 * direct.max())
    assert coarse.sum(dtype=float) == pytest.approx(fine.sum(dtype=float), rel=1e-5)


def test_resampled_counts_are_still_poisson(rng):
    density = np.zeros((48, 48, 48), dtype=np.complex128)
    density[20:28, 20:28, 20:28] = 1
    expected = np.abs(far_field(density)) ** 2
    expected = expected / expected.max() * 1e4 + 2.0
    everywhere = np.ones(expected.shape, dtype=bool)
    mean = resample_intensity(expected.astype(np.float32), everywhere, (24, 24, 24))
    draws = [
        resample_intensity(rng.poisson(expected).astype(np.float32), everywhere, (24, 24, 24))
        for _ in range(40)
    ]
    variance = np.var(draws, axis=0)
    # Where counts are many, clipping at zero plays no part.
    bright = mean > 60
    assert bright.sum() > 100
    assert (variance[bright] / mean[bright]).mean() == pytest.approx(1, abs=0.15)


def test_invalid_voxels_are_filled_from_the_others_and_no_others_change(rng):
    _, counts = crystal_and_counts(6, 2.0, (32, 33, 34), oversampling=3)
    valid = rng.random(counts.shape) > 0.02
    valid[:, 20:22] = False
    filled = fill_invalid(np.where(valid, counts, np.float32(np.nan)), valid)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[valid], counts[valid])
    assert np.isfinite(filled).all()
    assert (filled >= 0).all()
    # Far better than the zeros that they would be.
    off = np.abs(np.sqrt(filled) - np.sqrt(counts))[~valid]
    assert np.sum(off**2) < 0.2 * counts[~valid].sum()
    np.testing.assert_array_equal(fill_invalid(counts, np.ones_like(valid)), counts)


def test_nothing_measured_is_filled_with_nothing():
    filled = fill_invalid(np.full((12, 12, 12), 7, dtype=np.float32), np.zeros((12, 12, 12), dtype=bool))
    assert (filled == 0).all()


@pytest.mark.parametrize("shape", [(40, 40, 40), (31, 44, 27)])
def test_held_out_voxels_are_valid_random_and_outside_the_core(shape):
    valid = np.random.default_rng(1).random(shape) > 0.2
    chosen = held_out_voxels(valid, 0.05, 0.3, np.random.default_rng(2))
    assert chosen.dtype == np.bool_
    assert not (chosen & ~valid).any()
    axes = [(np.arange(n) - n // 2) / (n / 2) for n in shape]
    radius = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    assert not chosen[radius <= 0.3].any()
    candidates = valid & (radius > 0.3)
    assert chosen.sum() / candidates.sum() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(chosen, held_out_voxels(valid, 0.05, 0.3, np.random.default_rng(2)))
    assert (chosen != held_out_voxels(valid, 0.05, 0.3, np.random.default_rng(3))).any()


def test_signal_window_holds_the_signal_about_its_peak():
    intensity = np.zeros((100, 150, 120), dtype=np.float32)
    intensity[30:70, 50:110, 55:65] = 50
    window = signal_window(intensity, (50, 80, 60))
    assert window[0] >= 40
    assert window[1] >= 60
    assert window[2] == FLOOR
    assert all(n % 2 == 0 and scipy.fft.next_fast_len(n) == n for n in window)
    # From a peak at its side the box must reach the whole way, both ways.
    assert signal_window(intensity, (31, 80, 60))[0] >= 2 * 38


def test_signal_window_is_bounded_both_ways(rng):
    everywhere = np.full((200, 200, 200), 9, dtype=np.float32)
    assert signal_window(everywhere, (100, 100, 100)) == (128, 128, 128)
    assert signal_window(everywhere, (100, 100, 100), most=64) == (64, 64, 64)
    empty = rng.poisson(0.05, (60, 60, 60)).astype(np.float32)
    assert signal_window(empty, (30, 30, 30)) == (FLOOR, FLOOR, FLOOR)


def test_signal_window_of_a_crystal_keeps_nearly_all_counts():
    _, counts = crystal_and_counts(2, 2.0, (64, 64, 64))
    window = signal_window(counts, (32, 32, 32))
    assert counts[window_on_grid(counts.shape, window)].sum() > 0.995 * counts.sum()

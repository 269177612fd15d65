"""Frames and pixels that count more than others are told by the pattern alone, and only those."""

import logging

import numpy as np
import pytest
from crystals import crystal_and_counts, far_field, volume_of

from bluesky_cdinn import evenness, quality
from bluesky_cdinn.evenness import (
    STEP,
    conjugate_gradients,
    evened,
    extent,
    frame_gains,
    gain_numbers,
    pixel_gains,
)
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.settings import ReconstructionOptions

SHAPE = (48, 48, 48)


def expected(seed=11, oversampling=5.0, peak=3e5, phase_range=2.0):
    density, _ = crystal_and_counts(seed, phase_range, SHAPE, peak=peak, oversampling=oversampling)
    return np.abs(far_field(density)) ** 2


def counted(pattern, seed=0):
    return np.random.default_rng(seed).poisson(pattern).astype(np.float32)


def everywhere(counts):
    return np.ones(counts.shape, bool)


def fast(gains, beyond=10):
    """Return what of gains changes faster than a crystal of this extent: the rest is hardly told."""
    lags = np.fft.fft(gains)
    return np.fft.ifft(np.where(np.abs(np.fft.fftfreq(len(gains)) * len(gains)) > beyond, lags, 0)).real


@pytest.mark.parametrize("spread", [0.03, 0.1])
def test_what_frames_count_is_told(spread):
    pattern = expected()
    gains = np.exp(spread * np.random.default_rng(1).standard_normal(SHAPE[0]))
    counts = counted(pattern * gains[:, None, None])
    found = frame_gains(counts, everywhere(counts))
    assert found is not None
    bright = pattern.sum((1, 2)) > 0.02 * pattern.sum((1, 2)).max()
    left, there = fast(gains / found), fast(gains)
    assert left[bright].std() < 0.3 * there[bright].std()
    assert np.corrcoef(fast(found)[bright], there[bright])[0, 1] > 0.97


@pytest.mark.parametrize("spread", [0.03, 0.1])
def test_what_pixels_count_is_told(spread):
    pattern = expected()
    gains = np.exp(spread * np.random.default_rng(2).standard_normal(SHAPE[1:]))
    counts = counted(pattern * gains)
    found = pixel_gains(counts, everywhere(counts))
    assert found is not None
    bright = pattern.sum(0) > 0.02 * pattern.sum(0).max()
    assert (gains / found)[bright].std() < 0.6 * gains[bright].std()
    assert np.corrcoef(found[bright], gains[bright])[0, 1] > 0.85


def test_the_halo_is_gone_that_uneven_frames_put_around_the_autocorrelation():
    pattern = expected()
    gains = np.exp(0.06 * np.random.default_rng(3).standard_normal(SHAPE[0]))
    even, uneven = counted(pattern), counted(pattern * gains[:, None, None])

    def halo(counts):
        lags = np.abs(np.fft.fftn(counts)) / counts.sum()
        return np.sqrt(np.mean(lags[14:-13, :8, :8] ** 2))

    mended = evened(volume_of(uneven)).intensity
    assert halo(mended) < 0.3 * halo(uneven)
    assert halo(mended) < 1.5 * halo(even)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("peak", [1e3, 1e5, 1e7])
def test_even_patterns_stay_as_they_are(seed, peak):
    volume = volume_of(counted(expected(seed, 4.0, peak, 1 + 3.0 * seed)))
    assert evened(volume) is volume


def test_a_beam_that_decays_slowly_is_left_to_the_object():
    pattern = expected()
    volume = volume_of(counted(pattern * np.linspace(1, 0.7, SHAPE[0])[:, None, None]))
    found = frame_gains(volume.intensity, volume.valid)
    assert found is None or found.std() < 0.05


def test_what_is_sampled_too_coarsely_tells_nothing():
    gains = np.exp(0.1 * np.random.default_rng(4).standard_normal(SHAPE[0]))
    volume = volume_of(counted(expected(oversampling=2.2) * gains[:, None, None]))
    assert evened(volume) is volume


def test_a_pattern_that_is_cut_tells_nothing_of_its_frames():
    counts = counted(expected(peak=1e7))[SHAPE[0] // 2 - 3 :]
    assert frame_gains(counts, everywhere(counts)) is None


def test_too_few_pixels_tell_nothing():
    counts = counted(expected())
    valid = np.zeros(counts.shape, bool)
    valid[:, 24, 22:27] = True
    assert frame_gains(counts, valid) is None


def test_pixels_behind_a_gap_are_not_asked():
    counts = counted(expected())
    valid = everywhere(counts)
    valid[:, :, 26:29] = False
    assert pixel_gains(np.where(valid, counts, 0), valid) is None


def test_the_counts_in_all_stay_and_the_history_tells_what_was_done():
    pattern, rng = expected(), np.random.default_rng(5)
    uneven = pattern * np.exp(0.04 * rng.standard_normal(SHAPE[0]))[:, None, None]
    volume = volume_of(counted(uneven * np.exp(0.04 * rng.standard_normal(SHAPE[1:]))))
    mended = evened(volume)
    assert mended.intensity.sum(dtype=float) == pytest.approx(volume.intensity.sum(dtype=float), rel=1e-6)
    assert mended.intensity.dtype == np.float32
    (step,) = mended.history
    assert step["step"] == STEP
    assert len(step["frame_gains"]) == SHAPE[0]
    numbers = gain_numbers(mended)
    assert numbers == {name: mended.history[-1][name] for name in ("frame_gain_rms", "pixel_gain_rms")}
    assert 0.02 < numbers["frame_gain_rms"] < 0.06
    assert 0.01 < numbers["pixel_gain_rms"] < 0.06
    assert gain_numbers(volume) == {}


def test_what_is_remarkable_is_said(caplog):
    gains = np.exp(0.12 * np.random.default_rng(6).standard_normal(SHAPE[0]))
    with caplog.at_level(logging.WARNING, logger="bluesky_cdinn.evenness"):
        mended = evened(volume_of(counted(expected() * gains[:, None, None])))
    (line,) = mended.history[-1]["warnings"]
    assert line.startswith("uneven frames: they differ by 1")
    assert line in caplog.messages


def test_frames_that_were_not_measured_stay_out(caplog):
    pattern, gains = expected(), np.exp(0.06 * np.random.default_rng(7).standard_normal(SHAPE[0]))
    counts = counted(pattern * gains[:, None, None])
    valid = everywhere(counts)
    valid[:4] = valid[-3:] = False
    counts[~valid] = np.nan
    mended = evened(volume_of(counts, valid))
    assert gain_numbers(mended)["frame_gain_rms"] > 0.02
    assert np.isnan(mended.intensity[~valid]).all()
    assert np.isfinite(mended.intensity[valid]).all()
    # Of a scan with a hole no frame's neighbours are known.
    valid[20] = False
    assert "frame_gain_rms" not in gain_numbers(evened(volume_of(counts, valid)))


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, 1e30, np.inf, np.nan])
def test_nonsense_is_left_to_others(value):
    volume = volume_of(np.full((16, 16, 16), value, np.float32))
    with np.errstate(all="ignore"):
        assert evened(volume) is volume


def test_nothing_measured_is_nothing_even():
    volume = volume_of(np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), bool))
    assert evened(volume) is volume


def test_the_extent_is_where_the_power_comes_to_rest():
    lag = np.abs(np.fft.fftfreq(64) * 64)
    power = 1 + 1e6 * np.clip(1 - lag / 10, 0, None) ** 4
    reach = extent(power)
    assert reach is not None
    assert 8 <= reach[0] <= 12
    assert extent(1 + 1e6 * np.clip(1 - lag / 28, 0, None) ** 4) is None


def test_conjugate_gradients_solve_what_is_positive_and_stop_where_it_is_not(monkeypatch):
    rng = np.random.default_rng(8)
    root = rng.normal(size=(12, 12))
    matrix, right = root @ root.T + np.eye(12), rng.normal(size=12)
    found = conjugate_gradients(lambda x: matrix @ x, right)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-6)
    assert not conjugate_gradients(lambda x: -x, right).any()
    monkeypatch.setattr(evenness, "ITERATIONS", 1)
    assert np.isfinite(conjugate_gradients(lambda x: matrix @ x, right)).all()
    assert not conjugate_gradients(lambda x: x, np.zeros(3)).any()


def test_a_crystal_comes_right_that_a_flickering_beam_hides():
    density, _ = crystal_and_counts(21, 3.0, SHAPE, peak=2e5, oversampling=5.0)
    gains = np.exp(0.08 * np.random.default_rng(9).standard_normal(SHAPE[0]))
    volume = volume_of(counted(np.abs(far_field(density)) ** 2 * gains[:, None, None]))
    on, off = (
        reconstruct(volume, ReconstructionOptions(seed=1, imperfections=on, start="autocorrelation"))
        for on in (True, False)
    )
    assert on.scalars["frame_gain_rms"] > 0.03
    assert "frame_gain_rms" not in off.scalars
    assert quality.compare(on.density, density).phase_rmse < 0.05
    assert on.chi2 < off.chi2

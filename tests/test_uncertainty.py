import numpy as np
import pytest

from bluesky_cdinn.phase_gradient import directional_gradient, gradient_sd, window_width_nm
from bluesky_cdinn.strain import strain_field
from bluesky_cdinn.uncertainty import MOST, bending, noise_chi2, phase_sd, surface_voxels

SHAPE = (24, 26, 22)
VOXEL = np.diag([4.0, 5.0, 6.0])
X = np.array([1.0, 0.0, 0.0])


def _places():
    return np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij"), -1)


def _ball(amplitude=100.0, phase=0.0):
    support = np.linalg.norm(_places(), axis=-1) < 8.5
    return (amplitude * support * np.exp(1j * phase * np.ones(SHAPE))).astype(np.complex64), support


def test_more_counts_a_flatter_phase_and_starts_that_agree_are_surer():
    density, support = _ball()
    bent = 0.02 * _places()[..., 0] ** 2
    least = phase_sd(density, support, 0.01)
    assert np.isnan(least[~support]).all()
    for other in (
        phase_sd(density / 10, support, 0.01),
        phase_sd(density, support, 0.2),
        phase_sd((density * np.exp(1j * bent)).astype(np.complex64), support, 0.01),
        phase_sd(density / 10, support, 0.01, misfit=10.0),
    ):
        assert (other[support] >= least[support]).all()
        assert np.median(other[support]) > 1.2 * np.median(least[support])
    edge = surface_voxels(support)
    assert least[edge].min() > least[support & ~edge].max()


def test_nobody_is_less_sure_than_one_who_knows_nothing():
    density, support = _ball(amplitude=1e-6)
    assert phase_sd(density, support, 0.1)[support].max() == pytest.approx(MOST)


def test_neither_ramp_nor_offset_nor_twin_changes_a_sigma():
    phase = 0.03 * _places()[..., 0] * _places()[..., 1]
    density, support = _ball()
    density = (density * np.exp(1j * phase)).astype(np.complex64)
    turned = (density * np.exp(1j * (0.7 + _places() @ [0.5, -0.8, 1.1]))).astype(np.complex64)
    np.testing.assert_allclose(bending(turned, support), bending(density, support), atol=2e-4)
    flipped = np.conj(density[::-1, ::-1, ::-1])
    mirrored = phase_sd(flipped, support[::-1, ::-1, ::-1], 0.1)[::-1, ::-1, ::-1]
    np.testing.assert_allclose(mirrored, phase_sd(density, support, 0.1), rtol=1e-4)


@pytest.mark.parametrize("length", [0.3, 1.0])
def test_the_error_of_a_slope_is_what_shared_errors_of_the_phase_make(length):
    # Noise of a known correlation: white noise through a Gaussian of length / sqrt(2).
    density, support = _ball()
    rng = np.random.default_rng(5)
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in SHAPE), indexing="ij")
    square = sum(f**2 for f in frequencies)
    gain = np.exp(-((2 * np.pi * length / np.sqrt(2)) ** 2) * square / 2) if length > 0.5 else np.ones(SHAPE)
    gradient = directional_gradient(density, support, VOXEL, X)
    stated = gradient_sd(gradient, support, np.where(support, 0.02, np.nan).astype(np.float32), length)
    found = []
    for _ in range(60):
        noise = np.fft.ifftn(np.fft.fftn(rng.normal(size=SHAPE)) * gain).real
        noise *= 0.02 / noise.std()
        noisy = (density * np.exp(1j * noise)).astype(np.complex64)
        found.append(directional_gradient(noisy, support, VOXEL, X).values)
    ratio = np.std(found, axis=0) / stated
    assert np.median(ratio) == pytest.approx(1.0, abs=0.08)
    assert np.sqrt(np.mean(ratio**2)) == pytest.approx(1.0, abs=0.12)


def test_a_window_is_as_wide_as_a_central_difference():
    density, support = _ball()
    gradient = directional_gradient(density, support, VOXEL, X)
    # Two voxels, as a box: its variance is 4 / 12.
    assert window_width_nm(gradient, VOXEL, X) == pytest.approx(np.sqrt(8 * np.log(2) / 3) * 4.0, rel=0.01)


def test_counting_noise_alone_leaves_its_chi2():
    rng = np.random.default_rng(1)
    expected = np.full((20, 20, 20), 50.0)
    counts = rng.poisson(expected)
    chi2 = np.sum((np.sqrt(counts) - np.sqrt(expected)) ** 2) / counts.sum()
    assert noise_chi2(counts.astype(np.float32)) == pytest.approx(chi2, rel=0.05)


def test_a_single_start_states_no_sigma():
    density, support = _ball()
    q = 30.0 * X
    alone = strain_field(density, support, VOXEL, q)
    assert alone.phase_sd is None
    assert alone.strain_sd is None
    assert strain_field(density, support, VOXEL, q, spread_rad=float("nan")).phase_sd is None
    both = strain_field(density, support, VOXEL, q, spread_rad=0.05)
    assert both.phase_sd is not None
    known = np.isfinite(both.strain)
    assert (both.strain_sd[known] > 0).all()
    assert both.scalars["phase_sd_rad"] == pytest.approx(float(np.nanmedian(both.phase_sd)))

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, far_field
from scipy.ndimage import gaussian_filter

from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.support import (
    autocorrelation,
    autocorrelation_support,
    below_ceiling,
    gaussian_blur,
    largest,
    modulus,
    phase_step,
    typical_amplitude,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def intensity_of(density):
    return to_corner(torch.from_numpy(np.abs(far_field(density)).astype(np.float32) ** 2))


def box(shape, sides, height=1.0):
    density = np.zeros(shape)
    density[tuple(slice(n // 2 - s // 2, n // 2 - s // 2 + s) for n, s in zip(shape, sides, strict=True))] = 1
    return height * density


def test_typical_amplitude_is_the_interiors_in_any_box():
    amplitude = torch.zeros(2, 8, 9, 10)
    amplitude[0, 2:4, 2:5, 1:3] = 3.0
    torch.testing.assert_close(typical_amplitude(amplitude).flatten(), torch.tensor([3.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_modulus_is_abs_and_never_zero(dtype):
    values = torch.randn(3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    values[0, 0, 0] = 0
    found = modulus(values)
    torch.testing.assert_close(found, values.abs())
    assert (found > 0).all()


def test_ceiling_cuts_what_is_above_and_keeps_the_rest(rng):
    image = torch.from_numpy(rng.normal(size=(2, 6, 6, 6)) + 1j * rng.normal(size=(2, 6, 6, 6)))
    support = (torch.rand(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    factor = below_ceiling(image.clone(), support, 1.1)
    limit = 1.1 * typical_amplitude(image.abs() * support)
    torch.testing.assert_close(
        (image * factor).abs(), torch.minimum(image.abs(), limit), rtol=1e-6, atol=1e-6
    )
    assert (factor <= 1).all()


def test_largest_is_exceeded_by_as_many_voxels(rng):
    values = torch.from_numpy(rng.random((3, 5, 6, 7)))
    for count in (1, 17, 209):
        assert ((values > largest(values, count)).sum((1, 2, 3)) == count).all()
    assert (largest(values, 210) == 0).all()


@pytest.mark.parametrize("shape", [(12, 16, 10), (9, 15, 11)])
def test_blur_is_the_periodic_gaussian(rng, shape):
    values = rng.random((2, *shape))
    reference = np.stack([gaussian_filter(v, 1.5, mode="wrap", truncate=8) for v in values])
    blurred = gaussian_blur(torch.from_numpy(values), 1.5).numpy()
    np.testing.assert_allclose(blurred, reference, atol=1e-3)
    np.testing.assert_allclose(blurred.sum((1, 2, 3)), values.sum((1, 2, 3)))


def test_autocorrelation_counts_the_pairs_of_points():
    density = box((12, 13, 14), (3, 2, 4))
    lags = to_centre(autocorrelation(intensity_of(density))).numpy()
    triangle = [
        np.clip(1 - abs(np.arange(n) - n // 2) / s, 0, 1)
        for n, s in zip((12, 13, 14), (3, 2, 4), strict=True)
    ]
    np.testing.assert_allclose(lags, np.einsum("a,b,c->abc", *triangle), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40, 40), (41, 36, 45)])
def test_support_of_a_centrosymmetric_body_is_little_more_than_the_body(shape):
    body = box(shape, (15, 11, 13), height=30.0) > 0
    support = to_centre(autocorrelation_support(intensity_of(30.0 * body))).numpy()
    # The autocorrelation of a box falls under the threshold a little before it ends.
    core = box(shape, (13, 9, 11)) > 0
    assert (support >= core).all()
    assert 1 <= support.sum() / body.sum() < 2.2
    np.testing.assert_array_equal(support[tuple(n // 2 for n in shape)], True)


def test_support_scales_with_the_body():
    sides = [(8, 8, 8), (16, 16, 16)]
    small, large = (
        int(autocorrelation_support(intensity_of(box((48, 48, 48), s, 30.0))).sum()) for s in sides
    )
    assert 4 < large / small < 9


def test_higher_threshold_gives_a_smaller_support():
    _, counts = crystal_and_counts(1, 2.0, (32, 32, 32))
    intensity = to_corner(torch.from_numpy(counts))
    loose, tight = (autocorrelation_support(intensity, level) for level in (0.003, 0.04))
    assert (loose >= tight).all()
    assert loose.sum() > tight.sum() > 0


@pytest.mark.parametrize("phase_range", [0.0, 2.0, 5.0])
def test_support_of_a_noisy_crystal_has_about_its_volume_and_holds_its_core(phase_range):
    density, counts = crystal_and_counts(4, phase_range, (40, 40, 40))
    support = to_centre(autocorrelation_support(to_corner(torch.from_numpy(counts)))).numpy()
    crystal = np.abs(density) > 0.5 * np.abs(density).max()
    assert 0.8 < support.sum() / crystal.sum() < 1.8
    axes = [np.arange(n) - n // 2 for n in density.shape]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    assert support[crystal & (distance < 4)].all()


def test_support_of_nothing_is_not_everything():
    support = autocorrelation_support(torch.zeros(16, 16, 16))
    assert not support.any()


def test_phase_step_is_the_spread_of_turns_from_voxel_to_voxel(rng):
    turns = rng.normal(scale=0.5, size=(2000, 1, 1))
    line = torch.from_numpy(np.exp(1j * turns.cumsum(axis=0)))
    assert phase_step(line) == pytest.approx(0.5, rel=0.05)
    # Along the second axis it turns as much again, independently.
    plane = line * line.flip(0).reshape(1, -1, 1)
    assert phase_step(plane) == pytest.approx(0.5 * 2**0.5, rel=0.05)


def test_a_ramp_is_no_phase_step():
    places = np.indices((12, 10, 8))
    density = torch.from_numpy(np.exp(1j * np.tensordot([0.9, -0.4, 2.0], places, axes=1)))
    assert phase_step(density) == pytest.approx(0, abs=1e-4)
    # Nor is what lies outside of the support, nor nothing at all.
    density[6:] = 0
    assert phase_step(density) == pytest.approx(0, abs=1e-4)
    assert phase_step(torch.zeros(4, 4, 4, dtype=torch.complex64)) == 0

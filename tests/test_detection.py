from itertools import pairwise

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts

from bluesky_cdinn.detection import Detection, mutual_coherence, without_blur
from bluesky_cdinn.forward import AXES, to_centre, to_corner
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.windows import measurement_window

SHAPE = (24, 20, 18)
BLUR = (0.6, 0.4, 0.9)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def field_of(rng, shape=SHAPE):
    """Return the field of a random object that takes half of each axis, origin at index 0."""
    density = torch.zeros(shape, dtype=torch.complex128)
    density[tuple(slice(0, n // 2) for n in shape)] = torch.from_numpy(
        rng.normal(size=[n // 2 for n in shape]) + 1j * rng.normal(size=[n // 2 for n in shape])
    )
    return torch.fft.fftn(density, dim=AXES, norm="ortho")


def imperfect(rng, shape=SHAPE):
    scales = 1 + 0.2 * rng.uniform(-1, 1, shape[0])
    background = torch.from_numpy(rng.uniform(0, 2, shape))
    return Detection(shape, BLUR, background, torch.from_numpy(scales))


def misfit(field, detection, magnitude):
    expected = detection.expected(field.abs().square())
    return ((expected + 0.375).sqrt() - (magnitude.square() + 0.375).sqrt()).square().sum()


def test_plain_detection_counts_the_field_and_projects_on_the_magnitudes(rng):
    phases = torch.exp(2j * torch.pi * torch.from_numpy(rng.uniform(size=SHAPE)))
    magnitude, other = (torch.from_numpy(rng.uniform(50, 100, SHAPE)) for _ in range(2))
    plain = Detection(SHAPE)
    torch.testing.assert_close(plain.expected(other.square()), other.square())
    imposed = plain.impose(other * phases, magnitude, None)
    # But for what few counts need.
    torch.testing.assert_close(imposed, magnitude * phases, rtol=0, atol=0.02)


def test_blur_is_an_average_over_turned_objects(rng):
    """Each mode of a partly coherent beam sees the pattern shifted by a fraction of a voxel."""
    density = torch.fft.ifftn(field_of(rng), dim=AXES, norm="ortho")
    blur = (0.0, 0.0, 0.7)
    places = torch.arange(SHAPE[2])
    steps = torch.linspace(-4, 4, 161, dtype=torch.float64) * blur[2]
    weights = torch.exp(-((steps / blur[2]) ** 2) / 2)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        turned = density * torch.exp(2j * torch.pi * step * places / SHAPE[2])
        total += weight * torch.fft.fftn(turned, dim=AXES, norm="ortho").abs().square()
    power = torch.fft.fftn(density, dim=AXES, norm="ortho").abs().square()
    torch.testing.assert_close(Detection(SHAPE, blur).expected(power), total, rtol=1e-4, atol=1e-4)


def test_blur_keeps_counts_and_is_its_own_adjoint(rng):
    detection = Detection(SHAPE, BLUR)
    first, second = (torch.from_numpy(rng.normal(size=SHAPE)) for _ in range(2))
    torch.testing.assert_close(detection.blurred(first).sum(), first.sum())
    left, right = (detection.blurred(first) * second).sum(), (first * detection.blurred(second)).sum()
    torch.testing.assert_close(left, right)


def test_imposing_is_the_gradient_step_of_the_misfit(rng):
    field, detection = field_of(rng), imperfect(rng)
    # Equal scales: else the step is shortened by the largest of them.
    detection = Detection(SHAPE, detection.blur, detection.background)
    magnitude = torch.from_numpy(rng.uniform(0.5, 2, SHAPE)) * field.abs().mean()
    known = torch.from_numpy(rng.uniform(size=SHAPE) < 0.8)
    wanted = field.clone().requires_grad_()
    expected = detection.expected(wanted.real.square() + wanted.imag.square())
    gap = (expected + 0.375).sqrt() - (magnitude.square() + 0.375).sqrt()
    (gap.square() * known).sum().backward()
    stepped = detection.impose(field.clone(), magnitude, known)
    torch.testing.assert_close(field - stepped, wanted.grad / 2)


def test_imposing_never_raises_the_misfit(rng):
    field, detection = field_of(rng), imperfect(rng)
    magnitude = detection.expected(field_of(rng).abs().square()).sqrt()
    misfits = [misfit(field, detection, magnitude)]
    for _ in range(20):
        detection.impose(field, magnitude, None)
        misfits.append(misfit(field, detection, magnitude))
    assert all(after <= before for before, after in pairwise(misfits))
    assert misfits[-1] < 0.2 * misfits[0]


def test_unfitted_voxels_keep_their_field_where_nothing_is_blurred(rng):
    field, known = field_of(rng), torch.from_numpy(rng.uniform(size=SHAPE) < 0.5)
    detection = Detection(SHAPE, background=torch.ones(SHAPE, dtype=torch.float64))
    imposed = detection.impose(field.clone(), torch.ones(SHAPE, dtype=torch.float64), known)
    torch.testing.assert_close(imposed[~known], field[~known])


def test_the_same_crystal_on_a_coarser_grid_is_counted_alike():
    """Half the voxels over the same range: each holds twice the counts along an axis, blurred half as far."""
    fine, coarse = (32, 32, 32), (16, 32, 32)
    background = torch.linspace(1, 3, 32)[:, None, None].expand(fine).contiguous()
    scales = torch.linspace(0.9, 1.1, 32)
    detection = Detection(fine, (0.8, 0.5, 0.5), to_corner(background), torch.fft.ifftshift(scales))
    other = detection.on(coarse)
    assert other.blur == pytest.approx((0.4, 0.5, 0.5))
    torch.testing.assert_close(to_centre(other.background), 2 * background[::2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fft.fftshift(other.scales), scales[::2], rtol=1e-4, atol=1e-4)


def test_a_window_has_the_voxels_of_the_whole(rng):
    detection = imperfect(rng)
    small = detection.window((10, 8, 6))
    assert small.blur == detection.blur
    cut = to_centre(detection.background)[7:17, 6:14, 6:12]
    torch.testing.assert_close(to_centre(small.background), cut)
    large = detection.window((30, 20, 18))
    torch.testing.assert_close(torch.fft.fftshift(large.scales)[3:27], torch.fft.fftshift(detection.scales))
    measurement = Measurement(torch.ones(SHAPE), detection=detection)
    assert measurement_window(measurement, (10, 8, 6)).detection.shape == (10, 8, 6)


def test_blur_is_undone_as_far_as_noise_lets_it():
    _, counts = crystal_and_counts(3, 2.0, (32, 32, 32))
    clean = to_corner(torch.from_numpy(counts))
    blurred = Detection((32, 32, 32), BLUR).expected(clean)
    again = without_blur(blurred, BLUR)
    assert (again - clean).norm() < 0.02 * clean.norm()
    assert (blurred - clean).norm() > 0.2 * clean.norm()
    assert again.min() >= 0


def test_coherence_is_one_at_no_lag():
    coherence = mutual_coherence(SHAPE, BLUR)
    assert coherence.shape == (24, 20, 10)
    assert coherence[0, 0, 0] == 1
    np.testing.assert_allclose(coherence[1, 0, 0], np.exp(-2 * (np.pi * 0.6 / 24) ** 2), rtol=1e-6)


def test_the_mutual_coherence_is_differentiable_by_its_blur():
    blur = torch.tensor([0.8, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
    shape = (8, 9, 10)
    torch.testing.assert_close(
        mutual_coherence(shape, blur).detach().float(), mutual_coherence(shape, blur.tolist())
    )
    assert torch.autograd.gradcheck(lambda sigmas: mutual_coherence(shape, sigmas), blur)

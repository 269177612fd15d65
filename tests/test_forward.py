import numpy as np
import pytest
import torch
from crystals import random_object

from bluesky_cdinn import quality
from bluesky_cdinn.forward import (
    amplitude_loss,
    backpropagate,
    poisson_deviance,
    propagate,
    to_centre,
    to_corner,
)

SHAPES = [(8, 8, 8), (7, 9, 5), (6, 7, 8)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("shape", SHAPES)
def test_propagation_is_the_discrete_transform_about_the_middle_voxel(rng, shape):
    density = random_object(rng, shape)
    field = propagate(tensor(density)).numpy()
    # The definition, summed out, at a few frequencies.
    places = [np.arange(n) - n // 2 for n in shape]
    for index in [(0, 0, 0), (3, 4, 2), tuple(n // 2 for n in shape)]:
        waves = [
            np.exp(-2j * np.pi * p * (i - n // 2) / n) for p, i, n in zip(places, index, shape, strict=True)
        ]
        expected = np.einsum("abc,a,b,c->", density, *waves) / np.sqrt(np.prod(shape))
        np.testing.assert_allclose(field[index], expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_propagation_keeps_the_norm(rng, shape):
    density = tensor(random_object(rng, (3, *shape)))
    norms = density.abs().square().sum((-3, -2, -1))
    torch.testing.assert_close(propagate(density).abs().square().sum((-3, -2, -1)), norms)


@pytest.mark.parametrize("shape", SHAPES)
def test_backpropagation_is_inverse_and_adjoint(rng, shape):
    x, y = tensor(random_object(rng, shape)), tensor(random_object(rng, shape))
    torch.testing.assert_close(backpropagate(propagate(x)), x)
    torch.testing.assert_close(
        torch.vdot(propagate(x).flatten(), y.flatten()), torch.vdot(x.flatten(), backpropagate(y).flatten())
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_origin_moves_from_the_middle_to_the_corner_and_back(rng, shape):
    point = torch.zeros(2, *shape)
    point[:, shape[0] // 2, shape[1] // 2, shape[2] // 2] = 1
    assert (to_corner(point)[:, 0, 0, 0] == 1).all()
    values = tensor(rng.normal(size=(2, *shape)))
    torch.testing.assert_close(to_centre(to_corner(values)), values)


@pytest.mark.parametrize("shape", SHAPES)
def test_intensity_knows_no_twin_place_or_phase(rng, shape):
    density = random_object(rng, shape)
    intensity = propagate(tensor(density)).abs().square()
    for equal in (
        quality.twin(density),
        np.roll(density, (1, -2, 3), (0, 1, 2)),
        quality.shift(density, (0.3, -1.7, 2.2)),
        density * np.exp(0.7j),
    ):
        torch.testing.assert_close(propagate(tensor(equal)).abs().square(), intensity)


def test_amplitude_loss_is_the_explicit_sum(rng):
    field, counts = random_object(rng, (2, 5, 6, 7)), rng.poisson(2.0, (5, 6, 7)).astype(float)
    valid = rng.random((5, 6, 7)) > 0.3
    explicit = [
        sum((abs(f[i]) - np.sqrt(counts[i])) ** 2 for i in zip(*np.nonzero(valid), strict=True))
        / counts[valid].sum()
        for f in field
    ]
    loss = amplitude_loss(tensor(field), tensor(np.sqrt(counts)), tensor(valid))
    np.testing.assert_allclose(loss, explicit)
    whole = amplitude_loss(tensor(field), tensor(np.sqrt(counts)))
    torch.testing.assert_close(
        whole, amplitude_loss(tensor(field), tensor(np.sqrt(counts)), torch.ones(5, 6, 7, dtype=torch.bool))
    )
    assert amplitude_loss(tensor(np.sqrt(counts) * np.exp(1j)), tensor(np.sqrt(counts))) < 1e-30


def test_masked_voxels_are_free(rng):
    field, counts = tensor(random_object(rng, (4, 5, 6))), tensor(rng.poisson(2.0, (4, 5, 6)).astype(float))
    valid = tensor(rng.random((4, 5, 6)) > 0.5)
    spoilt = torch.where(valid, counts, 1e6)
    torch.testing.assert_close(
        amplitude_loss(field, counts.sqrt(), valid), amplitude_loss(field, spoilt.sqrt(), valid)
    )
    power = field.abs().square()
    torch.testing.assert_close(poisson_deviance(power, counts, valid), poisson_deviance(power, spoilt, valid))


def losses(density, counts, valid):
    field = propagate(density)
    power = field.real.square() + field.imag.square()
    return amplitude_loss(field, counts.sqrt(), valid), poisson_deviance(power, counts, valid)


@pytest.mark.parametrize("which", [0, 1], ids=["amplitude", "poisson"])
def test_gradient_is_that_of_finite_differences(rng, which):
    shape = (4, 5, 6)
    density, direction = (tensor(random_object(rng, shape)) for _ in range(2))
    counts = tensor(rng.poisson(2.0, shape).astype(float))
    valid = tensor(rng.random(shape) > 0.2)
    density.requires_grad_()
    losses(density, counts, valid)[which].backward()
    # torch's gradient of a real function is df/d(re) + i df/d(im).
    along = (density.grad.conj() * direction).real.sum()
    with torch.no_grad():
        step = 1e-6
        ahead, behind = (losses(density + s * direction, counts, valid)[which] for s in (step, -step))
    torch.testing.assert_close(along, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)


def test_poisson_deviance_is_zero_where_exact_and_positive_elsewhere(rng):
    counts = torch.arange(1.0, 28.0, dtype=torch.float64).reshape(3, 3, 3)
    assert abs(float(poisson_deviance(counts, counts))) < 1e-12
    assert float(poisson_deviance(counts * 1.01, counts)) > 0
    assert float(poisson_deviance(counts * 0.99, counts)) > 0


def test_poisson_deviance_is_about_one_under_the_true_model(rng):
    expected = np.full((20, 20, 20), 50.0)
    deviance = poisson_deviance(tensor(expected), tensor(rng.poisson(expected).astype(float)))
    assert float(deviance) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("counts", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("power", [0.0, 1e-30, 1.0, 1e9])
def test_poisson_deviance_and_its_gradient_stay_finite(counts, power):
    model = torch.full((2, 2, 2), power, requires_grad=True)
    deviance = poisson_deviance(model, torch.full((2, 2, 2), counts))
    deviance.backward()
    assert torch.isfinite(deviance)
    assert deviance >= 0
    assert torch.isfinite(model.grad).all()


def test_an_empty_model_of_an_empty_detector_deviates_by_less_than_noise_does():
    nothing = torch.zeros(2, 2, 2)
    assert float(poisson_deviance(nothing, nothing)) == pytest.approx(2 * 0.05)
    assert float(poisson_deviance(torch.full((2, 2, 2), 0.05), nothing)) == pytest.approx(2 * 0.05)


def test_losses_of_a_batch_are_those_of_each(rng):
    fields = tensor(random_object(rng, (3, 4, 5, 6)))
    counts, valid = tensor(rng.poisson(2.0, (4, 5, 6)).astype(float)), tensor(rng.random((4, 5, 6)) > 0.2)
    for loss in (
        lambda f: amplitude_loss(f, counts.sqrt(), valid),
        lambda f: poisson_deviance(f.abs().square(), counts, valid),
    ):
        torch.testing.assert_close(loss(fields), torch.stack([loss(f) for f in fields]))

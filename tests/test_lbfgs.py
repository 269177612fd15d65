import copy

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, crystal_density, random_object

from bluesky_cdinn import quality
from bluesky_cdinn.bending import Bending
from bluesky_cdinn.forward import AXES, amplitude_loss, to_centre, to_corner
from bluesky_cdinn.lbfgs import LBFGS, Step, newton_step
from bluesky_cdinn.refine import ER, Measurement, Objects, measured_image, run


def finish(steps, objects, measurement):
    for _ in run(steps, objects, measurement):
        pass


def chi2_of(objects, measurement):
    field = torch.fft.fftn(objects.density, dim=AXES, norm="ortho")
    return amplitude_loss(field, measurement.magnitude, measurement.fitted)


def crystal_problem(seed=1, shape=(32, 32, 32)):
    """Return a crystal with noisy phases to start from, its measurement, and itself, origin at n // 2."""
    density, counts = crystal_and_counts(seed, 1.5, shape, peak=1e5)
    rng = np.random.default_rng([seed, 2])
    corner = to_corner(torch.from_numpy(density))
    noise = torch.from_numpy(rng.uniform(-1, 1, (1, *shape)).astype(np.float32))
    start = Objects.start(
        corner * torch.polar(torch.ones_like(noise), noise), (corner.abs() > 0).float()[None]
    )
    return start, Measurement(to_corner(torch.from_numpy(np.sqrt(counts)))), density


def unfitting_problem(rng):
    """Return two crystals of different supports in the middle of the grid, and data that nothing fits."""
    shape = (20, 22, 25)
    crystals = [crystal_density(seed, 2.0, shape, oversampling=2 + seed) for seed in (1, 2)]
    noise = random_object(rng, (2, *shape))
    density = torch.from_numpy(np.stack(crystals) * (1 + 0.1 * noise))
    support = torch.from_numpy(np.stack([abs(c) > 0.1 for c in crystals]).astype(float))
    magnitude = np.abs(np.fft.fftn(crystals[0] * 5, norm="ortho")) + rng.normal(size=shape)
    fitted = torch.from_numpy(rng.random(shape) > 0.05)
    measurement = Measurement(torch.from_numpy(np.maximum(magnitude, 0)), fitted)
    return Objects(density, support, torch.zeros(2, dtype=torch.float64)), measurement


def bfgs(density, support, measurement, count, smoothness):
    """Return one object after BFGS with its whole inverse Hessian, over the whole grid, and its chi2.

    Full memory is what a limited one is as long as it remembers all.
    """
    inside = support.reshape(-1) > 0
    bending = Bending.of(density * support, smoothness) if smoothness else None

    def gradient_and_chi2(x):
        whole = torch.zeros_like(density).reshape(-1)
        whole[inside] = torch.view_as_complex(x.reshape(-1, 2))
        whole = whole.reshape(density.shape)
        gap = whole - measured_image(whole, measurement)
        chi2 = gap.abs().square().sum() / measurement.power
        gap = gap * support
        if bending is not None:
            bending.add_gradient(whole, gap)
        return torch.view_as_real((gap).reshape(-1)[inside]).reshape(-1), chi2

    x = torch.view_as_real((density * support).reshape(-1)[inside].contiguous()).reshape(-1).clone()
    rate = 1.0 if bending is None else 1 / (1 + 48 * float(bending.weight))
    moves, changes, before, chi2 = [], [], None, None
    for _ in range(count):
        gradient, chi2 = gradient_and_chi2(x)
        if before is not None:
            changes.append(gradient - before)
            rate = float(moves[-1] @ changes[-1] / (changes[-1] @ changes[-1]))
        inverse = rate * torch.eye(len(x), dtype=x.dtype)
        for s, y in zip(moves, changes, strict=True):
            turn = torch.eye(len(x), dtype=x.dtype) - torch.outer(s, y) / (y @ s)
            inverse = turn @ inverse @ turn.T + torch.outer(s, s) / (y @ s)
        moves.append(-inverse @ gradient)
        before, x = gradient, x + moves[-1]
    whole = torch.zeros_like(density).reshape(-1)
    whole[inside] = torch.view_as_complex(x.reshape(-1, 2))
    return whole.reshape(density.shape), chi2


@pytest.mark.parametrize("place", [(0, 0, 0), (10, -9, 3)], ids=["middle", "edge"])
@pytest.mark.parametrize("smoothness", [0.0, 5.0])
def test_it_is_bfgs_as_long_as_it_remembers_all(rng, smoothness, place):
    objects, measurement = unfitting_problem(rng)
    expected = [
        bfgs(objects.density[i : i + 1], objects.support[i : i + 1], measurement, LBFGS.MEMORY, smoothness)
        for i in range(2)
    ]
    # Magnitudes don't tell where an object is; a step must not either.
    objects.density, objects.support = (v.roll(place, AXES) for v in (objects.density, objects.support))
    finish([LBFGS(LBFGS.MEMORY, smoothness)], objects, measurement)
    back = objects.density.roll([-s for s in place], AXES)
    for i, (density, chi2) in enumerate(expected):
        torch.testing.assert_close(back[i], density[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(objects.chi2[i], chi2, rtol=1e-5, atol=0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_it_gets_much_further_than_error_reduction_in_as_many_iterations():
    plain, measurement, _ = crystal_problem()
    fast = copy.deepcopy(plain)
    finish([ER(30)], plain, measurement)
    finish([LBFGS(30)], fast, measurement)
    settled = copy.deepcopy(fast)
    finish([LBFGS(200)], settled, measurement)
    floor = chi2_of(settled, measurement)
    assert chi2_of(fast, measurement) - floor < 0.1 * (chi2_of(plain, measurement) - floor)


def test_the_first_step_is_error_reduction_and_chi2_that_before_it():
    one, measurement, _ = crystal_problem()
    other = copy.deepcopy(one)
    before = chi2_of(one, measurement)
    finish([LBFGS(1)], one, measurement)
    finish([ER(1)], other, measurement)
    torch.testing.assert_close(one.density, other.density, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.chi2, before)


def test_steps_that_tell_nothing_of_the_curvature_are_not_used():
    gradient = torch.tensor([1 + 2j, 3 - 1j]).reshape(1, 2, 1, 1)
    rate = torch.full((1, 1, 1, 1), 0.5)
    move = torch.tensor([1j, 1 + 0j]).reshape(1, 2, 1, 1)
    flat, down = Step.of(move, torch.zeros_like(move)), Step.of(move, -move)
    for history in ([], [flat], [down], [Step.of(move, 2 * move).without(torch.tensor([True]))]):
        torch.testing.assert_close(newton_step(gradient, history, rate), -0.5 * gradient)
    # Along a step whose change is twice itself the curvature is 2, for all that is known.
    torch.testing.assert_close(newton_step(gradient, [Step.of(move, 2 * move)], rate), -0.5 * gradient)


def test_an_object_without_counts_vanishes():
    objects, measurement, _ = crystal_problem()
    dark = Measurement(torch.zeros_like(measurement.magnitude))
    finish([LBFGS(8, 100.0)], objects, dark)
    assert torch.isfinite(torch.view_as_real(objects.density)).all()
    assert float(objects.density.abs().max()) < 0.01


def test_smoothing_takes_noise_out_of_the_interior():
    rough, measurement, truth = crystal_problem()
    smooth = copy.deepcopy(rough)
    finish([LBFGS(30)], rough, measurement)
    finish([LBFGS(30, smoothness=100.0)], smooth, measurement)
    errors = [quality.compare(to_centre(o.density[0]).numpy(), truth).phase_rmse for o in (rough, smooth)]
    assert errors[1] < 0.5 * errors[0]

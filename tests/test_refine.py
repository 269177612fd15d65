import copy

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, crystal_density, random_object

from bluesky_cdinn import quality
from bluesky_cdinn.bending import Bending
from bluesky_cdinn.forward import AXES, amplitude_loss, poisson_deviance, to_centre, to_corner
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.refine import (
    ER,
    HIO,
    RAAR,
    BreakTwins,
    CentreObjects,
    GradientDescent,
    Measurement,
    Objects,
    ShrinkWrap,
    free_chi2,
    inner_product,
    measured_image,
    run,
    squared_norm,
)

SHAPE = (16, 18, 15)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fft(density):
    return np.fft.fftn(density, axes=AXES, norm="ortho")


def ifft(field):
    return np.fft.ifftn(field, axes=AXES, norm="ortho")


def random_problem(rng, count=3, dtype=np.complex128, masked=True):
    """Return objects and a measurement that nothing fits, in double precision by default."""
    real = np.float64 if dtype == np.complex128 else np.float32
    magnitude = np.sqrt(rng.poisson(3.0, SHAPE)).astype(real)
    fitted = torch.from_numpy(rng.random(SHAPE) > 0.1) if masked else None
    measurement = Measurement(torch.from_numpy(magnitude), fitted)
    support = torch.from_numpy((rng.random((count, *SHAPE)) > 0.6).astype(real))
    density = torch.from_numpy(random_object(rng, (count, *SHAPE), dtype)) * support
    return Objects(density, support, torch.full((count,), torch.nan, dtype=support.dtype)), measurement


def crystal_problem(seed=1, phase_range=1.5, shape=(32, 32, 32), peak=1e5, count=1, share=0.0):
    """Return a crystal with noisy phases to start from, its measurement, and itself, origin at n // 2."""
    density, counts = crystal_and_counts(seed, phase_range, shape, peak=peak)
    rng = np.random.default_rng([seed, 2])
    held = torch.from_numpy(rng.random(shape) < share) if share else None
    corner = to_corner(torch.from_numpy(density))
    support = (corner.abs() > 0).float().expand(count, *shape).clone()
    noise = torch.from_numpy(rng.uniform(-1, 1, (count, *shape)).astype(np.float32))
    held = None if held is None else to_corner(held)
    measurement = Measurement(
        to_corner(torch.from_numpy(np.sqrt(counts))), None if held is None else ~held, held
    )
    start = Objects.start(corner * torch.polar(torch.ones_like(noise), noise), support)
    return start, measurement, density


def finish(steps, objects, measurement):
    for state in run(steps, objects, measurement):
        objects = state
    return objects


def chi2_of(objects, measurement):
    field = torch.fft.fftn(objects.density, dim=AXES, norm="ortho")
    return amplitude_loss(field, measurement.magnitude, measurement.fitted)


def test_imposing_sets_fitted_magnitudes_and_leaves_the_rest(rng):
    objects, measurement = random_problem(rng)
    field = torch.from_numpy(fft(objects.density.numpy()))
    imposed = measurement.impose(field.clone())
    fitted = measurement.fitted
    assert fitted is not None
    wanted = measurement.magnitude.expand(field.shape)[:, fitted]
    torch.testing.assert_close(imposed[:, fitted].abs(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(imposed[:, ~fitted], field[:, ~fitted], rtol=1e-12, atol=0)
    lit = wanted > 0
    torch.testing.assert_close(imposed[:, fitted][lit].angle(), field[:, fitted][lit].angle())


def test_imposing_without_a_mask_sets_all_and_twice_changes_nothing(rng):
    objects, measurement = random_problem(rng, masked=False)
    field = torch.from_numpy(fft(objects.density.numpy()))
    once = measurement.impose(field.clone())
    torch.testing.assert_close(once.abs(), measurement.magnitude.expand(once.shape), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(measurement.impose(once.clone()), once, rtol=1e-6, atol=1e-6)


def test_imposing_on_a_dark_voxel_stays_finite():
    measurement = Measurement(torch.ones(2, 2, 2))
    assert torch.isfinite(measurement.impose(torch.zeros(1, 2, 2, 2, dtype=torch.complex64)).abs()).all()


def test_measurement_knows_its_power_and_its_noise():
    counts = torch.full((10, 10, 10), 16.0)
    fitted = torch.ones(10, 10, 10, dtype=torch.bool)
    fitted[0] = False
    measurement = Measurement(counts.sqrt(), fitted)
    assert measurement.power == pytest.approx(900 * 16)
    # sqrt of Poisson counts varies by 1/4 about its mean.
    assert measurement.noise == pytest.approx(0.25 / 16)
    assert Measurement(torch.zeros(4, 4, 4)).noise == 0


def test_starting_confines_to_the_support(rng):
    density = torch.from_numpy(random_object(rng, (2, *SHAPE), np.complex64))
    support = torch.zeros(2, *SHAPE)
    support[:, :5] = 1
    objects = Objects.start(density, support)
    assert (objects.density[:, 5:] == 0).all()
    assert torch.equal(objects.density[:, :5], density[:, :5])
    assert objects.chi2.isnan().all()


def test_keeping_and_joining(rng):
    objects, _ = random_problem(rng)
    swapped = objects.keep(torch.tensor([2, 0]))
    assert torch.equal(swapped.density[1], objects.density[0])
    both = swapped.join(objects)
    assert both.density.shape[0] == both.support.shape[0] == both.chi2.shape[0] == 5
    assert torch.equal(both.support[2:], objects.support)


def test_inner_products_are_those_of_numpy(rng):
    first, second = (random_object(rng, (3, *SHAPE)) for _ in range(2))
    expected = [np.vdot(a, b).real for a, b in zip(first, second, strict=True)]
    product = inner_product(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(product.flatten(), expected)
    norm = squared_norm(torch.from_numpy(first)).flatten()
    np.testing.assert_allclose(norm, np.sum(abs(first) ** 2, axis=(1, 2, 3)))


def numpy_image(density, measurement):
    field = fft(density)
    fitted = measurement.fitted.numpy()
    return ifft(np.where(fitted, measurement.magnitude.numpy() * np.exp(1j * np.angle(field)), field))


def numpy_hio(x, image, inside, beta):
    return np.where(inside, image, x - beta * image)


def numpy_raar(x, image, inside, beta):
    # beta / 2 (R_S R_M + 1) x + (1 - beta) P_M x, with the reflections R = 2 P - 1
    reflected = 2 * image - x
    return beta / 2 * (np.where(inside, reflected, -reflected) + x) + (1 - beta) * image


def numpy_er(x, image, inside, beta):
    return np.where(inside, image, 0)


@pytest.mark.parametrize(
    ("step", "formula"),
    [
        (HIO(3, beta=0.7), numpy_hio),
        (RAAR(3, beta=0.8), numpy_raar),
        (ER(3), numpy_er),
    ],
    ids=["HIO", "RAAR", "ER"],
)
def test_projections_are_their_formulas(rng, step, formula):
    objects, measurement = random_problem(rng)
    expected, inside = objects.density.numpy().copy(), objects.support.numpy() > 0
    seen = 0
    for state in step(objects, measurement):
        image = numpy_image(expected, measurement)
        expected = formula(expected, image, inside, getattr(step, "beta", None))
        np.testing.assert_allclose(state.density.numpy(), expected, atol=1e-6)
        seen += 1
    assert seen == 3


def boxed_problem(rng):
    """Return two crystals of different supports in the middle of the grid, and data that nothing fits."""
    shape = (20, 22, 25)
    crystals = [crystal_density(seed, 2.0, shape, oversampling=2 + seed) for seed in (1, 2)]
    noise = random_object(rng, (2, *shape))
    density = torch.from_numpy(np.stack(crystals) * (1 + 0.1 * noise))
    support = torch.from_numpy(np.stack([abs(c) > 0.1 for c in crystals]).astype(float))
    magnitude = np.abs(fft(crystals[0] * 5)) + rng.normal(size=shape)
    fitted = torch.from_numpy(rng.random(shape) > 0.05)
    measurement = Measurement(torch.from_numpy(np.maximum(magnitude, 0)), fitted)
    return Objects(density, support, torch.zeros(2, dtype=torch.float64)), measurement


@pytest.mark.parametrize("place", [(0, 0, 0), (10, -9, 3)], ids=["middle", "edge"])
@pytest.mark.parametrize(("step", "formula"), [(HIO(8), numpy_hio), (RAAR(8), numpy_raar), (ER(8), numpy_er)])
def test_projections_in_the_box_are_their_formulas(rng, step, formula, place):
    objects, measurement = boxed_problem(rng)
    objects.density, objects.support = (v.roll(place, AXES) for v in (objects.density, objects.support))
    expected, inside = objects.density.numpy().copy(), objects.support.numpy() > 0
    for state in step(objects, measurement):
        expected = formula(expected, numpy_image(expected, measurement), inside, getattr(step, "beta", None))
        np.testing.assert_allclose(state.density.numpy(), expected, atol=1e-6)


def test_no_iterations_change_nothing(rng):
    objects, measurement = random_problem(rng)
    before = objects.density.clone()
    for step in (HIO(0), RAAR(0), ER(0), LBFGS(0)):
        finish([step], objects, measurement)
    assert torch.equal(objects.density, before)


def test_ceiling_bounds_the_amplitude_inside(rng):
    objects, measurement = random_problem(rng)
    density = objects.density.numpy().copy()
    inside = objects.support.numpy() > 0
    finish([HIO(1, ceiling=1.1)], objects, measurement)
    image = numpy_image(density, measurement)
    a = np.abs(image) * inside
    limit = 1.1 * (a**2).sum(axis=AXES, keepdims=True) / a.sum(axis=AXES, keepdims=True)
    found = objects.density.numpy()
    assert (np.abs(found)[inside] <= np.broadcast_to(limit, found.shape)[inside] * (1 + 1e-6)).all()
    cut = np.minimum(1, limit / np.abs(image))
    np.testing.assert_allclose(found, np.where(inside, image * cut, density - 0.9 * image), atol=1e-6)


def test_a_high_ceiling_changes_nothing(rng):
    free, measurement = random_problem(rng)
    capped = copy.deepcopy(free)
    finish([HIO(4)], free, measurement)
    finish([HIO(4, ceiling=1e3)], capped, measurement)
    torch.testing.assert_close(capped.density, free.density)


def test_error_reduction_never_raises_chi2(rng):
    objects, measurement = random_problem(rng)
    before = chi2_of(objects, measurement)
    for state in run([ER(25)], objects, measurement):
        now = chi2_of(state, measurement)
        assert (now <= before * (1 + 1e-12)).all()
        before = now


def test_truth_is_a_fixed_point_of_every_projection():
    density = to_corner(torch.from_numpy(crystal_density(2, 2.0, (24, 24, 24)).astype(np.complex128)))
    support = (density.abs() > 0).double()[None]
    measurement = Measurement(torch.fft.fftn(density, norm="ortho").abs())
    for step in (HIO(5), RAAR(5), ER(5), LBFGS(5)):
        objects = Objects(density[None].clone(), support, torch.zeros(1))
        finish([step], objects, measurement)
        torch.testing.assert_close(objects.density[0], density, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighted", [(10.0, 0.0), (0.0, 0.05)])
def test_bending_gradient_is_autograds(weighted):
    crystal = crystal_density(3, 3.0, (24, 27, 22), oversampling=2).astype(np.complex128)
    pair = np.stack([crystal, 2 * np.roll(crystal, 3, axis=1)])
    density = to_corner(torch.from_numpy(pair + 0.02 * random_object(np.random.default_rng(0), pair.shape)))
    density = to_centre(density)
    bending = Bending.of(density, *weighted)
    assert all(inside.any() for inside in bending.inside)
    values = density.clone().requires_grad_()
    part = values[:, *bending.box]
    energy = torch.zeros((), dtype=torch.float64)
    for axis, inside in zip((1, 2, 3), bending.inside, strict=True):
        bent = torch.diff(part, n=2, dim=axis)
        energy = energy + 0.5 * (bending.weight * inside * bent.abs().square()).sum()
    energy.backward()
    gradient = torch.zeros_like(density)
    bending.add_gradient(density, gradient)
    assert float(gradient.abs().max()) > 0
    torch.testing.assert_close(gradient, values.grad)


def test_bending_leaves_out_the_edge_and_ramps():
    shape = (20, 20, 20)
    density = torch.zeros(shape, dtype=torch.complex128)
    density[4:16, 4:16, 4:16] = 1
    bending = Bending.of(density[None], 1.0)
    gradient = torch.zeros_like(density[None])
    bending.add_gradient(density[None], gradient)
    assert (gradient == 0).all()


@pytest.mark.parametrize("height", [0.0, 1.0])
def test_bending_of_an_object_without_an_interior_is_nothing(height):
    density = torch.zeros(1, 6, 6, 6, dtype=torch.complex64)
    density[0, 2, 2, 2] = height
    gradient = torch.zeros_like(density)
    Bending.of(density, 1.0).add_gradient(density, gradient)
    assert (gradient == 0).all()


RECIPE = [
    HIO(5, ceiling=1.2),
    RAAR(5),
    ShrinkWrap(0.15, sigma=1.2, max_voxels=2500),
    BreakTwins(),
    ER(3),
    CentreObjects(),
    LBFGS(6, smoothness=10.0),
]


def test_a_batch_goes_as_each_start_alone():
    batch, measurement, _ = crystal_problem(count=3)
    alone = [copy.deepcopy(batch).keep(torch.tensor([i])) for i in range(3)]
    finish(RECIPE, batch, measurement)
    for i, single in enumerate(alone):
        finish(RECIPE, single, measurement)
        assert torch.equal(single.support[0], batch.support[i])
        assert quality.similarity(single.density[0].numpy(), batch.density[i].numpy()) > 1 - 1e-4
        torch.testing.assert_close(single.chi2[0], batch.chi2[i], rtol=2e-2, atol=0)


def test_starts_may_have_a_measurement_each(rng):
    problems = [random_problem(np.random.default_rng(seed), count=1) for seed in (1, 2)]
    both = problems[0][0].join(problems[1][0])
    measurements = [measurement for _, measurement in problems]
    joined = Measurement(
        *(torch.stack([getattr(m, name) for m in measurements]) for name in ("magnitude", "fitted"))
    )
    finish([HIO(3, ceiling=1.2), RAAR(3), ER(3)], both, joined)
    for start, (objects, measurement) in enumerate(problems):
        finish([HIO(3, ceiling=1.2), RAAR(3), ER(3)], objects, measurement)
        torch.testing.assert_close(both.density[start], objects.density[0])


def test_held_out_voxels_do_not_touch_the_fit():
    objects, measurement, _ = crystal_problem(share=0.05)
    other = copy.deepcopy(objects)
    assert measurement.held_out is not None
    spoilt = Measurement(
        torch.where(measurement.held_out, 1e3, measurement.magnitude),
        measurement.fitted,
        measurement.held_out,
    )
    finish(RECIPE, objects, measurement)
    finish(RECIPE, other, spoilt)
    assert torch.equal(objects.density, other.density)
    assert not torch.equal(free_chi2(objects.density, measurement), free_chi2(other.density, spoilt))


def test_free_chi2_falls_as_the_fit_finds_the_crystal():
    objects, measurement, _ = crystal_problem(share=0.05)
    before = free_chi2(objects.density, measurement)
    finish([LBFGS(40)], objects, measurement)
    assert free_chi2(objects.density, measurement) < 0.5 * before


def test_gradient_descent_lowers_both_losses():
    for loss in ("amplitude", "poisson"):
        objects, measurement, _ = crystal_problem(share=0.05)
        counts = measurement.magnitude.square()

        def losses(density, measurement=measurement, counts=counts):
            field = torch.fft.fftn(density, dim=AXES, norm="ortho")
            return (
                float(amplitude_loss(field, measurement.magnitude, measurement.fitted)),
                float(poisson_deviance(field.abs().square(), counts, measurement.fitted)),
            )

        before = losses(objects.density)
        outside = objects.support == 0
        finish([GradientDescent(40, loss)], objects, measurement)
        after = losses(objects.density)
        assert after[0] < 0.7 * before[0]
        assert after[1] < 0.7 * before[1]
        assert (objects.density[outside] == 0).all()
        assert not objects.density.requires_grad
        assert float(objects.chi2) < 0.7 * before[0]


def test_gradient_descent_works_where_the_caller_wants_no_gradients():
    objects, measurement, _ = crystal_problem()
    before = chi2_of(objects, measurement)
    with torch.no_grad():
        finish([GradientDescent(10)], objects, measurement)
    assert chi2_of(objects, measurement) < before


def test_projection_on_the_data_is_the_nearest_that_fits(rng):
    objects, measurement = random_problem(rng)
    image = measured_image(objects.density.clone(), measurement)
    zero = chi2_of(Objects(image, objects.support, objects.chi2), measurement)
    assert (zero < 1e-12).all()
    distance = squared_norm(objects.density - image).flatten() / measurement.power
    torch.testing.assert_close(distance, chi2_of(objects, measurement))


@pytest.mark.parametrize("most", [None, 300, 900])
def test_shrink_wrap_finds_the_crystal_within_its_room(most):
    objects, measurement, truth = crystal_problem()
    objects.density = to_corner(torch.from_numpy(truth))[None].clone()
    objects.support = torch.ones_like(objects.support)
    crystal = np.abs(truth) > 0.5 * quality.typical_amplitude(truth)
    finish([ShrinkWrap(0.3, sigma=0.7, max_voxels=most)], objects, measurement)
    support = to_centre(objects.support[0]).numpy() > 0
    if most is None or most > crystal.sum() * 1.2:
        assert (support & crystal).sum() / (support | crystal).sum() > 0.8
    if most is not None:
        assert support.sum() <= most
        assert (support <= crystal).mean() > 0.99
    assert set(objects.support.unique().tolist()) <= {0.0, 1.0}


def test_shrink_wrap_without_smoothing_is_a_threshold():
    density = torch.zeros(1, 6, 6, 6, dtype=torch.complex64)
    density[0, 1:3, 1:3, 1:3] = 2
    density[0, 4, 4, 4] = 0.3
    objects = Objects(density, torch.ones(1, 6, 6, 6), torch.zeros(1))
    finish([ShrinkWrap(0.2, sigma=0)], objects, Measurement(torch.ones(6, 6, 6)))
    assert torch.equal(objects.support > 0, density.abs() > 1)


@pytest.mark.parametrize("shape", [(24, 24, 24), (25, 22, 27)])
@pytest.mark.parametrize("step", [(0, 0, 0), (9, -4, 12)])
def test_centring_keeps_the_intensity_and_brings_the_object_home(shape, step):
    density = to_corner(torch.from_numpy(crystal_density(2, 2.0, shape))).roll(step, (0, 1, 2))
    support = (density.abs() > 0.2).float()
    objects = Objects(density[None].clone(), support[None].clone(), torch.zeros(1))
    finish([CentreObjects()], objects, Measurement(torch.ones(shape)))
    before, after = (torch.fft.fftn(d).abs() for d in (density, objects.density[0]))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert torch.equal(objects.support[0] > 0, objects.density[0].abs() > 0.2)
    weight = objects.density[0].abs() * objects.support[0]
    # Away from the array's edge, where the box that `polish` cuts out must not run through it.
    places = weight.nonzero().double()
    middle = (places * weight[weight > 0][:, None]).sum(0) / weight.sum()
    assert max(abs(float(m) - n // 2) for m, n in zip(middle, to_centre(weight).shape, strict=True)) < 1


def test_breaking_twins_empties_half_a_box_once(rng):
    objects, measurement = random_problem(rng)
    before = objects.density.clone()
    assert len(list(BreakTwins(axis=-2)(objects, measurement))) == 1
    assert (objects.density[..., 9:, :] == 0).all()
    assert torch.equal(objects.density[..., :9, :], before[..., :9, :])


def test_a_recipe_yields_after_each_iteration_and_can_be_left_at_any(rng):
    objects, measurement = random_problem(rng)
    assert len(list(run([HIO(3), ShrinkWrap(), ER(2)], objects, measurement))) == 6
    steps = run([ER(1000)], objects, measurement)
    assert next(steps) is objects
    steps.close()

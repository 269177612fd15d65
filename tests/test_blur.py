"""A blur is told of the object together with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detected import SHAPE, known_crystal, quiet

from bluesky_cdinn.blur import Fit, coherent_misfit, deviance, fitted_blur, settled, under
from bluesky_cdinn.detection import COHERENT, Detection
from bluesky_cdinn.errors import Cancelled
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.phasing import SMOOTHNESS
from bluesky_cdinn.refine import run

START = (0.35, 0.35, 0.35)


def fitted_without(detection, peak=1e6):
    """Return a crystal as it comes out where its pattern is taken for coherent."""
    objects, measurement = known_crystal(detection, peak)
    for _ in run([LBFGS(40, SMOOTHNESS)], objects, measurement):
        pass
    return objects, measurement


@pytest.mark.parametrize("blur", [(0.5, 0.5, 0.5), (0.8, 0.3, 0.5), (0.0, 0.7, 0.7)])
def test_the_blur_is_told_of_an_object_that_was_fitted_without(blur):
    known = fitted_without(Detection(SHAPE, blur))
    width, _ = fitted_blur(*known, SMOOTHNESS, quiet, START, alike=True)
    assert np.ptp(width) == 0
    found, misfit = fitted_blur(*known, SMOOTHNESS, quiet, width, alike=False)
    np.testing.assert_allclose(found, blur, atol=0.1)
    assert misfit < 0.7 * coherent_misfit(*known, SMOOTHNESS, quiet)


def test_of_a_coherent_pattern_none_is_looked_for():
    assert coherent_misfit(*fitted_without(None), SMOOTHNESS, quiet) is None


@pytest.mark.parametrize("level", [0.3, 1.0])
def test_a_background_is_not_taken_for_blur(level):
    known = fitted_without(Detection(SHAPE, background=torch.full(SHAPE, level)), 1e5)
    coherent = settled(*known, SMOOTHNESS, quiet)
    without, with_blur = (Fit.of(coherent, known[1], sigmas) for sigmas in ((), START))
    for fit in (without, with_blur):
        for _ in fit.iterations():
            pass
    assert with_blur.misfit() > 0.97 * without.misfit()
    # The object has taken some of it in before.
    assert 0.2 * level < float((without.values[1].detach() * without.scales)[-1]) ** 2 < 1.1 * level


def test_what_a_fit_expects_is_what_a_detection_does():
    objects, measurement = known_crystal()
    fit = Fit.of(objects, measurement, (0.8, 0.3, 0.5))
    density, numbers = fit.values
    seen = Detection(SHAPE, (0.8, 0.3, 0.5), torch.full(SHAPE, 0.05))
    power = torch.fft.fftn(objects.density, dim=(-3, -2, -1), norm="ortho").abs().square()
    # Rounding goes with the peak of 1e6 counts.
    torch.testing.assert_close(
        fit.expected(density, numbers * fit.scales), seen.expected(power), rtol=1e-5, atol=0.5
    )
    assert fit.blur == pytest.approx((0.8, 0.3, 0.5))


def test_a_fit_s_numbers_weigh_as_much_as_its_voxels():
    """A step of one, along any of them, moves the square roots of counts by about one."""
    objects, measurement = known_crystal(Detection(SHAPE, (0.5, 0.5, 0.5)))
    fit = Fit.of(objects, measurement, (0.5, 0.4, 0.6))
    density, numbers = fit.values
    before = fit.roots(density, numbers * fit.scales)
    for unit in torch.eye(4):
        moved = fit.roots(density, (numbers + 0.1 * unit) * fit.scales) - before
        assert float(moved.norm()) == pytest.approx(0.1, rel=0.2)


def test_voxels_that_are_not_fitted_say_nothing():
    objects, measurement = known_crystal(Detection(SHAPE, (0.5, 0.5, 0.5)))
    spoilt = measurement.magnitude.clone()
    spoilt[~measurement.fitted] = 1000
    one = fitted_blur(objects, measurement, SMOOTHNESS, quiet, START, alike=True)
    other = fitted_blur(objects, replace(measurement, magnitude=spoilt), SMOOTHNESS, quiet, START, alike=True)
    assert one[0] == pytest.approx(other[0])


def test_the_fit_can_be_stopped_and_leaves_the_object_as_it_was():
    objects, measurement = known_crystal(Detection(SHAPE, (0.5, 0.5, 0.5)))
    before, seen = objects.density.clone(), []

    def stop(state):
        seen.append(state)
        if len(seen) == 20:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fitted_blur(objects, measurement, SMOOTHNESS, stop, START, alike=False)
    assert torch.equal(objects.density, before)
    assert deviance(objects, under(measurement, COHERENT)) > 2 * deviance(
        objects, under(measurement, (0.5,) * 3)
    )

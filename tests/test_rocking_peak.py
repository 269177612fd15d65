"""Where a rocking curve has its peak."""

import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.rocking_peak import rocking_peak

ANGLES = np.linspace(-0.5, 0.5, 41)


def curve(centre=0.1, fwhm=0.12, height=1e4, background=50.0):
    return background + height * np.exp(-4 * np.log(2) * ((ANGLES - centre) / fwhm) ** 2)


@pytest.mark.parametrize("centre", [-0.2, 0.0, 0.113])
@pytest.mark.parametrize("fwhm", [0.06, 0.12, 0.25])
def test_tells_centre_and_width_of_a_peak(centre, fwhm):
    peak = rocking_peak(ANGLES, curve(centre, fwhm))
    assert peak.centre_deg == pytest.approx(centre, abs=0.004)
    assert peak.fwhm_deg == pytest.approx(fwhm, rel=0.1)
    assert not peak.cut
    assert peak.significance > 100


@pytest.mark.parametrize(("centre", "end"), [(-0.5, "first"), (-0.49, "first"), (0.5, "last"), (0.6, "last")])
def test_tells_which_end_cuts_the_peak_off(centre, end):
    assert rocking_peak(ANGLES, curve(centre)).cut == end


def test_a_peak_between_two_points_is_as_wide_as_a_step_at_least():
    counts = np.zeros(41)
    counts[20] = 100
    peak = rocking_peak(ANGLES, counts)
    assert peak.fwhm_deg >= np.diff(ANGLES).min()
    assert peak.centre_deg == pytest.approx(0)


def test_noise_alone_is_not_significant():
    counts = np.random.default_rng(0).poisson(100, 41)
    assert rocking_peak(ANGLES, counts).significance < 5


def test_a_curve_without_any_counts_has_no_height():
    assert rocking_peak(ANGLES, np.zeros(41)).height == 0


@pytest.mark.parametrize("angles", [[0, 1], [0, 1, 1], [2, 1, 0]])
def test_refuses_what_is_no_curve(angles):
    with pytest.raises(InvalidInput, match="rising"):
        rocking_peak(angles, np.ones(len(angles)))

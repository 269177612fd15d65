"""Resolution and edge width: right for what is known, a bound where the volume ends it."""

import numpy as np
import pytest
from scipy import ndimage

from bluesky_cdinn import report, resolution


def halves(rng, noise, shape=(32, 32, 32), counts=1e3):
    """Return two half-sets of a white object, with noise beyond half of the reach."""
    common = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    axes = [(np.arange(n) - n // 2) / (n / 2) for n in shape]
    radius = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    apart = [noise * (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * (radius > 0.5) for _ in "ab"]
    fields = np.stack([common + one for one in apart]).astype(np.complex64)
    return resolution.HalfSets(fields, np.full(shape, counts, np.float32), 0.1)


def test_what_halves_share_is_resolved_and_no_more():
    rng = np.random.default_rng(960200)
    basis = np.diag([0.02, 0.01, 0.01])
    curve, scalars = resolution.resolutions(halves(rng, 10.0), basis, np.array([0.0, 0.0, 26.0]))
    assert curve.shape[0] == 2
    assert scalars["resolution_voxels"] == pytest.approx(2, rel=0.15)
    assert scalars["resolution_nm"] == pytest.approx(2 * scalars["resolution_limit_nm"], rel=0.15)
    assert scalars["resolution_x_nm"] == pytest.approx(0.5 * scalars["resolution_y_nm"], rel=0.4)
    assert not report.is_bound(scalars)


def test_without_noise_it_is_a_bound_and_without_photons_nothing():
    rng = np.random.default_rng(960201)
    _, scalars = resolution.resolutions(halves(rng, 0.0), 0.01 * np.eye(3), np.array([0.0, 0.0, 26.0]))
    assert report.is_bound(scalars)
    assert dict(report.number_rows(scalars))["resolution"].startswith("≤")
    _, scalars = resolution.resolutions(halves(rng, 0.0, counts=1e-3))
    assert scalars["resolution_voxels"] > 10
    assert "resolution_nm" not in scalars


def test_where_no_shell_is_known_nothing_is_said():
    rng = np.random.default_rng(960202)
    assert resolution.resolutions(halves(rng, 0.0, shape=(3, 3, 3))) == (None, {})


@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_a_blurred_edge_is_as_wide_as_its_blur(sigma):
    places = np.stack(np.meshgrid(*[np.arange(48) - 24.0] * 3, indexing="ij"))
    ball = (np.linalg.norm(places, axis=0) < 14).astype(float)
    blurred = ndimage.gaussian_filter(ball, sigma).astype(np.complex64)
    widths = resolution.edge_widths(blurred, abs(blurred) > 0.1, 5 * np.eye(3), np.array([26.0, 0.0, 0.0]))
    for name in ("edge_width_nm", "edge_width_x_nm", "edge_width_q_nm"):
        assert widths[name] == pytest.approx(5 * 2.355 * sigma, rel=0.12)

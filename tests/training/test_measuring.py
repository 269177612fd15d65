from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdinn.forward import AXES, backpropagate, propagate, to_centre
from bluesky_cdinn.training.measuring import Conditions, measure
from bluesky_cdinn.training.procedural import Recipe, procedural_crystals

SIDE = 32
IDEAL = Conditions((1e6, 1e6), background=0, blurred=0, gap=0, frames=0, beamstop=0, displaced=0)


@pytest.fixture(scope="module")
def crystals():
    return procedural_crystals(6, SIDE, torch.Generator().manual_seed(0), Recipe((0.5, 4.0)))


def measured(crystals, seed=0, **changes):
    return measure(crystals, SIDE, torch.Generator().manual_seed(seed), replace(IDEAL, **changes))


def counts_of(batch):
    return to_centre(batch.magnitude).square()


def test_counts_are_poisson_about_the_crystals_diffraction(crystals):
    batch = measured(crystals)
    expected = propagate(batch.truth).abs().square()
    expected = expected * (1e6 / expected.amax(AXES, keepdim=True))
    pull = (counts_of(batch) - expected) / expected.clamp_min(1).sqrt()
    well_counted = expected > 20
    assert pull[well_counted].std() == pytest.approx(1, abs=0.05)
    assert abs(float(pull[well_counted].mean())) < 0.05
    assert batch.measured.all()
    assert batch.facts["counts"].tolist() == pytest.approx([1e6] * 6)


def test_the_truth_is_the_crystal_as_the_window_shows_it(crystals):
    batch = measured(crystals)
    fine = crystals.density.shape[-1]
    low = fine // 2 - SIDE // 2
    for density, truth in zip(crystals.density, batch.truth, strict=True):
        seen, field = propagate(density[None])[0], propagate(truth[None])[0]
        # The peak's centre may lie a voxel or two off: the window is the one of all shifts that fits.
        windows = [
            seen[tuple(slice(low + s - 2, low + s - 2 + SIDE) for s in shift)]
            for shift in np.ndindex(5, 5, 5)
        ]
        likeness = [float((field.conj() * w).sum().abs() / (field.norm() * w.norm())) for w in windows]
        assert max(likeness) > 0.97
        assert truth.abs().max() < 1.6


def test_the_peak_lies_at_the_centre(crystals):
    counts = counts_of(measured(crystals)).numpy()
    for one in counts:
        bright = np.where(one > 0.02 * one.max(), one, 0)
        places = np.indices(bright.shape).reshape(3, -1)
        np.testing.assert_allclose(places @ bright.ravel() / bright.sum(), SIDE // 2, atol=1.0)


def test_a_gap_hides_a_slab_and_nothing_else_changes(crystals):
    batch = measured(crystals, gap=1.0)
    assert (batch.magnitude[~batch.measured] == 0).all()
    for hidden in ~to_centre(batch.measured):
        rows, columns = hidden.any(2).any(0), hidden.any(1).any(0)
        width = min(int(rows.sum()), int(columns.sum()))
        assert 1 <= width <= 4
        assert int(hidden.sum()) == width * SIDE * SIDE
        assert not hidden[SIDE // 2, SIDE // 2, SIDE // 2]


def test_missing_frames_are_whole_frames_and_leave_the_peak(crystals):
    batch = measured(crystals, frames=1.0)
    for valid in to_centre(batch.measured):
        by_frame = valid.flatten(1)
        assert (by_frame.all(1) | ~by_frame.any(1)).all()
        assert by_frame[SIDE // 2].all()
        assert by_frame.any(1).sum() > SIDE // 2


def test_a_beamstop_covers_the_centre(crystals):
    hidden = ~to_centre(measured(crystals, beamstop=1.0).measured)
    assert hidden[:, SIDE // 2, SIDE // 2, SIDE // 2].all()
    assert (hidden.sum(AXES) < 40).all()


def test_partial_coherence_lowers_contrast_and_keeps_the_autocorrelation_near_its_centre(crystals):
    sharp = counts_of(measured(crystals, seed=4))
    blurred = counts_of(measured(crystals, seed=4, blurred=1.0))
    lags_sharp, lags_blurred = (backpropagate(c.to(torch.complex64)).abs() for c in (sharp, blurred))
    centre = (slice(None), *[SIDE // 2] * 3)
    ratio = (lags_blurred / lags_blurred[centre][:, None, None, None]) / (
        lags_sharp / lags_sharp[centre][:, None, None, None]
    )
    near, far = ratio[:, SIDE // 2, SIDE // 2, SIDE // 2 + 2], ratio[:, SIDE // 2, SIDE // 2, SIDE // 2 + 5]
    assert (near > 0.85).all()
    assert (far < near).all()


def test_background_adds_counts_where_there_are_none(crystals):
    plain, raised = (counts_of(measured(crystals, seed=1, background=b)) for b in (0.0, 1.0))
    corner = (slice(None), slice(0, 6), slice(0, 6), slice(0, 6))
    assert raised[corner].mean() > plain[corner].mean() + 0.05


def test_the_same_seed_measures_the_same(crystals):
    harsh = {"gap": 0.5, "blurred": 0.5, "frames": 0.5, "background": 0.5, "counts": (1e3, 1e6)}
    once, again = (measured(crystals, seed=3, **harsh) for _ in range(2))
    assert torch.equal(once.magnitude, again.magnitude)
    assert torch.equal(once.truth, again.truth)

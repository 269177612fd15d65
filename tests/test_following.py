from dataclasses import replace

import h5py
import numpy as np
import pytest
from crystals import crystal_and_counts, volume_of

from bluesky_cdinn import following, pipeline, quality
from bluesky_cdinn.errors import Cancelled, IncompleteScan
from bluesky_cdinn.following import ScanFollower, fraction_measured
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.posing import rolled
from bluesky_cdinn.records import FrameReference, PartialResult, Reconstruction, RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.sim.devices import gold_geometry

N = 32
ANGLES = np.linspace(-0.3, 0.3, N)
OPTIONS = ReconstructionOptions(max_shape=(N, N, N))


@pytest.fixture(scope="module")
def crystal():
    return crystal_and_counts(3, 3.0, (N, N, N))


def measured(counts, places, *, uid="scan", planned=ANGLES):
    """What a running scan, or one that has ended, has measured at these places of its plan."""
    return RockingCurve(
        frames=counts[places],
        angles_deg=ANGLES[places],
        planned_deg=planned,
        expected_points=N,
        raw_uid=uid,
        exit_status="success" if len(places) == N else "unfinished",
    )


def up_to(counts, points, **kwargs):
    return measured(counts, np.arange(points), **kwargs)


def error(density, truth):
    """Phase RMSE, rad, of an object that may lie in a smaller box of the same voxels."""
    whole = np.zeros(truth.shape, np.complex64)
    whole[window_on_grid(truth.shape, density.shape)] = density
    return quality.compare(whole, truth).phase_rmse


def test_nothing_is_computed_before_the_peak_is_passed(crystal):
    _, counts = crystal
    follower = ScanFollower()
    with pytest.raises(IncompleteScan, match="8 rocking angles"):
        follower(up_to(counts, 6), OPTIONS)
    with pytest.raises(IncompleteScan, match="peak must be in view"):
        follower(up_to(counts, N // 2 + 1), OPTIONS)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["upwards", "downwards"])
def test_updates_come_close_to_the_truth_and_the_result_starts_from_the_last(crystal, order):
    truth, counts = crystal
    places = np.arange(N)[order]
    follower, errors = ScanFollower(), []
    for points in (20, 25, 30):
        partial = follower(measured(counts, places[:points]), OPTIONS)
        assert isinstance(partial, PartialResult)
        assert partial.points == points
        assert partial.fraction == pytest.approx(points / N)
        errors.append(error(follower._scans["scan"].last.density, truth))
    assert errors[0] < 0.15
    assert errors[-1] < min(0.06, errors[0])
    result = follower(measured(counts, places), OPTIONS)
    assert isinstance(result, Reconstruction)
    assert result.parameters["found_from"] == "running scan"
    assert result.parameters["updates_at_points"] == [20, 25, 30]
    assert "starts" not in result.timings_s
    cold = pipeline.reconstruct_curve(measured(counts, places), OPTIONS)
    assert quality.compare(result.density, truth).phase_rmse < 0.04
    assert result.chi2 < 1.1 * cold.chi2
    # Nothing is kept of a scan that has ended.
    assert not follower._scans


def test_the_resolution_is_told_once_all_that_was_planned_is_measured(crystal):
    _, counts = crystal
    follower = ScanFollower()
    assert "resolution_voxels" not in follower(up_to(counts, 28), OPTIONS).scalars
    whole = replace(up_to(counts, N), exit_status="unfinished")
    partial = follower(whole, OPTIONS)
    assert partial.fraction == 1
    assert 1 <= partial.scalars["resolution_voxels"] < 3


def test_previews_keep_their_shape_and_changes_shrink(crystal):
    _, counts = crystal
    follower = ScanFollower()
    partials = [follower(up_to(counts, points), OPTIONS) for points in (20, 26, 30)]
    assert {p.amplitude.shape for p in partials} == {(3, 64, 64)}
    assert {p.phase.dtype for p in partials} == {np.dtype(np.float32)}
    assert "change" not in partials[0].scalars
    assert 0 <= partials[2].scalars["change"] < partials[1].scalars["change"] < 0.05
    # The object stays where it was: pictures can be laid over each other.
    before, after = partials[1].amplitude, partials[2].amplitude
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99


def test_a_peak_whose_centre_moves_changes_no_phase(crystal, monkeypatch):
    """The centre of what is measured moves by whole voxels as a scan goes on; the crystal doesn't."""
    _, counts = crystal
    follower = ScanFollower()
    first = follower(up_to(counts, 28), OPTIONS)
    centre_peak = following.centre_peak
    moved = []

    def elsewhere(volume):
        _, roll = centre_peak(volume)
        off = tuple(r + step for r, step in zip(roll, (1, 0, -2), strict=True))
        moved.append(off)
        return rolled(volume, off), off

    monkeypatch.setattr(following, "centre_peak", elsewhere)
    second = follower(up_to(counts, 29), OPTIONS)
    assert moved
    assert second.scalars["change_rad"] < 0.1
    inside = first.amplitude > 0.5 * first.amplitude.max()
    apart = np.angle(np.exp(1j * (second.phase - first.phase)))[inside]
    assert np.sqrt(np.mean(apart**2)) < 0.1


def test_scans_are_kept_apart_and_only_so_many(crystal, monkeypatch):
    _, counts = crystal
    monkeypatch.setattr(following, "REMEMBERED", 2)
    follower = ScanFollower()
    for uid in "abc":
        follower(up_to(counts, 20, uid=uid), OPTIONS)
    assert list(follower._scans) == ["b", "c"]
    assert follower(up_to(counts, N, uid="a"), OPTIONS).parameters["found_from"] != "running scan"
    assert follower(up_to(counts, N, uid="b"), OPTIONS).parameters["found_from"] == "running scan"


def test_other_options_start_afresh(crystal):
    _, counts = crystal
    follower = ScanFollower()
    follower(up_to(counts, 20), OPTIONS)
    other = OPTIONS.model_copy(update={"seed": 7})
    result = follower(up_to(counts, N), other)
    assert result.parameters["found_from"] != "running scan"
    assert "updates_at_points" not in result.parameters


def test_an_object_that_the_whole_scan_contradicts_is_given_up(crystal):
    _, counts = crystal
    truth, others = crystal_and_counts(8, 5.0, (N, N, N))
    follower = ScanFollower()
    follower(up_to(counts, 24), OPTIONS)
    result = follower(up_to(others, N), OPTIONS)
    assert quality.compare(result.density, truth).phase_rmse < 0.1 or result.confidence < 0.5


def test_cancelling_an_update_keeps_what_the_one_before_found(crystal):
    _, counts = crystal
    follower = ScanFollower()
    follower(up_to(counts, 20), OPTIONS)
    before = follower._scans["scan"].last
    with pytest.raises(Cancelled):
        follower(up_to(counts, 24), OPTIONS, cancelled=lambda: True)
    assert follower._scans["scan"].last is before


def test_the_same_updates_give_the_same_result(crystal):
    _, counts = crystal
    results = []
    for _ in range(2):
        follower = ScanFollower()
        follower(up_to(counts, 22), OPTIONS)
        results.append(follower(up_to(counts, N), OPTIONS).density)
    np.testing.assert_array_equal(*results)


def test_the_fraction_is_of_the_planned_range(crystal):
    _, counts = crystal
    twice = np.concatenate([np.arange(16), np.arange(16)[::-1]])
    assert fraction_measured(measured(counts, twice[:20])) == pytest.approx(0.5)
    assert fraction_measured(measured(counts, np.arange(8), planned=None)) == pytest.approx(0.25)
    assert np.isnan(fraction_measured(RockingCurve(frames=counts[:8], angles_deg=ANGLES[:8])))


def test_frames_in_files_are_read_once_while_the_scan_runs_and_anew_at_its_end(crystal, tmp_path):
    truth, counts = crystal
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros_like(counts)
        file["data"][:24] = counts[:24]
    references = tuple(FrameReference(path, "data", index) for index in range(N))
    whole = measured(counts, np.arange(N))
    follower = ScanFollower()
    follower(replace(up_to(counts, 22), frames=references[:22]), OPTIONS)
    with h5py.File(path, "r+") as file:
        file["data"][:22] = 0
    partial = follower(replace(up_to(counts, 24), frames=references[:24]), OPTIONS)
    assert partial.points == 24
    assert error(follower._scans["scan"].last.density, truth) < 0.15
    with h5py.File(path, "r+") as file:
        file["data"][:] = counts
    result = follower(replace(whole, frames=references), OPTIONS)
    assert quality.compare(result.density, truth).phase_rmse < 0.04


def test_of_a_large_volume_updates_see_the_central_part_and_the_result_all(crystal, monkeypatch):
    truth, counts = crystal
    monkeypatch.setattr(following, "MOST_VOXELS", 20**3)
    follower = ScanFollower()
    partial = follower(up_to(counts, 24), OPTIONS)
    known = follower._scans["scan"].last
    assert known.full == (20, 20, 20)
    # Its voxels are larger, so that the same crystal takes up fewer of them.
    assert partial.amplitude.shape == (3, 64, 64)
    result = follower(up_to(counts, N), OPTIONS)
    assert result.density.shape == truth.shape
    assert result.parameters["found_from"] == "running scan"
    assert quality.compare(result.density, truth).phase_rmse < 0.04


def test_the_central_part_keeps_proportions_and_the_centre():
    volume = volume_of(np.arange(64 * 128 * 128, dtype=np.float32).reshape(64, 128, 128))
    part = following.central_part(volume)
    assert part.intensity.shape == (44, 88, 88)
    assert part.intensity[22, 44, 44] == volume.intensity[32, 64, 64]
    assert part.window == (10, 20, 20)
    small = volume_of(np.ones((64, 64, 64), np.float32))
    assert following.central_part(small) is small


@pytest.mark.parametrize("first", [np.zeros, np.ones], ids=["nothing", "single photons"])
def test_frames_before_the_peak_may_hold_nothing(crystal, first):
    """A photon counter sees next to nothing there: too early, but no failure."""
    _, counts = crystal
    counts = counts.copy()
    counts[:12] = 0
    if first is np.ones:
        places = np.random.default_rng(0).integers(0, N, (12, 4, 2))
        for index, pairs in enumerate(places):
            counts[index, pairs[:, 0], pairs[:, 1]] = 1
    follower = ScanFollower()
    for points in (9, 12):
        with pytest.raises(IncompleteScan):
            follower(up_to(counts, points), OPTIONS)
    assert follower(up_to(counts, 24), OPTIONS).points == 24


def test_a_moving_centre_changes_no_phase_on_a_smaller_working_grid(monkeypatch):
    """Finely sampled, a crystal is worked on in a smaller box of the same voxels."""
    _, counts = crystal_and_counts(3, 2.0, (48, 48, 48), oversampling=5.5)
    options = ReconstructionOptions(max_shape=(48, 48, 48))
    angles = np.linspace(-0.3, 0.3, 48)
    curve = RockingCurve(
        counts, angles, geometry=gold_geometry((48, 48)), raw_uid="scan", exit_status="unfinished"
    )
    follower = ScanFollower()
    first = follower(curve, options)
    known = follower._scans["scan"].last
    assert known.density.shape < known.full
    centre_peak = following.centre_peak

    def elsewhere(volume):
        _, roll = centre_peak(volume)
        off = tuple(r + step for r, step in zip(roll, (1, 0, -2), strict=True))
        return rolled(volume, off), off

    monkeypatch.setattr(following, "centre_peak", elsewhere)
    second = follower(curve, options)
    assert second.scalars["change_rad"] < 0.1
    # Nor where its planes are: two pixels are 5e-4 of their spacing.
    assert second.scalars["d_spacing_nm"] == pytest.approx(first.scalars["d_spacing_nm"], rel=3e-5)


@pytest.mark.parametrize("start", ["autocorrelation", "auto"])
def test_what_is_not_refined_can_be_followed_too(start):
    _, counts = crystal_and_counts(3, 2.0, (48, 48, 48), oversampling=5.5)
    options = ReconstructionOptions(max_shape=(48, 48, 48), refine=False, start=start)
    curve = RockingCurve(frames=counts, angles_deg=np.linspace(-0.3, 0.3, 48), raw_uid="scan")
    follower = ScanFollower()
    partial = follower(replace(curve, exit_status="unfinished"), options)
    assert np.isfinite(partial.chi2)
    assert follower(curve, options).parameters["found_from"] != "running scan"

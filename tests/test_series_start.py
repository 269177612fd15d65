"""Scans of a series: each starts from the one before, as far as the data allow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, volume_of

from bluesky_cdinn import following, quality
from bluesky_cdinn.errors import IncompleteScan
from bluesky_cdinn.following import ScanFollower
from bluesky_cdinn.forward import to_corner
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.series_start import FOUND_FROM, displacement, starts_from
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.warm_start import step_deg

N = 32
OPTIONS = ReconstructionOptions(max_shape=(N, N, N))


def curve(counts, uid, before=None, **kwargs):
    """Return a scan of a series; `before` None keeps it out of any."""
    angles = np.linspace(-0.3, 0.3, len(counts))
    cdi = {} if before is None else {"starts_from": before}
    return RockingCurve(counts, angles, raw_uid=uid, metadata={"cdi": cdi}, **kwargs)


def error(result, truth):
    return quality.compare(result.density, truth).phase_rmse


@pytest.fixture(scope="module")
def first():
    return crystal_and_counts(3, 3.0, (N, N, N))


@pytest.fixture(scope="module")
def remembered(first):
    """Return what is remembered of the first scan of a series."""
    follower = ScanFollower()
    result = follower(curve(first[1], "one", ""), OPTIONS)
    assert result.parameters["found_from"] != FOUND_FROM
    assert "started_from" not in result.parameters
    return follower._series


@pytest.fixture
def follower(remembered):
    return ScanFollower(_series=remembered.copy())


def test_the_next_scan_starts_from_the_last_wherever_its_peak_has_gone(follower):
    truth, counts = crystal_and_counts(3, 4.0, (N, N, N), cycles=(1.4, -2.3, 0.7))
    result = follower(curve(counts, "two", "one"), OPTIONS)
    assert result.parameters["found_from"] == FOUND_FROM
    assert result.parameters["started_from"] == "one"
    assert "starts" not in result.timings_s
    assert error(result, truth) < 0.04


def test_the_first_update_starts_there_too(follower):
    truth, counts = crystal_and_counts(3, 4.0, (N, N, N))
    whole = curve(counts, "two", "one", planned_deg=np.linspace(-0.3, 0.3, N))
    part = replace(whole, frames=counts[:24], angles_deg=whole.angles_deg[:24], exit_status="unfinished")
    stages = []
    follower(part, OPTIONS, progress=lambda p: stages.append(p.stage))
    assert "starts" not in stages
    result = follower(whole, OPTIONS)
    assert result.parameters["found_from"] == "running scan"
    assert result.parameters["started_from"] == "one"
    assert error(result, truth) < 0.04


def test_another_step_is_another_sampling(follower):
    truth, counts = crystal_and_counts(3, 3.0, (2 * N, N, N), oversampling=np.array([5.0, 2.5, 2.5]))
    step = 0.6 / (N - 1) / 2
    fine = replace(curve(counts, "two", "one"), angles_deg=step * np.arange(2 * N))
    options = OPTIONS.model_copy(update={"max_shape": (2 * N, N, N)})
    (known,) = follower._series.values()
    follower._series["one"] = replace(known, options=options)
    result = follower(fine, options)
    assert result.parameters["found_from"] == FOUND_FROM
    assert error(result, truth) < 0.04


def test_a_crystal_that_has_changed_altogether_is_searched_for(follower):
    truth, counts = crystal_and_counts(8, 5.0, (N, N, N))
    result = follower(curve(counts, "two", "one"), OPTIONS)
    assert error(result, truth) < 0.1
    assert result.parameters["started_from"] == "one"


def test_a_failed_scan_hands_on_what_was_found_before(follower):
    truth, counts = crystal_and_counts(3, 4.0, (N, N, N))
    with pytest.raises(IncompleteScan):
        follower(curve(counts[:4], "two", "one"), OPTIONS)
    result = follower(curve(counts, "three", "two"), OPTIONS)
    assert result.parameters["found_from"] == FOUND_FROM
    assert result.parameters["started_from"] == "one"
    assert error(result, truth) < 0.04


def test_what_is_not_known_is_searched_for(follower, first):
    asked = curve(first[1], "two", "gone"), curve(first[1], "two", "one")
    assert follower._before(asked[0], OPTIONS) is None
    assert follower._before(asked[1], OPTIONS).raw_uid == "one"
    assert follower._before(asked[1], OPTIONS.model_copy(update={"seed": 7})) is None


def test_only_series_are_remembered_and_only_so_much(follower, first, monkeypatch):
    (known,) = follower._series.values()
    assert 2 * N**3 * 8 <= known.nbytes <= 2 * N**3 * 16
    follower(curve(first[1], "alone"), OPTIONS)
    assert list(follower._series) == ["one"]
    monkeypatch.setattr(following, "MOST_BYTES", 2.5 * known.nbytes)
    for uid in ("two", "three"):
        follower._remember(uid, known)
    assert list(follower._series) == ["two", "three"]


def test_a_pattern_is_found_where_it_lies():
    _, counts = crystal_and_counts(5, 2.0, (N, N, N))
    pattern = to_corner(torch.from_numpy(np.sqrt(counts)))
    moved = torch.roll(pattern, (3, -2, 5), (0, 1, 2))
    assert displacement(pattern, moved) == (3, -2, 5)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, None),
        ({"cdi": {}}, None),
        ({"cdi": {"starts_from": ""}}, ""),
        ({"cdi": {"starts_from": 3}}, None),
    ],
)
def test_who_is_in_a_series_says_so(metadata, said):
    assert starts_from(metadata) == said


def test_the_step_is_of_the_angles():
    volume = volume_of(np.ones((5, 4, 4), np.float32))
    assert step_deg(volume) is None
    assert step_deg(replace(volume, angles_deg=np.linspace(0, 1, 5))) == pytest.approx(0.25)

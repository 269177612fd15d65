"""Which grains are worth measuring: the rules, by tables."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from crystals import crystal_and_counts, volume_of

from bluesky_cdinn.errors import InvalidInput, NotFound
from bluesky_cdinn.preprocess import prepare
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.rocking_peak import RockingPeak
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.survey_ranking import (
    GrainSeen,
    edge_share,
    grain_grid,
    neighbour_share,
    ranked,
    trouble_in_look,
    trouble_in_result,
    weighted_score,
)
from bluesky_cdinn.survey_table import in_order, numbers_of, table_from_documents

PEAK = RockingPeak(0.0, 0.05, 1e4, 10.0, 3e3, "")
LOOK = QuickLook(PEAK, pixel=(32.0, 32.0), brightest=1e3, exposure_s=0.1)
GOOD = GrainSeen(
    "good", {"x": 1.0}, "seen", counts_s=1e4, size_nm=300.0, strain_rms=1e-4, confidence=0.9, centre_deg=0.01
)


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (LOOK, ""),
        (QuickLook(None, "no peak stands out"), "no peak stands out"),
        (replace(LOOK, peak=replace(PEAK, cut="last")), "cut off at the last angle"),
        (replace(LOOK, brightest=9.0), "too weak: 90 counts"),
    ],
)
def test_a_look_tells_what_is_wrong(look, why):
    said = trouble_in_look(look, count_time_s=1.0, least_counts=100.0)
    assert (why in said) if why else said == ""


@pytest.mark.parametrize(
    ("summary", "why"),
    [
        (ReconstructionSummary("r", confidence=0.9), ""),
        (ReconstructionSummary("r", confidence=0.2), "confidence 0.20, 0.3 is required"),
        (ReconstructionSummary("r", status="failed", reason="no peak"), "failed: no peak"),
        (ReconstructionSummary("r", status="cancelled", reason="on request"), "cancelled: on request"),
    ],
)
def test_a_result_tells_what_is_wrong(summary, why):
    assert (why in trouble_in_result(summary, 0.3)) if why else trouble_in_result(summary, 0.3) == ""


@pytest.mark.parametrize("strain", [0.5, 4.0, 8.0])
def test_a_crystals_own_fringes_are_no_neighbours(strain):
    for seed in range(3):
        _, counts = crystal_and_counts(seed, strain, (24, 64, 64), peak=1e5)
        volume = prepare(volume_of(counts))
        assert neighbour_share(volume) < 0.1
        assert edge_share(volume) < 0.1


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_another_crystal_is(share):
    _, counts = crystal_and_counts(0, 2.0, (24, 64, 64), peak=1e5)
    _, other = crystal_and_counts(1, 2.0, (24, 64, 64), peak=1e5 * share)
    volume = prepare(volume_of(counts + np.roll(other, (4, 24, 20), (0, 1, 2))))
    assert neighbour_share(volume) == pytest.approx(share, abs=0.15)


def test_a_peak_at_the_edge_is_seen():
    _, counts = crystal_and_counts(0, 2.0, (24, 64, 64), peak=1e5)
    assert edge_share(volume_of(counts[:, 31:])) > 0.5
    assert neighbour_share(volume_of(np.zeros((8, 16, 16), np.float32))) == 0.0


@pytest.mark.parametrize(
    ("weights", "better"),
    [
        ({}, {"confidence": 1.0}),
        ({}, {"size_nm": 500.0}),
        ({}, {"counts_s": 1e5}),
        ({}, {"strain_rms": 1e-5}),
        ({"strain": -5.0}, {"strain_rms": 1e-3}),
        ({"size": -5.0}, {"size_nm": 100.0}),
    ],
)
def test_what_is_better_scores_more(weights, better):
    score = weighted_score(weights)
    assert score(replace(GOOD, **better)) > score(GOOD) > score(GrainSeen("unknown"))


def test_scores_lie_between_nothing_and_one():
    score = weighted_score()
    assert score(GrainSeen("unknown")) == 0.0
    assert 0 < score(GOOD) < 1
    with pytest.raises(InvalidInput, match="size, counts, strain, confidence"):
        weighted_score(dict.fromkeys(("size", "counts", "strain", "confidence"), 0.0))


def test_only_who_was_seen_is_ranked_and_who_has_no_score_comes_last():
    grains = [GrainSeen("a", status="seen", size_nm=1.0), GrainSeen("b", status="skipped", size_nm=9.0)]
    grains += [GrainSeen("c", status="seen"), GrainSeen("d", status="seen", size_nm=5.0)]
    assert [grain.name for _, grain in ranked(grains, lambda grain: grain.size_nm)] == ["d", "a", "c"]


def test_a_grid_goes_there_and_back():
    grid = grain_grid({"x": [0, 1.5], "y": (0, 2)})
    assert [tuple(place["positions"].values()) for place in grid] == [(0, 0), (1.5, 0), (1.5, 2), (0, 2)]
    assert [place["name"] for place in grid][1] == "x 1.5, y 0"
    for axes in ({}, {"x": []}):
        with pytest.raises(InvalidInput, match="axes"):
            grain_grid(axes)


def test_a_table_prints_and_comes_back_from_documents():
    skipped = GrainSeen("bad", status="skipped", reason="no peak")
    measured = replace(GOOD, name="best", status="measured", score=0.8, raw_uid="r1")
    events = [numbers_of(grain) for grain in (replace(GOOD, name="best"), skipped, measured)]
    table = in_order([skipped, measured])
    assert [grain.name for grain in table] == ["best", "bad"]
    assert "no peak" in str(table).splitlines()[2]
    again = table_from_documents(as_documents(events))
    assert repr(again) == repr(table)
    assert again[0].raw_uid == "r1"
    assert math.isnan(again[1].score)
    with pytest.raises(NotFound, match="no decisions about grains"):
        table_from_documents([("start", {"uid": "s"})])


def as_documents(numbers):
    yield "start", {"uid": "s"}
    yield "descriptor", {"uid": "d", "name": "steering", "run_start": "s"}
    for item in numbers:
        yield "event", {"descriptor": "d", "data": {"steering_numbers": json.dumps(item)}}

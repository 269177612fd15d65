"""Where a peak goes, and when a crystal has changed enough: the rules, by tables."""

import math

import numpy as np
import pytest

from bluesky_cdinn.drift import FollowedScan, next_centre, threshold_rule
from bluesky_cdinn.errors import InvalidInput

NAN = math.nan


@pytest.mark.parametrize(
    ("centres", "expected"),
    [
        ([0.1], 0.1),
        ([0.1, 0.2], 0.2),
        ([0.1, 0.2, 0.3], 0.4),
        ([0.3, 0.1, -0.1], -0.3),
        ([0.1, 0.2, 0.15], 0.15),
        ([0.0, 0.1, 0.2, 0.9], 1.0),
        ([5.0, 0.1, 0.2, 0.3, 0.4], 0.5),
        ([0.1, 0.2, NAN, 0.5], 0.5),
        ([0.1, 0.2, NAN, 0.5, 0.6, 0.7], 0.8),
        ([0.1, 0.2, 0.3, NAN], 0.4),
        ([0.2, 0.2, 0.2], 0.2),
    ],
)
def test_where_the_peak_will_be(centres, expected):
    assert next_centre(centres) == pytest.approx(expected)


def test_something_must_be_known():
    with pytest.raises(InvalidInput, match="one centre"):
        next_centre([NAN, NAN])


def test_a_steady_drift_is_foreseen_and_noise_is_not_made_worse():
    rng = np.random.default_rng(1_000_000)
    steady, to_and_fro = [], []
    for _ in range(200):
        noise = 0.02 * rng.standard_normal(12)
        drift = 0.2 * np.arange(12) + noise
        walk = np.cumsum(0.1 * rng.standard_normal(12))
        for found, centres in ((steady, drift), (to_and_fro, walk)):
            ahead = [next_centre(centres[:n]) - centres[n] for n in range(4, 12)]
            behind = [centres[n - 1] - centres[n] for n in range(4, 12)]
            found.append((np.mean(np.square(ahead)), np.mean(np.square(behind))))
    with_it, without = np.sqrt(np.mean(steady, axis=0))
    assert with_it < 0.25 * without
    with_it, without = np.sqrt(np.mean(to_and_fro, axis=0))
    assert with_it < 1.25 * without


def scan(confidence=0.9, readings=None, **numbers):
    return FollowedScan("raw", 0.0, "success", "", {"confidence": confidence, **numbers}, readings or {})


@pytest.mark.parametrize(
    ("limits", "seen", "says"),
    [
        ([None, 5e-4], scan(strain_rms=4e-4), None),
        ([None, 5e-4], scan(strain_rms=6e-4), "strain_rms is 0.0006, over 0.0005"),
        ([1e-4, None], scan(strain_rms=5e-5), "strain_rms is 5e-05, under 0.0001"),
        ([None, 5e-4], scan(strain_rms=NAN), None),
        ([None, 5e-4], scan(), None),
        ([None, 5e-4], scan(confidence=0.1, strain_rms=1.0), None),
        ([None, 5e-4], FollowedScan("raw", status="failed"), None),
    ],
)
def test_a_threshold(limits, seen, says):
    decision = threshold_rule({"strain_rms": limits}, 0.3)([scan(strain_rms=0.0), seen])
    assert (decision and decision.reason) == says
    assert decision is None or decision.action == "stop"


def test_readings_count_whatever_the_reconstruction_is_worth():
    rule = threshold_rule({"oven": [None, 600.0]}, 0.3)
    assert rule([FollowedScan("raw", status="failed", readings={"oven": 601.0})]) is not None
    assert rule([FollowedScan("raw", status="failed", readings={"oven": 599.0})]) is None


@pytest.mark.parametrize("limits", [5e-4, [1, 2, 3], ["a", None], [2, 1], [1, 1]])
def test_a_range_is_two_numbers_in_order(limits):
    with pytest.raises(InvalidInput, match="lowest, highest"):
        threshold_rule({"strain_rms": limits}, 0.3)


def test_a_scan_tells_its_numbers():
    assert str(scan(strain_rms=2e-4)) == "raw at 0.0000 deg: strain_rms 0.0002, confidence 0.9"
    assert "failed no peak" in str(FollowedScan("raw", status="failed", reason="no peak"))


def test_a_threshold_of_what_no_scan_has_is_told_of_once(caplog):
    rule = threshold_rule({"strain_rsm": [None, 1.0], "oven": [None, 600.0]}, 0.3)
    unsure, first, second = scan(0.1, oven=20.0), scan(strain_rms=0.0, readings={"oven": 20.0}), scan()
    for so_far in ([unsure], [unsure, first], [unsure, first, second]):
        assert rule(so_far) is None
    (record,) = caplog.records
    assert "strain_rsm" in record.getMessage().split(":")[0]
    assert "oven" not in record.getMessage().split(":")[0]

import re
from dataclasses import replace

import numpy as np
import pytest
from crystals import crystal_density, far_field

from bluesky_cdinn import quality
from bluesky_cdinn.doubts import Signs, confidence, doubts, halo, larger_body, signs, signs_of, unevenness
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.records import DiffractionVolume

GOOD = Signs(
    unevenness=0.01, halo=0.0002, spread_rad=0.005, chi2=0.001, misfit=1.5, photons=500.0, second_body=0.0
)


@pytest.fixture(scope="module")
def crystal():
    return crystal_density(3, 3.0, (28, 32, 27), oversampling=2.2)


@pytest.fixture(scope="module")
def support(crystal):
    return quality.half_level_support(crystal)


def blocks(gap, second=1.0):
    density = np.zeros((24, 24, 32), np.complex64)
    density[8:16, 8:16, 4:12] = 1
    density[8:16, 8:16, 12 + gap : 20 + gap] = np.sqrt(second)
    return density, np.abs(density) > 0


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_two_crystals_are_told_apart_and_the_larger_is_taken(share):
    density, support = blocks(6, share)
    body, second = larger_body(2j * density, support)
    assert second == pytest.approx(share, rel=1e-5)
    assert np.count_nonzero(body) == 8**3
    if share < 1:
        np.testing.assert_array_equal(body, np.abs(density) == 1)


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_what_a_narrow_gap_divides_is_one_body(gap):
    density, support = blocks(gap)
    body, second = larger_body(density, support)
    assert second == 0
    np.testing.assert_array_equal(body, support)


def test_nothing_is_no_body_and_neither_even_nor_sharp():
    density, nowhere = np.zeros((8, 9, 10), np.complex64), np.zeros((8, 9, 10), bool)
    body, second = larger_body(density, nowhere)
    assert second == 0
    assert not body.any()
    assert unevenness(density, nowhere) == halo(density, nowhere) == 1


def test_a_crystal_is_even_and_sharp(crystal, support):
    assert unevenness(crystal, support) < 0.01
    assert halo(crystal, support) < 0.01


def test_unevenness_is_that_of_the_inside_alone_and_has_no_scale(crystal, support):
    rng = np.random.default_rng(0)
    noisy = crystal * (1 + 0.1 * rng.normal(size=crystal.shape))
    assert unevenness(noisy, support) == pytest.approx(0.1, rel=0.1)
    assert unevenness(30j * noisy, support) == pytest.approx(unevenness(noisy, support), rel=1e-5)


def test_halo_is_what_lies_beyond_the_surface(crystal, support):
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.normal(size=crystal.shape)).astype(np.complex64)
    values = [halo(crystal + level * noise * (crystal == 0), support) for level in (0, 1, 2)]
    assert values == sorted(values)
    # Outside the power grows as the square.
    assert values[2] - values[0] == pytest.approx(4 * (values[1] - values[0]), rel=0.1)
    moved = [np.roll(a, (2, -3, 1), (0, 1, 2)) for a in (crystal + noise, support)]
    assert halo(*moved) == pytest.approx(halo(crystal + noise, support), rel=1e-4)


def test_a_twin_mixed_in_makes_a_crystal_uneven(crystal, support):
    even = unevenness(crystal, support)
    mixed = 0.6 * crystal + 0.4 * quality.align(quality.twin(crystal), crystal, twins=False)
    assert unevenness(mixed, quality.half_level_support(mixed)) > 10 * even


def test_signs_are_of_the_larger_body(crystal, support):
    counts = np.full(crystal.shape, 3.0, np.float32)
    found = signs(crystal, support, counts, 0.2, 0.05)
    assert found.photons == pytest.approx(3 * support.size / np.count_nonzero(support))
    assert found.misfit == pytest.approx(0.2 * 3 / 0.25)
    assert found.second_body == 0
    density, both = blocks(6, 0.3)
    assert signs(density, both, counts, 0.2, None).unevenness == pytest.approx(0, abs=1e-6)


def test_confidence_falls_with_all_that_speaks_against_an_object():
    for name, values in {"unevenness": (0.003, 0.03, 0.1, 0.5), "halo": (0.003, 0.03, 0.1, 0.5)}.items():
        stated = [confidence(replace(GOOD, **{name: value})) for value in values]
        assert stated == sorted(stated, reverse=True), name
    assert confidence(GOOD) > 0.9
    assert confidence(replace(GOOD, unevenness=0.4, halo=0.2)) < 0.05
    assert 0 <= confidence(replace(GOOD, unevenness=0.0, halo=0.0)) <= 1


def test_two_that_share_nothing_get_no_confidence_and_one_alone_has_an_even_chance_at_most():
    assert confidence(replace(GOOD, spread_rad=float("nan"))) == 0
    assert confidence(replace(GOOD, spread_rad=None)) == 0.5
    poor = replace(GOOD, unevenness=0.4, halo=0.2)
    assert confidence(replace(poor, spread_rad=None)) == confidence(poor)


def test_an_object_that_does_not_explain_the_data_gets_no_confidence():
    values = [confidence(replace(GOOD, chi2=chi2)) for chi2 in (0.0, 0.15, 0.25, 0.3, 0.6)]
    assert values[0] == values[1] > values[2] > values[3] == values[4] == 0


def test_nothing_is_said_of_what_is_in_order(caplog):
    assert doubts(GOOD) == doubts(replace(GOOD, spread_rad=None)) == []
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"second_body": 0.3}, "two crystals: the second has 30% .* the larger"),
        ({"photons": 4.0}, "too few counts: 4.0 .* count longer"),
        ({"spread_rad": 0.6}, "not found twice: .* 0.60 rad"),
        ({"spread_rad": float("nan")}, "not found twice"),
        ({"unevenness": 0.2}, "uneven: .* 20%"),
        ({"misfit": 150.0, "chi2": 0.2}, "not explained: chi2 is 150 times"),
    ],
)
def test_each_doubt_is_told_and_logged(changed, word, caplog):
    said = doubts(replace(GOOD, **changed))
    (line,) = [line for line in said if not line.startswith("doubtful")]
    assert re.search(word, line)
    assert line in caplog.text


def test_what_is_probably_wrong_is_told_first_whatever_the_cause():
    poor = replace(GOOD, unevenness=0.06, halo=0.01)
    (line,) = doubts(poor)
    assert line.startswith(f"doubtful: confidence {confidence(poor):.2f}")
    assert doubts(replace(poor, unevenness=0.2))[0].startswith("doubtful")


def test_a_pattern_of_two_crystals_is_told_in_the_result_and_neither_is_lost():
    one, other = (crystal_density(seed, 1.0, (48, 48, 48), oversampling=5.0) for seed in (3, 4))
    density = np.roll(one, -9, 1) + 0.7 * np.roll(other, 9, 1)
    density *= np.sqrt(1e5) / np.abs(far_field(density)).max()
    counts = np.random.default_rng(0).poisson(np.abs(far_field(density)) ** 2).astype(np.float32)
    result = reconstruct(DiffractionVolume(counts, np.ones(counts.shape, bool)))
    assert quality.compare(result.density, density).iou > 0.9
    assert any(line.startswith("two crystals") for line in result.warnings)
    assert 0.1 < result.scalars["second_body"] < 1
    assert confidence(signs_of(result.scalars, result.chi2)) == pytest.approx(result.confidence)

"""What must go goes, and nothing of the crystal's own peak does."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.masking import RATIO, mask_voxels
from bluesky_cdinn.peak import second_smallest_neighbour
from bluesky_cdinn.preprocess import (
    correct_dark,
    correct_flat,
    crop_around_peak,
    detector_fields,
    estimate_background,
    find_peak,
    mask_aliens,
    mask_gaps,
    mask_hot_pixels,
    mask_saturated,
    prepare,
    subtract_background,
)
from bluesky_cdinn.records import DiffractionVolume, RockingCurve
from bluesky_cdinn.volume import assemble


def crystal(seed=0, n=48, oversampling=2.0, phase=3.0, top=1e6, shift=(0, 0, 0)):
    """Expected counts of a faceted crystal of random planes with a smooth random phase, (n, n, n)."""
    rng = np.random.default_rng(seed)
    grid = (np.indices((n, n, n)) - n // 2).reshape(3, -1).T / (n / np.broadcast_to(oversampling, 3) / 2)
    normals = rng.normal(size=(12, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    inside = (np.abs(grid) < 1).all(axis=1) & (grid @ normals.T < rng.uniform(0.7, 1, 12)).all(axis=1)
    waves = np.cos(grid @ rng.normal(scale=1.5, size=(3, 3)) + rng.uniform(0, 6, 3)).sum(axis=1)
    waves *= phase / np.ptp(waves[inside])
    density = np.where(inside, np.exp(1j * waves), 0).reshape(n, n, n)
    counts = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density)))) ** 2
    return np.roll(counts * (top / counts.max()), shift, axis=(0, 1, 2))


def measured(expected, seed=0, valid=None):
    counts = np.random.default_rng(seed).poisson(expected).astype(np.float32)
    return DiffractionVolume(counts, np.ones(counts.shape, bool) if valid is None else valid)


def on_background(n=96, background=0.5, **kwargs):
    """Expected counts of a crystal in the middle of a large measured volume."""
    expected = np.full((n, n, n), background)
    part = crystal(**kwargs)
    box = slice(n // 2 - len(part) // 2, n // 2 + len(part) // 2)
    expected[box, box, box] += part
    return expected


def replaced(volume, intensity):
    return DiffractionVolume(intensity.astype(np.float32), volume.valid)


def steps(volume):
    return {step["step"]: step for step in volume.history}


# --- The peak is left alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("oversampling", [1.5, 2, 3, (1.2, 2, 2), (4, 2.5, 2.5)])
@pytest.mark.parametrize("phase", [0.0, 3.0, 2 * np.pi, 12.0])
@pytest.mark.parametrize(
    ("top", "background"), [(1e2, 0.05), (1e4, 0.0), (1e4, 3.0), (1e6, 0.0), (1e6, 0.05)]
)
def test_no_voxel_of_a_peak_is_lost(oversampling, phase, top, background):
    seed = int(top + 10 * phase)
    expected = crystal(seed, 48, oversampling, phase, top) + background
    volume = prepare(measured(expected, seed))
    if oversampling == 1.5:
        # Below what phasing needs; a few of the weakest may go.
        assert expected[~volume.valid].sum() < 1e-6 * expected.sum()
    else:
        assert volume.valid.all()


@pytest.mark.parametrize("phase", [0.0, 3.0, 2 * np.pi])
def test_a_peak_at_the_edge_of_the_detector_is_not_lost(phase):
    expected = crystal(3, 48, 2.5, phase, 1e5)[:, 20:, :30] + 0.1
    assert prepare(measured(expected)).valid.all()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 37.0, 1e4])
def test_a_peak_in_other_units_than_counts_is_not_lost(scale):
    for seed, background in enumerate([0.0, 0.05, 3.0]):
        counts = measured(crystal(seed, 48, 2.5, 3.0, 1e5) + background)
        volume = prepare(replaced(counts, counts.intensity * scale))
        assert volume.valid.all()
        assert steps(volume)["subtract_background"]["level"] <= background * scale * 1.2


def test_a_simulation_without_noise_is_left_as_it_is():
    expected = crystal(2, 48, 2.5, 3.0, 1e5)
    volume = replaced(measured(expected), expected)
    prepared = prepare(volume)
    assert prepared.valid.all()
    np.testing.assert_array_equal(prepared.intensity, volume.intensity)


def test_the_peak_is_found_where_it_is():
    for seed, shift in enumerate([(0, 0, 0), (5, -7, 9), (-12, 3, 0)]):
        expected = crystal(seed, 48, 2.5, 2.0, 1e5, shift)
        place = np.unravel_index(expected.argmax(), expected.shape)
        np.testing.assert_allclose(find_peak(measured(expected)), place, atol=1.0)


def test_hot_voxels_do_not_pass_for_the_peak():
    expected = crystal(1, 48, 2.5, 2.0, 1e4)
    counts = measured(expected).intensity
    counts[10, 5, 5] = 1e8
    counts[:, 40, 8:10] = 1e7
    peak = np.array(find_peak(replaced(measured(expected), counts)))
    near = [int(c) for c in np.rint(peak)]
    counts[near[0] + 1, near[1] + 1, near[2]] = 1e8
    again = np.array(find_peak(replaced(measured(expected), counts)))
    np.testing.assert_allclose(peak, np.unravel_index(expected.argmax(), expected.shape), atol=1.0)
    np.testing.assert_allclose(again, peak, atol=0.7)


def test_the_peak_is_looked_for_among_valid_voxels_only():
    expected = crystal(1, 48, 2.5, 2.0, 1e4, (0, 8, 8)) + 30 * crystal(2, 48, 2.5, 2.0, 1e4, (0, -15, -15))
    valid = np.ones(expected.shape, bool)
    valid[:, :24, :24] = False
    peak = find_peak(measured(expected, valid=valid))
    np.testing.assert_allclose(peak, [24, 32, 32], atol=1.5)


def test_a_volume_without_counts_has_no_peak():
    with pytest.raises(InvalidInput, match="must hold a peak"):
        find_peak(measured(np.zeros((8, 8, 8))))


def test_the_second_smallest_neighbour_by_sorting():
    frame = np.random.default_rng(0).random((7, 9))
    padded = np.pad(frame, 1)
    around = np.sort([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], axis=0)
    np.testing.assert_array_equal(second_smallest_neighbour(frame), around[1])


# --- Masks ------------------------------------------------------------------------------------------------


def test_masks_take_out_and_never_give_back():
    volume = measured(np.full((4, 5, 6), 9.0), valid=np.arange(120).reshape(4, 5, 6) % 7 != 0)
    bad = np.zeros((5, 6), bool)
    bad[2, 3] = True
    masked = mask_voxels(volume, bad, "given", note=1)
    assert not masked.valid[:, 2, 3].any()
    assert (masked.valid <= volume.valid).all()
    assert masked.intensity[~masked.valid].max() == 0
    assert masked.history[-1] == {
        "step": "given",
        "voxels": int(volume.valid.sum() - masked.valid.sum()),
        "note": 1,
    }
    assert volume.history == ()


def test_a_mask_must_fit():
    with pytest.raises(InvalidInput, match="shape"):
        mask_voxels(measured(np.ones((4, 5, 6))), np.zeros((6, 5)))


def test_saturated_voxels_go_by_the_limit_or_by_the_plateau():
    expected = crystal(0, 48, 3.0, 0.5, 2e5)
    volume = measured(expected)
    assert mask_saturated(volume).valid.all()
    clipped = replaced(volume, np.minimum(volume.intensity, 50_000))
    found = mask_saturated(clipped)
    np.testing.assert_array_equal(found.valid, volume.intensity < 50_000)
    assert steps(found)["mask_saturated"]["limit"] == 50_000
    np.testing.assert_array_equal(mask_saturated(volume, 1e4).valid, volume.intensity < 1e4)


@pytest.mark.parametrize("background", [0.0, 0.5])
def test_gaps_between_modules_are_found(background):
    expected = on_background(background=background, seed=4, oversampling=3.0)
    expected[:, 44:48, :] = 0
    expected[:, :, 60] = 0
    masked = mask_gaps(measured(expected))
    assert not masked.valid[:, 44:48].any()
    assert not masked.valid[:, :, 60].any()
    assert masked.valid.sum() == 96 * 92 * 95


def test_a_dead_patch_is_found_where_its_surroundings_count():
    expected = on_background(background=0.5)
    expected[:, 20:24, 30:35] = 0
    masked = mask_gaps(measured(expected))
    assert not masked.valid[:, 20:24, 30:35].any()
    assert masked.valid[0].sum() == 96 * 96 - 20


def test_silence_far_from_a_peak_is_a_measurement():
    assert mask_gaps(measured(crystal(top=1e3, oversampling=4.0))).valid.all()


def test_hot_and_dead_pixels_and_sparks_are_found_and_nothing_else():
    expected = on_background(background=0.5, seed=5, oversampling=2.5, top=1e5)
    clean = measured(expected)
    counts, bad = clean.intensity.copy(), np.zeros(expected.shape, bool)
    rng = np.random.default_rng(0)
    for row, column in [(10, 10), (10, 11), (11, 10), (80, 3), (0, 50), (95, 95)]:
        counts[:, row, column] += rng.poisson(40, 96)
        bad[:, row, column] = True
    for row, column in [(30, 60), (48, 44)]:
        counts[:, row, column] = 0
        bad[:, row, column] = True
    for place in [(5, 20, 20), (48, 70, 30), (90, 0, 0)]:
        counts[place] = 500
        bad[place] = True
    masked = mask_hot_pixels(replaced(clean, counts))
    np.testing.assert_array_equal(masked.valid, ~bad)
    assert steps(masked)["mask_hot_pixels"]["hot_pixels"] == 6
    assert steps(masked)["mask_hot_pixels"]["dead_pixels"] == 2
    assert steps(masked)["mask_hot_pixels"]["ratio"] == RATIO


def test_another_crystals_peak_is_masked_and_the_peak_is_not():
    expected = on_background(background=0.05, seed=6, oversampling=3.0, top=1e6)
    alien = np.roll(
        on_background(background=0.0, seed=7, oversampling=4.0, top=2e5), (-20, 30, 25), (0, 1, 2)
    )
    alone, both = (prepare(measured(e)) for e in (expected, expected + alien))
    assert alone.valid.all()
    assert steps(both)["mask_aliens"]["aliens"] >= 1
    bright = alien > 4e4
    assert bright.sum() > 5
    assert not both.valid[bright].any()
    assert both.valid[expected > 1e4].all()
    assert both.valid.mean() > 0.97


def test_a_partner_across_the_peak_saves_a_fringe():
    expected = on_background(background=0.05, seed=6, oversampling=3.0, top=1e6)
    blob = np.roll(on_background(background=0.0, seed=7, oversampling=4.0, top=2e5), (-20, 30, 25), (0, 1, 2))
    partner = np.roll(np.flip(blob), (1, 1, 1), (0, 1, 2))
    assert mask_aliens(measured(expected + blob + partner)).valid.all()


# --- Corrections ------------------------------------------------------------------------------------------


def test_a_list_of_bad_pixels_is_masked_and_a_dark_frame_is_subtracted():
    volume = measured(np.full((5, 20, 20), 50.0))
    bad = np.zeros((20, 20), np.int32)
    bad[3, 4] = 100
    listed = correct_dark(volume, bad)
    assert not listed.valid[:, 3, 4].any()
    assert listed.valid.sum() == 5 * 399
    dark = np.random.default_rng(0).uniform(0, 100, (20, 20))
    dark[1, 1] = np.nan
    subtracted = correct_dark(volume, dark)
    expected = np.maximum(volume.intensity - np.nan_to_num(dark).astype(np.float32), 0)
    np.testing.assert_allclose(subtracted.intensity[subtracted.valid], expected[subtracted.valid], rtol=1e-5)
    assert subtracted.valid.sum() == 5 * 399


def test_a_flat_field_makes_the_detector_even():
    rng = np.random.default_rng(0)
    flat = 1e4 * rng.uniform(0.7, 1.3, (20, 20))
    flat[0, 0], flat[1, 1], flat[2, 2] = 0, np.nan, 1e6
    expected = np.full((5, 20, 20), 1e6) * np.nan_to_num(flat) / np.nanmedian(flat)
    volume = correct_flat(measured(expected), flat)
    assert volume.valid.sum() == 5 * 397
    np.testing.assert_allclose(volume.intensity[volume.valid], 1e6, rtol=0.01)
    np.testing.assert_array_equal(correct_flat(measured(expected), 7 * flat).intensity, volume.intensity)


@pytest.mark.parametrize("correct", [correct_dark, correct_flat])
@pytest.mark.parametrize("field", [np.ones((4, 5)), np.ones((5, 4), complex)])
def test_fields_must_fit(correct, field):
    with pytest.raises(InvalidInput, match="region"):
        correct(measured(np.ones((3, 5, 4))), field)


def test_a_flat_of_nothing_is_refused():
    with pytest.raises(InvalidInput, match="positive somewhere"):
        correct_flat(measured(np.ones((3, 5, 4))), np.zeros((5, 4)))


@pytest.mark.parametrize("background", [0.05, 1.0, 20.0])
def test_background_is_measured_beside_the_peak_and_subtracted(background):
    volume = measured(on_background(background=background, top=1e5))
    assert estimate_background(volume) == pytest.approx(background, rel=0.15)
    clean = subtract_background(volume)
    assert clean.intensity.min() == 0
    assert clean.intensity.max() == pytest.approx(volume.intensity.max() - background, rel=1e-3)
    assert subtract_background(volume, 5.0).intensity.sum() < volume.intensity.sum()


@pytest.mark.parametrize("phase", [0.0, 3.0, 6.0])
@pytest.mark.parametrize("oversampling", [2.0, 3.0])
def test_fringes_that_fill_the_volume_are_not_background(phase, oversampling):
    assert estimate_background(measured(crystal(8, 64, oversampling, phase, 1e6))) == 0
    assert estimate_background(measured(crystal(8, 64, oversampling, phase, 1e5))) < 0.3


def test_the_chain_records_every_step_and_leaves_its_input_alone():
    volume = measured(on_background(n=64, background=1.0))
    before = volume.intensity.copy()
    prepared = prepare(volume, dark=np.zeros((64, 64)), flat=np.ones((64, 64)), bad=np.zeros((64, 64)))
    assert [step["step"] for step in prepared.history] == [
        "mask_saturated",
        "mask_bad_pixels",
        "mask_dark",
        "flat_field",
        "mask_flat",
        "mask_gaps",
        "mask_hot_pixels",
        "subtract_background",
        "mask_aliens",
    ]
    np.testing.assert_array_equal(volume.intensity, before)
    assert prepared.intensity.dtype == np.float32
    for step in prepared.history:
        assert all(isinstance(value, int | float | str) for value in step.values())


# --- The crop ---------------------------------------------------------------------------------------------


def test_a_crop_has_the_peak_at_its_centre_and_knows_where_it_was():
    expected = crystal(1, 48, 2.5, 1.0, 1e5, (3, -6, 4))
    volume = DiffractionVolume(
        measured(expected).intensity, np.ones(expected.shape, bool), 0.01 * np.arange(48), window=(10, 20, 30)
    )
    place = tuple(round(c) for c in find_peak(volume))
    crop = crop_around_peak(volume, (16, 21, 12))
    assert crop.intensity[8, 10, 6] == volume.intensity[place]
    assert crop.window == (10 + place[0] - 8, 20 + place[1] - 10, 30 + place[2] - 6)
    first = place[0] - 8
    np.testing.assert_allclose(crop.angles_deg, 0.01 * np.arange(first, first + 16))


def test_a_crop_beyond_the_measured_is_not_valid_there():
    volume = DiffractionVolume(
        np.ones((10, 12, 14), np.float32), np.ones((10, 12, 14), bool), np.arange(10.0)
    )
    crop = crop_around_peak(volume, (20, 20, 20), centre=(1, 11, 7))
    assert crop.valid.sum() == crop.intensity.sum() == 10 * 11 * 14
    np.testing.assert_allclose(crop.angles_deg, np.arange(-9, 11))
    assert not crop_around_peak(volume, (4, 4, 4), centre=(-20, 5, 5)).valid.any()
    assert not crop_around_peak(volume, (4, 4, 4), centre=(30, 5, 5)).valid.any()


@pytest.mark.parametrize("shape", [(4, 4), (4, 0, 4)])
def test_a_crop_needs_a_box(shape):
    with pytest.raises(InvalidInput, match="three positive lengths"):
        crop_around_peak(measured(np.ones((5, 5, 5))), shape)


# --- Fields that metadata name ----------------------------------------------------------------------------


def curve_with(**cdi):
    return RockingCurve(frames=np.zeros((3, 4, 5)), angles_deg=np.arange(3.0), metadata={"cdi": cdi})


def test_fields_are_read_where_the_metadata_say(tmp_path):
    path = tmp_path / "fields.h5"
    with h5py.File(path, "w") as file:
        file["dark"] = np.arange(80).reshape(8, 10)
        file["flat"] = np.ones((1, 4, 5))
    fields = detector_fields(
        curve_with(
            dark_file={"path": str(path), "dataset": "dark", "region": [2, 6, 1, 6]},
            flat_file={"path": str(path), "dataset": "flat"},
        )
    )
    np.testing.assert_array_equal(fields["dark"], np.arange(80).reshape(8, 10)[2:6, 1:6])
    assert fields["flat"].shape == (4, 5)
    assert detector_fields(curve_with()) == {}


@pytest.mark.parametrize(
    "where", [{}, {"path": "no.h5", "dataset": "x"}, "no.h5", {"path": "p", "dataset": "d", "region": 3}]
)
def test_fields_that_cannot_be_read_are_named(where):
    with pytest.raises(InvalidInput, match=r"cdi\.flat_file must name"):
        detector_fields(curve_with(flat_file=where))


# --- The real scan ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan54():
    folder = Path(os.environ.get("CDINN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "aps34idc_scan54.h5"
    if not path.is_file():
        pytest.skip("the measured scan is not here")
    region = {"path": str(path), "region": [0, 256, 0, 256]}
    cdi = {"dark_file": {**region, "dataset": "dark"}, "flat_file": {**region, "dataset": "whitefield"}}
    with h5py.File(path) as file:
        return RockingCurve(file["frames"][()], file["theta_deg"][()], metadata={"cdi": cdi})


def test_the_measured_peak_keeps_its_voxels(scan54):
    raw = assemble(scan54)
    volume = prepare(raw, **detector_fields(scan54))
    assert tuple(round(c) for c in find_peak(raw)) == (99, 126, 127)
    np.testing.assert_allclose(find_peak(volume), find_peak(raw), atol=0.5)
    assert volume.valid.mean() > 0.99
    centre = crop_around_peak(volume, (64, 64, 64), centre=(99, 126, 127))
    assert centre.window == (67, 94, 95)
    assert centre.valid.mean() > 0.999
    assert volume.valid[raw.intensity > 100].all()
    assert steps(volume)["mask_aliens"]["aliens"] == 0

import numpy as np
import pytest
from crystals import crystal_density, far_field, random_object

from bluesky_cdinn import quality

SHAPES = [(8, 8, 8), (7, 9, 5), (6, 7, 8)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def crystal():
    return crystal_density(3, 3.0, (28, 32, 27), oversampling=2.2)


@pytest.fixture(scope="module")
def support(crystal):
    return quality.half_level_support(crystal)


@pytest.mark.parametrize("shape", SHAPES)
def test_twin_is_its_own_inverse_and_keeps_the_origin(rng, shape):
    density = random_object(rng, shape)
    np.testing.assert_array_equal(quality.twin(quality.twin(density)), density)
    origin = tuple(n // 2 for n in shape)
    assert quality.twin(density)[origin] == np.conj(density[origin])
    # A twin's field is the conjugate one: no voxel of it moves.
    np.testing.assert_allclose(far_field(quality.twin(density)), np.conj(far_field(density)), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_is_periodic_exact_for_whole_voxels_and_undone_by_its_opposite(rng, shape):
    density = random_object(rng, shape)
    rolled = np.roll(density, (1, -2, 3), axis=(0, 1, 2))
    np.testing.assert_allclose(quality.shift(density, (1, -2, 3)), rolled, atol=1e-12)
    there = quality.shift(density, (0.4, 1.3, -2.6))
    np.testing.assert_allclose(quality.shift(there, (-0.4, -1.3, 2.6)), density, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_ramp_moves_a_pattern_by_its_cycles(rng, shape):
    density = random_object(rng, shape)
    moved = far_field(density * quality.ramp(shape, (2, -1, 3), np.complex128))
    np.testing.assert_allclose(moved, np.roll(far_field(density), (2, -1, 3), axis=(0, 1, 2)), atol=1e-12)
    assert quality.ramp(shape, (0.3, 0.2, 0.1))[tuple(n // 2 for n in shape)] == 1


@pytest.mark.parametrize("offset", [(0, 0, 0), (3, -5, 1), (0.35, -0.8, 2.45), (-13.4, 15.75, -6.6)])
def test_best_shift_is_found_to_a_twentieth_of_a_voxel(crystal, offset):
    reference = quality.shift(crystal, offset)
    found, overlap = quality.best_shift(crystal, reference)
    period = np.array(crystal.shape)
    off = (np.array(found) - offset + period / 2) % period - period / 2
    assert np.abs(off).max() <= 1 / 40 + 1e-6
    assert abs(overlap) == pytest.approx(np.linalg.norm(crystal) ** 2, rel=1e-3)
    assert overlap == pytest.approx(np.vdot(quality.shift(crystal, found), reference), rel=1e-3)


def test_best_shift_tells_the_global_phase(crystal):
    _, overlap = quality.best_shift(crystal, crystal * np.exp(0.8j))
    assert np.angle(overlap) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("twins", [False, True], ids=["same", "twin"])
@pytest.mark.parametrize("offset", [(0, 0, 0), (3, -5, 1), (0.35, -0.8, 2.45)])
@pytest.mark.parametrize("cycles", [(0, 0, 0), (1.3, -0.6, 2.1)], ids=["flat", "ramp"])
def test_comparison_removes_every_ambiguity(crystal, twins, offset, cycles):
    other = quality.twin(crystal) if twins else crystal
    # A ramp has no meaning at the voxels of a sharp edge that a fraction of a shift has blurred.
    other = 3.7 * np.exp(2j) * quality.shift(other * quality.ramp(other.shape, cycles), offset)
    found = quality.compare(other, crystal)
    assert found.correlation > 0.998
    assert found.phase_rmse < 0.02
    assert found.amplitude_nrmse < 0.05
    assert found.iou > 0.99


def test_a_peak_far_off_the_centre_changes_no_comparison(crystal):
    far = quality.ramp(crystal.shape, (11, -14, 9))
    other = crystal * np.exp(0.2j * np.abs(crystal))
    expected = quality.compare(other, crystal)
    for offset in ((0, 0, 0), (0.35, -0.45, 0.5), (2.5, -3.4, 1.5)):
        found = quality.compare(quality.shift(other, offset) * far, crystal * far)
        assert found.correlation == pytest.approx(expected.correlation, abs=0.002)
        assert found.phase_rmse == pytest.approx(expected.phase_rmse, abs=0.01)
        assert found.iou == pytest.approx(expected.iou, abs=0.01)
        # A shift keeps the pattern's place.
        again = quality.shift(quality.shift(crystal, offset) * far, np.negative(offset))
        assert quality.similarity(again, crystal * far) == pytest.approx(1, abs=1e-5)


def test_comparison_sees_what_is_different(crystal, support):
    rng = np.random.default_rng(1)
    noise = np.exp(1j * rng.normal(0, 0.3, crystal.shape))
    assert quality.compare(crystal * noise, crystal).phase_rmse == pytest.approx(0.3, abs=0.03)
    half = crystal.copy()
    half[: crystal.shape[0] // 2] = 0
    assert quality.compare(half, crystal).iou == pytest.approx(
        np.count_nonzero(half) / np.count_nonzero(crystal), abs=0.1
    )
    nothing = quality.compare(np.zeros_like(crystal), crystal)
    assert nothing.correlation == nothing.iou == 0


def test_alignment_keeps_the_scale(crystal):
    moved = 2 * quality.shift(quality.twin(crystal), (1.5, 2.25, -3)) * np.exp(1j)
    aligned = quality.align(moved, crystal)
    assert np.linalg.norm(aligned) == pytest.approx(2 * np.linalg.norm(crystal), rel=1e-5)
    assert quality.similarity(aligned, crystal) > 0.998
    assert quality.phase_difference(aligned, crystal) < 0.05
    left = quality.align(moved, crystal, twins=False)
    assert quality.similarity(left, crystal) < 0.99


def test_correlation_needs_no_alignment(crystal):
    moved = quality.shift(quality.twin(crystal), (4, -2, 1)) * np.exp(1j)
    assert quality.correlation(moved, crystal) == pytest.approx(1, abs=1e-3)
    assert quality.correlation(np.zeros_like(crystal), crystal) == 0


@pytest.mark.parametrize("phase_range", [0.5, 3.0, 6.0])
@pytest.mark.parametrize("shape", [(28, 32, 27), (25, 25, 25)])
def test_canonical_form_is_one_for_all_equals(phase_range, shape):
    density = crystal_density(5, phase_range, shape, oversampling=2.2)
    support = np.abs(density) > 0.3
    form, where = quality.canonical(density, support)
    for twins in (False, True):
        for step in [(0, 0, 0), (3, -6, 14)]:
            other = np.roll(quality.twin(density) if twins else density, step, (0, 1, 2)) * np.exp(2.5j)
            other_support = np.abs(other) > 0.3
            again, there = quality.canonical(other, other_support)
            np.testing.assert_allclose(again, form, atol=2e-5)
            np.testing.assert_array_equal(there, where)
    once_more, _ = quality.canonical(form, where)
    np.testing.assert_allclose(once_more, form, atol=2e-5)


def test_canonical_form_has_its_mass_at_the_middle_and_its_mean_phase_at_zero(crystal, support):
    moved = np.roll(crystal, (9, 12, -11), (0, 1, 2)) * np.exp(1j)
    form, where = quality.canonical(moved, np.roll(support, (9, 12, -11), (0, 1, 2)))
    middle = np.average(np.argwhere(where), axis=0, weights=np.abs(form[where]))
    assert np.abs(middle - [n // 2 for n in form.shape]).max() <= 0.51
    assert np.angle(form[where].sum()) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(
        np.sort(np.abs(far_field(form)).ravel()), np.sort(np.abs(far_field(crystal)).ravel()), atol=1e-4
    )


def test_half_level_support_is_that_of_a_sharp_body_whatever_the_box():
    density = np.zeros((20, 20, 20), dtype=np.complex64)
    density[5:12, 6:10, 7:15] = 3 * np.exp(1j)
    assert quality.typical_amplitude(density) == pytest.approx(3)
    np.testing.assert_array_equal(quality.half_level_support(density), density != 0)
    assert not quality.half_level_support(np.zeros_like(density)).any()


def test_transfer_is_one_for_identical_objects_and_near_zero_for_unrelated_ones(rng, crystal):
    frequency, value = quality.phase_retrieval_transfer([crystal, crystal, crystal])
    np.testing.assert_allclose(value, 1, atol=1e-6)
    assert len(frequency) == min(crystal.shape) // 2
    assert 0 < frequency[0] < frequency[-1] < 0.5
    noise = [random_object(rng, (32, 32, 32)) for _ in range(4)]
    frequency, value = quality.phase_retrieval_transfer(noise)
    assert value[frequency > 0.2].max() < 0.25
    assert value[frequency > 0.2].mean() < 0.1


def test_transfer_falls_where_starts_differ(rng, crystal):
    shape = crystal.shape
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")
    frequency = np.sqrt(sum(a**2 for a in axes))
    spectrum = np.fft.fftn(crystal)
    starts = []
    for _ in range(3):
        phase = np.where(frequency > 0.25, rng.uniform(0, 2 * np.pi, shape), 0)
        starts.append(np.fft.ifftn(spectrum * np.exp(1j * phase)))
    transfer = quality.phase_retrieval_transfer(starts)
    assert transfer[1][transfer[0] < 0.23].min() > 0.99
    assert quality.resolved_frequency(transfer) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # the line from (0.2, 0.8) to (0.3, 0.2) crosses 0.5 at 0.25
        ([1.0, 0.8, 0.2, 0.1], 0.25),
        # never under the level: as far as it was measured
        ([1.0, 0.9, 0.8, 0.7], 0.4),
        # under it from the start
        ([0.3, 0.9, 0.9, 0.9], 0.1),
        # the first time counts
        ([1.0, 0.5, 0.4, 0.9], 0.2),
    ],
)
def test_resolved_frequency_lies_where_the_curve_first_crosses(values, expected):
    transfer = np.array([[0.1, 0.2, 0.3, 0.4], values], dtype=np.float32)
    assert quality.resolved_frequency(transfer, level=0.5) == pytest.approx(expected, abs=1e-6)


def test_phase_difference_of_objects_that_share_no_place_is_unknown(crystal):
    assert np.isnan(quality.phase_difference(np.zeros_like(crystal), crystal))
    assert quality.phase_difference(crystal * np.exp(1j), crystal) == pytest.approx(0, abs=1e-3)

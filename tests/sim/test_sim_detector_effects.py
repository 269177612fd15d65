import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.detector_effects import DetectorModel, random_detector

SHAPE = (40, 50)
NOTHING = np.zeros(SHAPE)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_counts_are_poisson(rng):
    detector = DetectorModel(SHAPE)
    counts = np.stack([detector.expose(np.full(SHAPE, 7.0), rng) for _ in range(50)])
    assert counts.dtype == np.uint16
    assert counts.mean() == pytest.approx(7.0, abs=0.05)
    assert counts.var() == pytest.approx(7.0, abs=0.15)


def test_nothing_gives_nothing(rng):
    assert not DetectorModel(SHAPE).expose(NOTHING, rng).any()
    assert DetectorModel(SHAPE).mask.all()


def test_background_follows_the_exposure_and_its_gradient(rng):
    detector = DetectorModel(SHAPE, background=100.0, background_gradient=(0.5, 0.0))
    counts = np.mean([detector.expose(NOTHING, rng, 2.0) for _ in range(40)], axis=0)
    assert counts.mean() == pytest.approx(200.0, rel=0.01)
    assert counts[0].mean() == pytest.approx(150.0, rel=0.02)
    assert counts[-1].mean() == pytest.approx(250.0, rel=0.02)


def test_faults_are_where_the_mask_says(rng):
    dead, hot = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE)
    dead[3, 4], hot[7, 8] = True, 500.0
    detector = DetectorModel(
        SHAPE, dead=dead, hot=hot, gap_rows=[(20, 22)], gap_columns=[(10, 13)], gap_value=65535
    )
    counts = detector.expose(np.full(SHAPE, 100.0), rng, 4.0)
    assert counts[3, 4] == 0
    assert counts[7, 8] == pytest.approx(2100, abs=300)
    assert (counts[20:22] == 65535).all()
    assert (counts[:, 10:13] == 65535).all()
    expected = np.ones(SHAPE, dtype=bool)
    expected[3, 4] = expected[7, 8] = False
    expected[20:22] = expected[:, 10:13] = False
    np.testing.assert_array_equal(detector.mask, expected)
    assert counts[expected].max() < 200


def test_saturation_clips(rng):
    assert (DetectorModel(SHAPE, saturation=4095).expose(np.full(SHAPE, 1e5), rng) == 4095).all()
    assert (DetectorModel(SHAPE).expose(np.full(SHAPE, 1e7), rng) == 65535).all()
    large = DetectorModel(SHAPE, dtype=np.int32).expose(np.full(SHAPE, 1e7), rng)
    assert large.mean() == pytest.approx(1e7, rel=1e-4)


def test_offset_and_read_noise(rng):
    counts = DetectorModel(SHAPE, dtype=np.int32, offset=10.0, read_noise=3.0).expose(NOTHING, rng)
    assert counts.mean() == pytest.approx(10.0, abs=0.3)
    assert counts.std() == pytest.approx(3.0, abs=0.3)
    assert DetectorModel(SHAPE, read_noise=3.0).expose(NOTHING, rng).min() == 0


def test_efficiency_scales_the_photons(rng):
    efficiency = np.full(SHAPE, 0.25)
    counts = DetectorModel(SHAPE, efficiency=efficiency).expose(np.full(SHAPE, 400.0), rng)
    assert counts.mean() == pytest.approx(100.0, abs=1.0)


def test_a_usual_detector_has_the_usual_faults(rng):
    detector = random_detector(rng, (256, 256), dead_fraction=1e-3, hot_fraction=1e-3)
    assert 0.0005 < detector.dead.mean() < 0.002
    assert 0.0005 < (detector.hot > 0).mean() < 0.002
    assert not detector.mask[:, 64:68].any()
    assert detector.mask.mean() > 0.97
    assert detector.expose(np.zeros((256, 256)), rng).dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": np.float32}, "an integer type, got float32"),
        ({"dead": np.zeros((2, 2), dtype=bool)}, r"dead must have the detector's shape \(40, 50\)"),
        ({"background": -1.0}, "must not be negative"),
        ({"background_gradient": (2.0, 1.0)}, "must not be negative"),
        ({"saturation": 70000}, "from 1 to 65535 for uint16, got 70000"),
    ],
)
def test_an_impossible_detector_is_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        DetectorModel(SHAPE, **arguments)


def test_a_frame_of_another_shape_is_refused(rng):
    with pytest.raises(InvalidInput, match=r"got \(3, 3\)"):
        DetectorModel(SHAPE).expose(np.zeros((3, 3)), rng)

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, far_field

from bluesky_cdinn.forward import to_centre
from bluesky_cdinn.posing import centre_peak, padded, pose
from bluesky_cdinn.preprocess import crop_around_peak
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.refine import Objects
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.warm_start import WarmStart, boxed, zero_frequency

CPU = torch.device("cpu")


def posed(volume):
    centred, roll = centre_peak(volume)
    return centred, pose(padded(centred, roll), ReconstructionOptions(), CPU)


def known(density, problem):
    """The truth as polishing leaves it: centred at n // 2 of the array."""
    shape = problem.working.measurement.magnitude.shape
    values = torch.from_numpy(density)[None]
    objects = Objects.start(values, torch.ones_like(values.real))
    return boxed(objects, tuple(shape))


@pytest.mark.parametrize("cycles", [(0, 0, 0), (2, -3, 1)])
@pytest.mark.parametrize("angles", [None, np.linspace(-0.3, 0.3, 32)], ids=["slices", "angles"])
def test_an_object_fits_another_volume_of_the_same_scan(cycles, angles):
    density, counts = crystal_and_counts(5, 2.0, (32, 32, 32), peak=1e8)
    first = DiffractionVolume(counts, np.ones(counts.shape, bool), angles_deg=angles)
    centred, problem = posed(first)
    warm = WarmStart.of(known(density, problem), problem, centred)
    # The same scan, with a box of another size around another place.
    box = tuple(16 + c for c in cycles)
    other = crop_around_peak(first, (28, 36, 24), box)
    centred, problem = posed(other)
    objects = warm.on(problem, centred)
    field = np.abs(far_field(objects.density[0].numpy()))
    goal = np.sqrt(to_centre(problem.working.measurement.magnitude.square()).numpy())
    measured = to_centre(problem.working.measurement.fitted).numpy()
    scale = (field * goal)[measured].sum() / (field[measured] ** 2).sum()
    assert ((scale * field - goal)[measured] ** 2).sum() / (goal[measured] ** 2).sum() < 2e-3


def test_the_zero_frequency_is_an_angle_however_slices_are_counted():
    _, counts = crystal_and_counts(5, 2.0, (32, 32, 32))
    angles = np.linspace(-0.3, 0.3, 32)
    whole = DiffractionVolume(counts, np.ones(counts.shape, bool), angles_deg=angles)
    late = DiffractionVolume(counts[6:], np.ones(counts[6:].shape, bool), angles_deg=angles[6:])
    places = [zero_frequency(centre_peak(volume)[0]) for volume in (whole, late)]
    # Both see the same peak, to a voxel.
    assert abs(places[0][0] - places[1][0]) <= angles[1] - angles[0] + 1e-9
    assert places[0][1:] == places[1][1:]


def test_rolling_moves_angles_with_the_window():
    _, counts = crystal_and_counts(5, 0.5, (32, 32, 32), cycles=(5, 0, 0))
    volume = DiffractionVolume(counts, np.ones(counts.shape, bool), angles_deg=np.arange(32.0))
    centred, roll = centre_peak(volume)
    assert roll[0] == -5
    assert centred.angles_deg[16] == pytest.approx(21)
    assert zero_frequency(centred)[0] == pytest.approx(21)


@pytest.mark.parametrize(("small", "large"), [((8, 9, 10), (12, 13, 15))])
def test_boxes_keep_what_lies_about_the_middle(small, large):
    density = torch.randn(2, *small, dtype=torch.complex64)
    objects = Objects.start(density, torch.ones_like(density.real))
    back = boxed(boxed(objects, large), small)
    torch.testing.assert_close(back.density, objects.density)

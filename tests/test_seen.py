import numpy as np
import pytest
import torch

from bluesky_cdinn.detection import Detection
from bluesky_cdinn.seen import frame_scales, remarks, seen_numbers

SHAPE = (8, 10, 12)
ALL = np.ones(SHAPE, np.bool_)


def test_an_ideal_detection_has_no_numbers():
    assert seen_numbers(None, np.ones(SHAPE, np.float32), ALL, None) == {}
    assert remarks({}) == []


def test_coherence_falls_over_the_length_that_is_told():
    """At that lag in the crystal the mutual coherence is exp(-1/2)."""
    detection = Detection(SHAPE, (0.5, 0.0, 0.8))
    numbers = seen_numbers(detection, np.ones(SHAPE, np.float32), ALL, np.diag([4.0, 5.0, 6.0]))
    assert numbers["coherence_sigma_rocking"] == 0.5
    assert "coherence_length_row_nm" not in numbers
    lag = numbers["coherence_length_column_nm"] / 6.0
    assert np.exp(-2 * (np.pi * 0.8 * lag / 12) ** 2) == pytest.approx(np.exp(-0.5))
    assert remarks(numbers)[0].startswith("blurred: by 0.80 voxels along column (one sigma)")


def test_background_and_frames_are_told():
    scales = torch.ones(8)
    scales[torch.tensor([1, 6])] = torch.tensor([0.5, 3.0])
    counts = np.full(SHAPE, 4.0, np.float32)
    # Origin at index 0: frame 6 of the tensor is the third; it holds nothing, so its scale means nothing.
    counts[2] = 0
    detection = Detection(SHAPE, background=torch.full(SHAPE, 1.5), scales=scales)
    numbers = seen_numbers(detection, counts, ALL, None)
    assert numbers["background_counts"] == pytest.approx(1.5)
    assert numbers["background_share"] == pytest.approx(1.5 * 8 / (4 * 7))
    assert (numbers["frame_scale_min"], numbers["frame_scale_max"]) == (0.5, 1.0)
    assert np.isnan(frame_scales(detection, counts)[2])
    assert [line.split(":")[0] for line in remarks(numbers)] == ["background", "frames differ"]


def test_the_background_s_share_is_of_what_was_measured():
    valid = ALL.copy()
    valid[:, :, 3:] = False
    detection = Detection(SHAPE, background=torch.full(SHAPE, 1.5))
    numbers = seen_numbers(detection, 6 * valid.astype(np.float32), valid, None)
    assert numbers["background_counts"] == pytest.approx(1.5)
    assert numbers["background_share"] == pytest.approx(0.25)

import re
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.sampling import CUT, check_edges, check_oversampling, oversampling


def peak(centre=(16, 20, 12), shape=(32, 40, 24), width=2.0):
    offsets = np.indices(shape).T - np.array(centre)
    counts = 1e4 * np.exp(-(offsets.T**2).sum(axis=0) / (2 * width**2))
    return DiffractionVolume(counts.astype(np.float32), np.ones(shape, bool))


def test_oversampling_is_the_grid_over_the_object():
    support = np.zeros((30, 40, 50), bool)
    support[10:20, 5:15, 20:45] = True
    ratios = oversampling(support)
    assert ratios == {"oversampling_rocking": 3.0, "oversampling_row": 4.0, "oversampling_column": 2.0}
    assert check_oversampling(ratios) == []


def test_too_coarse_a_step_is_told_with_what_helps(caplog):
    support = np.zeros((30, 40, 50), bool)
    support[5:25, 10:20, 10:20] = True
    (line,) = check_oversampling(oversampling(support))
    assert line == "oversampled 1.50 times along rocking, 2 is the least: take smaller steps"
    assert line in caplog.text
    assert check_oversampling({}) == []


def test_a_whole_peak_is_no_reason_to_warn(caplog):
    checked = check_edges(peak())
    (step,) = checked.history
    assert step["step"] == "check_edges"
    assert step["warnings"] == []
    assert max(value for key, value in step.items() if key not in ("step", "warnings")) < 1e-6
    assert caplog.text == ""
    assert check_edges(checked) is checked


@pytest.mark.parametrize(
    ("centre", "line"),
    [
        ((2, 20, 12), "at the first of rocking: .*scan on beyond"),
        ((16, 38, 12), "at the last of row: .*centre it on the detector"),
        ((16, 20, 0), "at the first of column: 100% of its height"),
    ],
)
def test_a_cut_peak_is_told(centre, line, caplog):
    (step,) = check_edges(peak(centre)).history
    assert len(step["warnings"]) == 1
    assert re.search(line, step["warnings"][0])
    assert step["warnings"][0] in caplog.text


def test_what_was_not_measured_is_no_edge():
    volume = peak()
    valid = volume.valid.copy()
    valid[19:] = False
    (step,) = check_edges(replace(volume, valid=valid)).history
    # The last slice that was measured is two beyond the peak's, which is 0.6 of its height.
    assert step["rocking_last"] == pytest.approx(np.exp(-0.5), rel=1e-3)
    assert step["rocking_last"] > CUT
    empty = replace(volume, intensity=np.zeros_like(volume.intensity))
    assert check_edges(empty).history[0]["warnings"] == []
    none = replace(volume, valid=np.zeros_like(valid))
    assert check_edges(none).history[0]["warnings"] == []

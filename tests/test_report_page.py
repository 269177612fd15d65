"""The one-page report and the page for a browser say what there is, for every kind of result."""

from dataclasses import replace

import numpy as np
import pytest
from test_view import ball, words

from bluesky_cdinn.facets import facets_of_table
from bluesky_cdinn.page3d import page
from bluesky_cdinn.report import RockingTotals, facet_rows, number_rows
from bluesky_cdinn.report_page import report_page


@pytest.mark.parametrize("basis", [True, False])
def test_a_page_is_whole(basis):
    result = ball() if basis else ball(basis=None)
    slices = np.random.default_rng(1).poisson(5.0, (2, 3, 32, 32)).astype(np.float32)
    text = words(report_page(replace(result, intensity_slices=slices)))
    assert "Measured, counts" in text
    assert ("bulk" in text) == basis
    assert ("against the beam, from +z" in text) == basis
    assert ("along rocking" in text) != basis


def test_a_page_tells_facets_sigmas_and_warnings():
    table = np.zeros((2, 13))
    table[:, :5] = [[0, 0, 1, 4000.0, 50.0], [0, 1, 0, 300.0, 50.0]]
    table[0, 5], table[1, 5] = -2e-4, np.nan
    table[0, 10:] = 1
    result = replace(
        ball(),
        facet_table=table,
        scalars={"phase_sd_rad": 0.02, "strain_sd_typical": 3e-5, "strain_mean_surface": 1e-4},
        history=({"step": "check_edges", "warnings": ["the peak is cut off"]},),
    )
    assert len(facets_of_table(table)) == 2
    assert facet_rows(result) == [("{111}", "4000", "-2.00"), ("unnamed", "300", "")]
    for text in (words(report_page(result)), page(result)):
        assert "{111}" in text
        assert "0.020 rad" in text
        assert "1.00 · 10⁻⁴" in text
        assert "the peak is cut off" in text


def test_each_direction_is_a_bound_of_its_own():
    numbers = {"resolution_x_nm": 10.0, "resolution_limit_x_nm": 10.0, "resolution_y_nm": 14.0}
    rows = dict(number_rows({**numbers, "resolution_limit_y_nm": 10.0, "resolution_voxels": 1.0}))
    assert rows == {"resolution along x, y": "≤10 / 14 nm", "resolution": "≤1.0 voxels"}


def test_an_energy_scan_is_not_given_in_degrees():
    text = words(report_page(ball(), RockingTotals(np.linspace(9, 9.1, 5), np.ones(5), "energy")))
    assert "energy (keV)" in text
    assert "°" not in text


def test_a_failed_result_has_its_pages():
    empty = np.zeros((0, 0, 0))
    failed = replace(
        ball(), density=empty.astype(np.complex64), support=empty.astype(bool), status="failed", reason="<no>"
    )
    told = words(report_page(failed, RockingTotals(np.linspace(0, 1, 5), np.ones(5))))
    assert "<no>" in told
    assert "sample: gold" in told
    assert "single start" not in told
    text = page(failed)
    assert "&lt;no&gt;" in text
    assert len(text) < 1e5


def test_a_browsers_page_needs_nothing_else():
    text = page(ball())
    assert '"name": "Strain"' in text
    assert 'src="http' not in text
    assert len(text) < 7e6


def test_a_notebook_shows_numbers_and_a_picture():
    text = ball()._repr_html_()
    assert "120 nm" in text
    assert "data:image/png;base64," in text

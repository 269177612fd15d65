"""The one-page report and the page for a browser say what there is, for every kind of result."""

from dataclasses import replace

import numpy as np
import pytest
from test_view import ball, words

from bluesky_cdinn.page3d import page
from bluesky_cdinn.report_page import report_page


@pytest.mark.parametrize("basis", [True, False])
def test_a_page_is_whole(basis):
    result = ball() if basis else ball(basis=None)
    slices = np.random.default_rng(1).poisson(5.0, (2, 3, 32, 32)).astype(np.float32)
    text = words(report_page(replace(result, intensity_slices=slices)))
    assert "Measured, counts" in text
    assert ("bulk" in text) == basis
    assert ("against the beam, from +z" in text) == basis


def test_a_failed_result_has_its_pages():
    empty = np.zeros((0, 0, 0))
    failed = replace(
        ball(), density=empty.astype(np.complex64), support=empty.astype(bool), status="failed", reason="<no>"
    )
    assert "<no>" in words(report_page(failed))
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

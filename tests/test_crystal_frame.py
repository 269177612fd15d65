"""A crystal's own axes, from its Bragg vector and what else is known of how it stands."""

import numpy as np
import pytest

from bluesky_cdinn.crystal_frame import axes_along_q, crystal_axes
from bluesky_cdinn.errors import InvalidInput


def test_q_upright_keeps_the_labs_x() -> None:
    np.testing.assert_allclose(axes_along_q([0, 5.0, 0]), [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-12)


def test_crystal_axes_come_of_q_and_one_direction_more() -> None:
    turned, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turned *= np.linalg.det(turned)  # columns: where [100], [010], [001] point
    axes = crystal_axes(26.0 * turned @ [1, 1, 1], (1, 1, 1), turned @ [0.02, 1.0, -1.03], (0, 1, -1))
    angle = np.degrees(np.arccos((np.trace(axes @ turned) - 1) / 2))
    assert angle < 1.5
    np.testing.assert_allclose(axes @ turned @ [1, 1, 1], [1, 1, 1], atol=1e-12)  # Q is held to
    np.testing.assert_allclose(np.linalg.det(axes), 1)
    with pytest.raises(InvalidInput, match="deg from Q"):
        crystal_axes(turned @ [1, 1, 1], (1, 1, 1), turned @ [1, 0, 0], (0, 1, -1))
    with pytest.raises(InvalidInput, match="across Q"):
        crystal_axes(turned @ [1, 1, 1], (1, 1, 1), turned @ [2, 2, 2], (2, 2, 2))

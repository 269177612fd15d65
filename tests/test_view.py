"""Figures: right in the lab frame, legible for every kind of result, made without pyplot and torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from bluesky_cdinn import colours, crystal_box, view
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.report import RockingTotals

SHEARED = np.array([[8.0, 0.0, 0.0], [1.0, 7.0, 0.0], [4.0, 0.0, 7.0]])


def ball(basis: np.ndarray | None = SHEARED, radius: float = 60.0, n: int = 32) -> Reconstruction:
    """Return a ball, in the lab, with a phase that bends along x."""
    indices = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"), axis=-1)
    points = indices @ (SHEARED if basis is None else basis).T
    support = np.linalg.norm(points, axis=-1) < radius
    density = np.where(support, np.exp(1j * (points[..., 0] / radius) ** 2), 0).astype(np.complex64)
    strain = np.where(support, points[..., 1] * 1e-5, np.nan).astype(np.float32)
    return Reconstruction(
        density=density,
        support=support,
        chi2=0.005,
        scalars={"size_nm": 2 * radius},
        direct_basis=basis,
        strain=strain if basis is not None else None,
        progress=np.geomspace(1, 0.005, 50).astype(np.float32),
        resolution_curve=np.array([[0, 0.25, 0.5], [1, 0.8, 0.3]], dtype=np.float32),
        raw_uid="0123456789",
        scan_id=7,
        metadata={"sample": "gold"},
    )


def words(drawing: view.Figure) -> str:
    """Return everything that is written in a figure."""
    drawing.canvas.draw()
    return " ".join(text.get_text() for text in drawing.findobj(lambda a: hasattr(a, "get_text")))


def test_the_lab_frame_undoes_the_shear() -> None:
    box = crystal_box.crystal_box(ball(radius=60.0))
    assert box.unit == "nm"
    extents = np.ptp(np.argwhere(box.support), axis=0) * box.step
    np.testing.assert_allclose(extents, 120.0, atol=2 * 8.1)
    phase = np.angle(box.density)
    centre = np.argwhere(box.support).mean(axis=0).round().astype(int)
    along_x = phase[:, centre[1], centre[2]][box.support[:, centre[1], centre[2]]]
    np.testing.assert_allclose(np.diff(along_x, 2)[10:-10], 2 * (box.step / 60.0) ** 2, rtol=0.1)
    assert box.strain is not None
    along_y = box.strain[centre[0], :, centre[2]][box.support[centre[0], :, centre[2]]]
    np.testing.assert_allclose(np.diff(along_y)[2:-2], box.step * 1e-5, rtol=0.2)


def test_without_bases_the_grids_own_axes_are_shown() -> None:
    result = ball(basis=None)
    box = crystal_box.crystal_box(result)
    assert box.unit == "voxel"
    assert box.support.sum() == result.support.sum()
    text = words(view.figure(result))
    assert "rocking (voxel)" in text
    assert "nm)" not in text


def test_a_figure_says_what_is_known_with_units() -> None:
    angles = np.linspace(-0.5, 0.5, 21)
    text = words(view.figure(ball(), RockingTotals(angles, 1e5 * np.exp(-(angles**2) * 20))))
    for word in (
        "gold",
        "scan 7",
        "01234567",
        "120 nm",
        "0.00500",
        "x (nm)",
        "phase (rad)",
        "angle (°)",
        "PRTF",
    ):
        assert word in text
    assert "resolution" not in text  # it wasn't computed


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_figures_are_written_whole(tmp_path: Path, suffix: str) -> None:
    view.save(ball(), tmp_path / f"crystal.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"crystal.{suffix}"]
    if suffix == "png":
        image = imread(tmp_path / "crystal.png")
        assert image[..., :3].std() > 0.05


def test_a_failed_result_shows_its_reason() -> None:
    empty = np.zeros((0, 0, 0))
    failed = Reconstruction(
        empty.astype(np.complex64), empty.astype(bool), status="failed", reason="too few points"
    )
    assert "too few points" in words(view.figure(failed))


def test_an_object_at_the_grids_edge_is_drawn() -> None:
    result = ball(basis=None)
    moved = replace(result, density=np.roll(result.density, 12, 0), support=np.roll(result.support, 12, 0))
    view.figure(moved).canvas.draw()


def test_the_phases_colours_are_cyclic_and_of_even_lightness() -> None:
    table = np.array([to_rgb(c) for c in colours.cyclic_colours().colors])
    steps = np.linalg.norm(np.diff(table, axis=0, append=table[:1]), axis=1)
    assert steps.max() < 4 * np.median(steps)
    luminance = table @ [0.2126, 0.7152, 0.0722]
    assert np.ptp(luminance) < 0.2


def test_view_needs_neither_torch_nor_pyplot() -> None:
    code = "import sys, bluesky_cdinn.view; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

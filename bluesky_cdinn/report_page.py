"""A report of a reconstruction on one page, for the logbook and for the printer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from bluesky_cdinn.colours import INK, PALE
from bluesky_cdinn.crystal_box import Box, crystal_box
from bluesky_cdinn.documents import finite_scalars
from bluesky_cdinn.files import replacing
from bluesky_cdinn.panels import (
    Quantity,
    draw_fineness,
    draw_intensities,
    draw_misfit,
    draw_rocking_curve,
    draw_scale,
    draw_slices,
    draw_strain_histogram,
    dress,
    quantities,
)
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.rendering import SIDES, draw_surface
from bluesky_cdinn.report import number_rows, sample_name

FloatArray = NDArray[np.floating[Any]]

_SIZE = 6.5
_PAGE = (8.27, 11.69)  # A4, inches
_DPI = 130
_LINE = 24.0  # points between numbers


def report_page(result: Reconstruction, rocking: tuple[FloatArray, FloatArray] | None = None) -> Figure:
    """Draw all that a reconstruction says on one page.

    From the top: how it was measured and how well it is known; the diffraction, measured and as the object
    explains it; the crystal's surface from three sides, coloured by strain; and slices through its middle.
    What there is not, is left out and said.

    Parameters
    ----------
    result
        What to report; of a failed one, why it failed and what there is.
    rocking
        Angles in degrees and counts of the rocking curve, each float (points,), where at hand.

    Returns
    -------
    matplotlib.figure.Figure
        A4 upright, belonging to no window.
    """
    page = Figure(figsize=_PAGE, dpi=_DPI, facecolor="white")
    grid = page.add_gridspec(
        4, 2, width_ratios=(1, 0.26), height_ratios=(0.8, 0.95, 1.5, 4.5),
        left=0.075, right=0.965, top=0.93, bottom=0.075, hspace=0.27, wspace=0.3,
    )  # fmt: skip
    _write_head(page, result)
    _draw_course(page, grid, result, rocking)
    if result.intensity_slices is not None:
        row = grid[1, :].subgridspec(1, 7, wspace=0.2, width_ratios=(1, 1, 1, 1, 1, 1, 0.25))
        draw_intensities([page.add_subplot(row[i]) for i in range(6)], result.intensity_slices, _SIZE)
    else:
        _say(page.add_subplot(grid[1, :]), "no slices of the intensity were stored with this result")
    if result.support.any():
        box = crystal_box(result)
        shown = quantities(box)
        _draw_sides(page, grid, box, shown[-1])
        rows = grid[3, 0].subgridspec(len(shown), 3, hspace=0.5, wspace=0.3)
        for number, quantity in enumerate(shown):
            draw_slices([page.add_subplot(rows[number, i]) for i in range(3)], box, quantity, _SIZE)
        _draw_histogram(page, grid, result, shown[-1])
    else:
        _say(page.add_subplot(grid[2:, 0]), result.reason or "an empty reconstruction")
    _write_numbers(page.add_subplot(grid[3, 1]), result)
    return page


def save_report(
    result: Reconstruction, path: Path, rocking: tuple[FloatArray, FloatArray] | None = None
) -> None:
    """Write a report's page; png, pdf or svg as the path's suffix says."""
    page = report_page(result, rocking)
    with replacing(path) as stream:
        page.savefig(stream, format=path.suffix.lstrip(".").lower() or "png")


def _draw_course(
    page: Figure, grid: GridSpec, result: Reconstruction, rocking: tuple[FloatArray, FloatArray] | None
) -> None:
    places = [page.add_subplot(place) for place in grid[0, :].subgridspec(1, 3, wspace=0.28)]
    if rocking is not None:
        draw_rocking_curve(places[0], *rocking, _SIZE)
    else:
        _say(places[0], "the raw run is not at hand: no rocking curve")
    if result.progress is not None and np.isfinite(result.progress).any():
        draw_misfit(places[1], result.progress, _SIZE)
    else:
        _say(places[1], "no misfit was recorded")
    if result.shell_correlation is not None or result.resolution_curve is not None:
        draw_fineness(places[2], result, _SIZE)
    else:
        _say(places[2], "a single start: nothing tells its resolution")


def _draw_sides(page: Figure, grid: GridSpec, box: Box, quantity: Quantity) -> None:
    """Draw the surface from three sides, coloured by strain, or by phase where that isn't known."""
    places = [page.add_subplot(place) for place in grid[2, 0].subgridspec(1, 3, wspace=0.08)]
    surface = box.surface()
    colours = [
        draw_surface(axes, box, surface, quantity, side, _SIZE)
        for axes, side in zip(places, SIDES, strict=True)
    ]
    draw_scale(places[-1], colours[-1], quantity.label, _SIZE)


def _draw_histogram(page: Figure, grid: GridSpec, result: Reconstruction, quantity: Quantity) -> None:
    axes = page.add_subplot(grid[2, 1].subgridspec(2, 1, height_ratios=(0.12, 0.88))[1])
    if result.strain is not None and quantity.title == "Strain":
        draw_strain_histogram(axes, result, quantity.limits, _SIZE)
    else:
        _say(axes, "no geometry:\nvoxel units, no strain")


def _say(axes: Axes, words: str) -> None:
    dress(axes, "", "", "", _SIZE)
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, fontsize=_SIZE + 1, color=PALE, ha="center", va="center", wrap=True)


def _write_head(page: Figure, result: Reconstruction) -> None:
    page.text(0.075, 0.967, sample_name(result), fontsize=15, color=INK, weight="bold", va="center")
    scan = "" if result.scan_id is None else f"scan {result.scan_id}, "
    run = f"raw run {result.raw_uid}" if result.raw_uid else "a volume without a run"
    state = "" if result.status == "success" else f"{result.status.upper()}   "
    page.text(0.965, 0.967, f"{state}{scan}{run}", fontsize=7.5, color=PALE, ha="right", va="center")
    page.text(0.075, 0.018, provenance(result), fontsize=5.8, color=PALE, va="bottom", wrap=True)


def _write_numbers(axes: Axes, result: Reconstruction) -> None:
    axes.set_axis_off()
    rows: Sequence[tuple[str, str]] = [
        *number_rows(finite_scalars(result)),
        ("grid", " x ".join(map(str, result.density.shape))),
    ]
    for line, (heading, value) in enumerate(rows):
        for text, drop, size, colour in ((heading, 0, 6.5, PALE), (value, 8.5, 9, INK)):
            at = (0, -_LINE * line - drop)
            axes.annotate(
                text, (-0.02, 1), at, xycoords="axes fraction", textcoords="offset points",
                va="top", fontsize=size, color=colour,
            )  # fmt: skip


def provenance(result: Reconstruction) -> str:
    """Return in two lines what a result was made by and from."""
    told = result.parameters
    made = [f"bluesky-cdinn {told.get('version', '?')}", f"torch {told.get('torch', '?')}"]
    made += [f"{name} {told[name]}" for name in ("device", "found_from", "starts", "seed") if name in told]
    weights = told.get("weights")
    if isinstance(weights, Mapping):
        made.append(f"weights {weights.get('name')}, sha256 {str(weights.get('sha256'))[:12]}")
    steps = [str(step.get("step", "?")) for step in result.history]
    missing = told.get("missing_metadata")
    lines = ["; ".join(made), "steps: " + ", ".join(steps)]
    if missing:
        lines[0] += f"; missing in the documents: {', '.join(map(str, missing))}"
    return "\n".join(line if len(line) < 190 else f"{line[:187]}..." for line in lines)

"""A reconstruction at a glance: the scan, how phasing went, the crystal in three slices, the numbers."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from bluesky_cdinn.colours import INK, PALE
from bluesky_cdinn.crystal_box import crystal_box
from bluesky_cdinn.documents import finite_scalars
from bluesky_cdinn.files import replacing
from bluesky_cdinn.panels import draw_fineness, draw_misfit, draw_rocking_curve, draw_slices, quantities
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.report import RockingTotals, number_rows, sample_name


def figure(result: Reconstruction, rocking: RockingTotals | None = None) -> Figure:
    """Draw a reconstruction.

    Parameters
    ----------
    result
        What to draw; a failed one shows its reason.
    rocking
        What its frames counted, where at hand.

    Returns
    -------
    matplotlib.figure.Figure
        Ready for ``savefig``, belonging to no window.
    """
    if not result.support.any():
        drawing = Figure(figsize=(8, 3), facecolor="white")
        drawing.text(0.5, 0.5, result.reason or "an empty reconstruction", ha="center", wrap=True)
        return drawing
    box = crystal_box(result)
    rows = quantities(box)
    drawing = Figure(figsize=(12.4, 3.2 + 3.0 * len(rows)), dpi=110, facecolor="white")
    grid = drawing.add_gridspec(
        1 + len(rows), 4, width_ratios=(1, 1, 1, 0.7), height_ratios=(0.62, *(1 for _ in rows)),
        left=0.06, right=0.985, top=0.9, bottom=0.06, hspace=0.36, wspace=0.42,
    )  # fmt: skip
    _draw_course(drawing, grid, result, rocking)
    for number, row in enumerate(rows, start=1):
        draw_slices([drawing.add_subplot(grid[number, column]) for column in range(3)], box, row)
    _draw_numbers(drawing, grid, result)
    return drawing


def save(result: Reconstruction, path: Path, rocking: RockingTotals | None = None) -> None:
    """Draw a reconstruction into an image file; png, pdf or svg as the path's suffix says."""
    drawing = figure(result, rocking)
    with replacing(path) as stream:
        drawing.savefig(stream, format=path.suffix.lstrip(".") or "png")


def _draw_course(
    drawing: Figure, grid: GridSpec, result: Reconstruction, rocking: RockingTotals | None
) -> None:
    """Draw, side by side, the rocking curve, chi2 by iteration and the resolution, those that there are."""
    wanted = [rocking is not None, result.progress is not None, result.resolution_curve is not None]
    places = iter(grid[0, :3].subgridspec(1, max(sum(wanted), 1), wspace=0.32))
    if rocking is not None:
        draw_rocking_curve(drawing.add_subplot(next(places)), rocking)
    if result.progress is not None:
        draw_misfit(drawing.add_subplot(next(places)), result.progress)
    if result.resolution_curve is not None:
        draw_fineness(drawing.add_subplot(next(places)), result)


def _draw_numbers(drawing: Figure, grid: GridSpec, result: Reconstruction) -> None:
    drawing.text(0.06, 0.96, sample_name(result), fontsize=15, color=INK, weight="bold", va="center")
    scan = f"scan {result.scan_id}, " if result.scan_id is not None else ""
    if result.raw_uid:
        drawing.text(
            0.985, 0.96, f"{scan}run {result.raw_uid[:8]}", fontsize=10, color=PALE, ha="right", va="center"
        )
    axes = drawing.add_subplot(grid[:, 3])
    axes.set_axis_off()
    shown = [*number_rows(finite_scalars(result)), ("grid", " x ".join(map(str, result.density.shape)))]
    drop = min(50, 72 * 0.84 * drawing.get_figheight() / len(shown))
    for line, (label, value) in enumerate(shown):
        for text, at, size, colour in ((label, 0, 8.5, PALE), (value, 13, 12, INK)):
            axes.annotate(
                text, (0.06, 1), (0, -drop * line - at), xycoords="axes fraction", textcoords="offset points",
                va="top", fontsize=size, color=colour,
            )  # fmt: skip

"""A report of a reconstruction on one page, for the logbook and for the printer."""

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from bluesky_cdinn.colours import ACCENT, INK, PALE
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
from bluesky_cdinn.rendering import draw_surface, sides
from bluesky_cdinn.report import RockingTotals, facet_rows, number_rows, raw_rows, sample_name

_SIZE = 6.5
_PAGE = (8.27, 11.69)  # A4, inches
_DPI = 130
# Points between numbers, and between facets; facets that are listed.
_LINE, _FACET_LINE, _FACETS = 16.2, 8.2, 6


def report_page(result: Reconstruction, rocking: RockingTotals | None = None) -> Figure:
    """Draw all that a reconstruction says on one page.

    From the top: how it was measured and how well it is known; the diffraction, measured and as the object
    explains it; the crystal's surface from three sides, coloured by strain; slices through its middle, with
    the median of one sigma; beside them its numbers and facets. What there is not, is left out and said.

    Parameters
    ----------
    result
        What to report; of a failed one, why it failed and what there is, on half a page.
    rocking
        What its frames counted, where at hand.

    Returns
    -------
    matplotlib.figure.Figure
        A4 upright, or half of it, belonging to no window.
    """
    if not result.support.any():
        return _failed_page(result, rocking)
    page = Figure(figsize=_PAGE, dpi=_DPI, facecolor="white")
    grid = page.add_gridspec(
        4, 2, width_ratios=(1, 0.26), height_ratios=(0.8, 0.95, 1.5, 4.5),
        left=0.075, right=0.965, top=0.915, bottom=0.075, hspace=0.27, wspace=0.3,
    )  # fmt: skip
    _write_head(page, result)
    _draw_course(page, grid, result, rocking)
    if result.intensity_slices is not None:
        row = grid[1, :].subgridspec(1, 7, wspace=0.2, width_ratios=(1, 1, 1, 1, 1, 1, 0.25))
        draw_intensities([page.add_subplot(row[i]) for i in range(6)], result.intensity_slices, _SIZE)
    else:
        _say(page.add_subplot(grid[1, :]), "no slices of the intensity were stored with this result")
    box = crystal_box(result)
    shown = [_with_sigma(quantity, result.scalars) for quantity in quantities(box)]
    _draw_sides(page, grid, box, shown[-1])
    rows = grid[3, 0].subgridspec(len(shown), 3, hspace=0.5, wspace=0.3)
    for number, quantity in enumerate(shown):
        draw_slices([page.add_subplot(rows[number, i]) for i in range(3)], box, quantity, _SIZE)
    _draw_histogram(page, grid, result, shown[-1])
    _write_numbers(page.add_subplot(grid[3, 1]), result)
    return page


def _failed_page(result: Reconstruction, rocking: RockingTotals | None) -> Figure:
    """Draw why there is no crystal, what was measured, and what the raw run says of itself."""
    page = Figure(figsize=(_PAGE[0], _PAGE[1] / 2), dpi=_DPI, facecolor="white")
    _write_head(page, result, 2)
    reason = textwrap.fill(result.reason or "the reconstruction is empty, and says no reason", 100)
    page.text(0.075, 0.86, reason, fontsize=10.5, color=ACCENT, va="top")
    top = 0.76 - 0.04 * reason.count("\n")
    grid = page.add_gridspec(
        1, 2, width_ratios=(1, 0.8), left=0.085, right=0.965, top=top, bottom=0.2, wspace=0.15
    )
    axes = page.add_subplot(grid[0, 0])
    if rocking is not None:
        draw_rocking_curve(axes, rocking, _SIZE + 1)
    else:
        _say(axes, "the raw run is not at hand:\nno rocking curve")
    words = page.add_subplot(grid[0, 1])
    words.set_axis_off()
    told = (textwrap.shorten(f"{name}: {said}", 62, placeholder=" ...") for name, said in raw_rows(result))
    lines = ["The raw run says", *told]
    fits = int(top * 28)
    words.text(0.05, 1, "\n".join(lines[:fits]), fontsize=_SIZE + 0.5, color=PALE, va="top", linespacing=1.5)
    return page


def save_report(result: Reconstruction, path: Path, rocking: RockingTotals | None = None) -> None:
    """Write a report's page; png, pdf or svg as the path's suffix says."""
    page = report_page(result, rocking)
    with replacing(path) as stream:
        page.savefig(stream, format=path.suffix.lstrip(".").lower() or "png")


def _draw_course(page: Figure, grid: GridSpec, result: Reconstruction, rocking: RockingTotals | None) -> None:
    places = [page.add_subplot(place) for place in grid[0, :].subgridspec(1, 3, wspace=0.28)]
    if rocking is not None:
        draw_rocking_curve(places[0], rocking, _SIZE)
    else:
        _say(places[0], "the raw run is not at hand:\nno rocking curve")
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
        for axes, side in zip(places, sides(box), strict=True)
    ]
    draw_scale(places[-1], colours[-1], quantity.label, _SIZE)


def _draw_histogram(page: Figure, grid: GridSpec, result: Reconstruction, quantity: Quantity) -> None:
    axes = page.add_subplot(grid[2, 1].subgridspec(2, 1, height_ratios=(0.12, 0.88))[1])
    if result.strain is not None and quantity.title == "Strain":
        draw_strain_histogram(axes, result, quantity.limits, _SIZE)
    else:
        _say(axes, "no geometry:\nvoxel units,\nno strain")


def _say(axes: Axes, words: str) -> None:
    dress(axes, "", "", "", _SIZE)
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, fontsize=_SIZE + 1, color=PALE, ha="center", va="center", wrap=True)


def _write_head(page: Figure, result: Reconstruction, stretch: float = 1) -> None:
    """Write title, run, warnings and provenance; ``stretch`` is A4's height over the page's."""
    top = 1 - 0.033 * stretch
    page.text(0.075, top, sample_name(result), fontsize=15, color=INK, weight="bold", va="center")
    scan = "" if result.scan_id is None else f"scan {result.scan_id}, "
    run = f"raw run {result.raw_uid}" if result.raw_uid else "a volume without a run"
    state = "" if result.status == "success" else f"{result.status.upper()}   "
    page.text(0.965, top, f"{state}{scan}{run}", fontsize=7.5, color=PALE, ha="right", va="center")
    warned = "; ".join(result.warnings)
    page.text(0.075, top - 0.014 * stretch, "\n".join(textwrap.wrap(warned, 170)[:2]), fontsize=6,
              color=ACCENT, va="top")  # fmt: skip
    page.text(0.075, 0.018 * stretch, provenance(result), fontsize=5.8, color=PALE, va="bottom")


def _with_sigma(quantity: Quantity, scalars: Mapping[str, float]) -> Quantity:
    """Return a quantity whose label tells the median of its sigma, where that is known."""
    known = {"Phase": ("phase_sd_rad", 1.0), "Strain": ("strain_sd_typical", 1e4)}
    name, factor = known.get(quantity.title, ("", 1.0))
    if name not in scalars:
        return quantity
    return replace(quantity, label=f"{quantity.label}, $\\sigma$ {factor * scalars[name]:.2g}")


def _write_numbers(axes: Axes, result: Reconstruction) -> None:
    axes.set_axis_off()
    rows = [*number_rows(finite_scalars(result)), ("grid", " x ".join(map(str, result.density.shape)))]
    for line, (heading, value) in enumerate(rows):
        _write(axes, 0, _LINE * line, heading, 5.8, PALE)
        _write(axes, 0, _LINE * line + 7, value, 7.8, INK)
    facets = facet_rows(result)
    if not facets:
        return
    top = _LINE * len(rows) + 4
    _write(axes, 0, top, "facets", 5.8, PALE)
    for place, heading in ((42, "nm²"), (72, "strain · 10⁴")):
        _write(axes, place, top, heading, 5.8, PALE)
    for line, facet in enumerate(facets[:_FACETS], start=1):
        for place, value in zip((0, 42, 72), facet, strict=True):
            _write(axes, place, top + _FACET_LINE * line, value, 6.5, INK)
    if len(facets) > _FACETS:
        more = f"and {len(facets) - _FACETS} smaller"
        _write(axes, 0, top + _FACET_LINE * (_FACETS + 1), more, 5.8, PALE)


def _write(axes: Axes, right: float, down: float, words: str, size: float, colour: str) -> None:
    """Write words so many points to the right and down of the top left corner."""
    axes.annotate(
        words, (-0.02, 1), (right, -down), xycoords="axes fraction", textcoords="offset points",
        va="top", fontsize=size, color=colour,
    )  # fmt: skip


def provenance(result: Reconstruction) -> str:
    """Return in two lines what a result was made by and from."""
    told = result.parameters
    made = [f"bluesky-cdinn {told['version']}"] if "version" in told else []
    made += [
        f"{name} {told[name]}" for name in ("torch", "device", "found_from", "starts", "seed") if name in told
    ]
    weights = told.get("weights")
    if isinstance(weights, Mapping):
        made.append(f"weights {weights.get('name')}, sha256 {str(weights.get('sha256'))[:12]}")
    steps = [str(step.get("step", "?")) for step in result.history]
    missing = told.get("missing_metadata")
    if missing:
        made.append(f"missing in the documents: {', '.join(map(str, missing))}")
    lines = ["; ".join(made), "steps: " + ", ".join(steps) if steps else ""]
    return "\n".join(line if len(line) < 190 else f"{line[:187]}..." for line in lines)

"""A reconstruction at one glance: the scan, how the phasing went, the crystal in three slices, the numbers.

Figures are made without pyplot and its global state, so that they may be made in any thread of any process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.documents import finite_scalars
from bluesky_cdinn.files import replacing
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.report import number_rows

FloatArray = NDArray[np.floating[Any]]

_MARGIN = 0.12  # of the crystal's box, left free on each side of it
_INK, _PALE, _ACCENT = "#22262b", "#8a9099", "#b3432b"
_STYLE = {"linewidth": 1.2, "color": _INK}


@dataclass(frozen=True, eq=False)
class Box:
    """A crystal cut out of its grid, on axes that a figure can show.

    Parameters
    ----------
    density, support
        complex64 and bool (n0, n1, n2), the crystal alone with a margin around it.
    strain
        float32, the same shape; None where it isn't known.
    names
        Of the three axes.
    unit
        Of a step along them.
    step
        Length of one voxel along each axis.
    """

    density: NDArray[np.complex64]
    support: NDArray[np.bool_]
    strain: NDArray[np.float32] | None
    names: tuple[str, str, str]
    unit: str
    step: float


def figure(result: Reconstruction, rocking: tuple[FloatArray, FloatArray] | None = None) -> Figure:
    """Draw a reconstruction.

    Parameters
    ----------
    result
        What to draw; a failed one shows its reason.
    rocking
        Angles in degrees and counts of the rocking curve, each float (points,), where at hand.

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
    rows = _slice_rows(box)
    drawing = Figure(figsize=(12.4, 3.2 + 3.0 * len(rows)), dpi=110, facecolor="white")
    grid = drawing.add_gridspec(
        1 + len(rows), 4, width_ratios=(1, 1, 1, 0.7), height_ratios=(0.62, *(1 for _ in rows)),
        left=0.06, right=0.985, top=0.9, bottom=0.06, hspace=0.36, wspace=0.42,
    )  # fmt: skip
    _draw_course(drawing, grid, result, rocking)
    for number, row in enumerate(rows, start=1):
        _draw_slices([drawing.add_subplot(grid[number, column]) for column in range(3)], box, row)
    _draw_numbers(drawing, grid, result)
    return drawing


def save(result: Reconstruction, path: Path, rocking: tuple[FloatArray, FloatArray] | None = None) -> None:
    """Draw a reconstruction into an image file; png, pdf or svg as the path's suffix says."""
    drawing = figure(result, rocking)
    with replacing(path) as stream:
        drawing.savefig(stream, format=path.suffix.lstrip(".") or "png")


def crystal_box(result: Reconstruction) -> Box:
    """Cut the crystal out of its grid, in the lab frame with cubic voxels where the bases are known.

    A volume's own axes are oblique: rocking by a small angle moves the detector's plane through reciprocal
    space along a direction that isn't perpendicular to it. Shown as they are, the crystal would be sheared.
    """
    density = np.where(result.support, result.density, 0)
    if result.direct_basis is not None:
        return _lab_box(result, density, result.direct_basis)
    ranges = _box_ranges(np.argwhere(result.support))
    cut = tuple(
        slice(max(low, 0), min(high, n)) for (low, high), n in zip(ranges, density.shape, strict=True)
    )
    return Box(density[cut], result.support[cut], None, ("rocking", "row", "column"), "voxel", 1.0)


def cyclic_colours(count: int = 256) -> ListedColormap:
    """Return a cyclic colour map of even lightness; blue, its middle, is phase zero.

    A circle in the OKLab space (Ottosson 2020), where equal angles look equally different.
    """
    hue = np.radians(255 + 360 * (np.arange(count) + 0.5) / count - 180)
    lab = np.stack([np.full(count, 0.72), 0.125 * np.cos(hue), 0.125 * np.sin(hue)])
    cones = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_rgb @ (cones @ lab) ** 3).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return ListedColormap(encoded.T, name="cdinn-phase")


def _box_ranges(points: NDArray[Any]) -> list[tuple[int, int]]:
    """Return first and last + 1 along each axis of a box around points (n, axes), with a margin."""
    ranges = []
    for low, high in zip(np.floor(points.min(axis=0)), np.ceil(points.max(axis=0)) + 1, strict=True):
        margin = max(2, round(_MARGIN * (high - low)))
        ranges.append((int(low) - margin, int(high) + margin))
    return ranges


def _lab_box(result: Reconstruction, density: NDArray[np.complex64], basis: FloatArray) -> Box:
    # Half a voxel: linear interpolation then shows what the oblique grid holds without visible stairs.
    step = float(np.linalg.norm(basis, axis=0).min()) / 2
    ranges = _box_ranges(np.argwhere(result.support) @ basis.T / step)
    shape = tuple(high - low for low, high in ranges)
    inverse = np.linalg.inv(basis)
    to_index = np.column_stack([inverse * step, inverse @ np.array([low for low, _ in ranges]) * step])

    def resample(values: FloatArray) -> NDArray[np.float32]:
        return np.asarray(ndimage.affine_transform(values, to_index, output_shape=shape, order=1), np.float32)

    weight = resample(result.support.astype(np.float32))
    inside = weight > 0.5
    lab = np.where(inside, resample(density.real) + 1j * resample(density.imag), 0)
    strain: NDArray[np.float32] | None = None
    if result.strain is not None:  # NaN outside: what lies inside is interpolated from the inside alone
        strain = resample(np.nan_to_num(result.strain))
        strain /= np.maximum(weight, 0.5)
    # Lab axes are (x, y, z); the beam runs along z.
    return Box(lab, inside, strain, ("x", "y", "z"), "nm", step)


@dataclass(frozen=True, eq=False)
class _Row:
    """One quantity in three slices."""

    title: str
    label: str
    values: FloatArray
    colours: Colormap | str
    limits: tuple[float, float]


def _slice_rows(box: Box) -> list[_Row]:
    inside = np.abs(box.density)[box.support]
    amplitude = np.abs(box.density) / np.median(inside)
    highest = float(np.quantile(amplitude[box.support], 0.995))
    rows = [
        _Row("Amplitude", "amplitude / median", amplitude, "viridis", (0.0, highest)),
        _Row("Phase", "phase (rad)", np.angle(box.density), cyclic_colours(), (-np.pi, np.pi)),
    ]
    if box.strain is not None:
        widest = 1e4 * float(np.quantile(np.abs(box.strain[box.support]), 0.98))
        rows.append(_Row("Strain", r"strain ($10^{-4}$)", 1e4 * box.strain, "RdBu_r", (-widest, widest)))
    return rows


def _draw_course(
    drawing: Figure, grid: GridSpec, result: Reconstruction, rocking: tuple[FloatArray, FloatArray] | None
) -> None:
    """Draw, side by side, the rocking curve, chi2 by iteration and the PRTF, those that there are."""
    wanted = [rocking is not None, result.progress is not None, result.resolution_curve is not None]
    places = iter(grid[0, :3].subgridspec(1, max(sum(wanted), 1), wspace=0.32))
    if rocking is not None:
        axes = _dress(drawing.add_subplot(next(places)), "Rocking curve", "angle (°)", "counts")
        order = np.argsort(rocking[0])
        axes.plot(rocking[0][order], rocking[1][order], marker=".", markersize=3, **_STYLE)
        axes.set_yscale("log")
    if result.progress is not None:
        axes = _dress(drawing.add_subplot(next(places)), "Misfit", "iteration", "χ²")
        axes.plot(result.progress, **_STYLE)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    if result.resolution_curve is not None:
        axes = _dress(
            drawing.add_subplot(next(places)),
            "Phase retrieval transfer",
            "frequency (cycles / voxel)",
            "PRTF",
        )
        axes.plot(*result.resolution_curve, **_STYLE)
        axes.axhline(1 / np.e, color=_ACCENT, linewidth=0.8, linestyle="--")
        axes.set_ylim(0, 1.05)


def _dress(axes: Axes, title: str, x: str, y: str) -> Axes:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.tick_params(which="both", labelsize=8, color=_PALE, labelcolor=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PALE)
    return axes


def _draw_slices(places: Sequence[Axes], box: Box, row: _Row) -> None:
    """Draw the three slices through the crystal's centre of mass on one scale, and the colours' scale."""
    centre = np.argwhere(box.support).mean(axis=0).round().astype(int)
    norm = Normalize(*row.limits)
    reach = max(box.support.shape) * box.step / 2
    for axes, (across, vertical, horizontal) in zip(places, _views(box), strict=True):
        order = (across, vertical, horizontal)
        plane = np.transpose(row.values, order)[centre[across]]
        edge = np.transpose(box.support, order)[centre[across]]
        high, wide = (n * box.step / 2 for n in plane.shape)
        names = [f"{box.names[i]} ({box.unit})" for i in (horizontal, vertical)]
        _dress(axes, f"{row.title} across {box.names[across]}", *names)
        axes.imshow(
            np.ma.masked_where(~edge, plane), cmap=row.colours, norm=norm, origin="lower",
            extent=(-wide, wide, -high, high), interpolation="nearest",
        )  # fmt: skip
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        if box.names[vertical] == "row":  # row 0 is the detector's top
            axes.invert_yaxis()
    _draw_scale(places[-1], ScalarMappable(norm, row.colours), row.label)


def _views(box: Box) -> tuple[tuple[int, int, int], ...]:
    """Return (across, vertical, horizontal) of each slice: along the beam, from the side, from above."""
    if box.unit == "nm":
        return (2, 1, 0), (0, 1, 2), (1, 0, 2)
    return (0, 1, 2), (1, 0, 2), (2, 0, 1)


def _draw_scale(axes: Axes, colours: ScalarMappable, label: str) -> None:
    place = axes.inset_axes((1.05, 0.0, 0.045, 1.0))
    scale = axes.figure.colorbar(colours, cax=place)
    scale.set_label(label, fontsize=9, color=_INK)
    place.tick_params(labelsize=8, color=_PALE, labelcolor=_INK)
    for spine in place.spines.values():
        spine.set_visible(False)
    if label.startswith("phase"):
        scale.set_ticks([-np.pi, 0, np.pi], labels=[r"$-\pi$", "0", r"$\pi$"])


def _draw_numbers(drawing: Figure, grid: GridSpec, result: Reconstruction) -> None:
    said = result.metadata
    title = str(said.get("sample") or (said.get("cdi") or {}).get("sample") or "Reconstruction")
    drawing.text(0.06, 0.96, title, fontsize=15, color=_INK, weight="bold", va="center")
    scan = f"scan {result.scan_id}, " if result.scan_id is not None else ""
    if result.raw_uid:
        drawing.text(
            0.985, 0.96, f"{scan}run {result.raw_uid[:8]}", fontsize=10, color=_PALE, ha="right", va="center"
        )
    axes = drawing.add_subplot(grid[:, 3])
    axes.set_axis_off()
    shown = [*number_rows(finite_scalars(result)), ("grid", " x ".join(map(str, result.density.shape)))]
    for line, (label, value) in enumerate(shown):
        for text, drop, size, colour in ((label, 50 * line, 9, _PALE), (value, 50 * line + 15, 14, _INK)):
            axes.annotate(
                text, (0.06, 1), (0, -drop), xycoords="axes fraction", textcoords="offset points",
                va="top", fontsize=size, color=colour,
            )  # fmt: skip

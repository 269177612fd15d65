"""The panels that figures are put together from, each drawn into axes that it is given.

Figures are made without pyplot and its global state, so that they may be made in any thread of any process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from bluesky_cdinn.colours import ACCENT, AMPLITUDE, COUNTS, INK, PALE, SECOND, STRAIN, cyclic_colours
from bluesky_cdinn.crystal_box import Box
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.report import RockingTotals
from bluesky_cdinn.resolution import LEVEL
from bluesky_cdinn.strain import surface_shell

FloatArray = NDArray[np.floating[Any]]

_LINE: dict[str, Any] = {"linewidth": 1.2, "color": INK}


@dataclass(frozen=True, eq=False)
class Quantity:
    """One map of a crystal, and how it is shown.

    Parameters
    ----------
    title, label
        The label says the unit.
    values
        On a `Box`'s grid, float (n0, n1, n2).
    colours, limits
        The map, and what its ends mean.
    """

    title: str
    label: str
    values: FloatArray
    colours: Colormap | str
    limits: tuple[float, float]


def quantities(box: Box) -> list[Quantity]:
    """Return amplitude, phase and, where it is known, strain of a crystal."""
    amplitude = np.abs(box.density) / max(float(np.median(np.abs(box.density)[box.support])), 1e-30)
    highest = float(np.quantile(amplitude[box.support], 0.995))
    found = [
        Quantity("Amplitude", "amplitude / median", amplitude, AMPLITUDE, (0.0, highest)),
        Quantity("Phase", "phase (rad)", np.angle(box.density), cyclic_colours(), (-np.pi, np.pi)),
    ]
    if box.strain is not None and np.isfinite(box.strain[box.support]).any():
        widest = 1e4 * float(np.nanquantile(np.abs(box.strain[box.support]), 0.98))
        limits = (-max(widest, 0.01), max(widest, 0.01))
        found.append(Quantity("Strain", r"strain ($10^{-4}$)", 1e4 * box.strain, STRAIN, limits))
    return found


def dress(axes: Axes, title: str, x: str, y: str, size: float = 9) -> Axes:
    """Give axes their title and labels in the common style; ``size`` is that of the labels, points."""
    axes.set_title(title, loc="left", fontsize=size + 1, color=INK)
    axes.set_xlabel(x, fontsize=size, color=INK)
    axes.set_ylabel(y, fontsize=size, color=INK)
    axes.tick_params(which="both", labelsize=size - 1, color=PALE, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    return axes


def draw_rocking_curve(axes: Axes, rocking: RockingTotals, size: float = 9) -> None:
    """Draw counts over rocking angle or photon energy."""
    energies = rocking.scanned == "energy"
    title, label = ("Energy scan", "energy (keV)") if energies else ("Rocking curve", "angle (°)")
    dress(axes, title, label, "counts", size)
    order = np.argsort(rocking.positions)
    axes.plot(rocking.positions[order], rocking.counts[order], marker=".", markersize=3, **_LINE)
    axes.set_yscale("log")


def draw_misfit(axes: Axes, progress: FloatArray, size: float = 9) -> None:
    """Draw chi2 by iteration."""
    dress(axes, "Misfit", "iteration", "χ²", size)
    axes.plot(progress, **_LINE)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


def draw_fineness(axes: Axes, result: Reconstruction, size: float = 9) -> None:
    """Draw how well frequencies are known: the PRTF, and the estimated correlation with the truth."""
    dress(axes, "Phase retrieval transfer", "frequency (cycles / voxel)", "PRTF", size)
    if result.shell_correlation is not None:
        dress(axes, "Resolution", "frequency (cycles / voxel)", "correlation, transfer", size)
        frequency, value = result.shell_correlation
        axes.plot(frequency, value, label="with the truth, expected", **_LINE)
        axes.axhline(LEVEL, color=ACCENT, linewidth=0.8, linestyle="--")
        axes.text(0.01, LEVEL - 0.02, f"{LEVEL:g}: resolved", fontsize=size - 2, color=ACCENT, va="top")
    if result.resolution_curve is not None:
        style: dict[str, Any] = (
            _LINE if result.shell_correlation is None else {"color": SECOND, "linewidth": 1}
        )
        frequency, value = result.resolution_curve
        axes.plot(frequency, value, label="PRTF: starts", **style)
        if result.shell_correlation is None:
            axes.axhline(1 / np.e, color=ACCENT, linewidth=0.8, linestyle="--")
    axes.set(ylim=(0, 1.05), xlim=(0, 0.5))
    if result.shell_correlation is not None:
        axes.legend(fontsize=size - 2, frameon=False, loc="lower right", handlelength=1.2, borderpad=0)


def draw_slices(places: Sequence[Axes], box: Box, quantity: Quantity, size: float = 9) -> None:
    """Draw the three slices through the crystal's centre on one scale, and the colours' scale."""
    norm = Normalize(*quantity.limits)
    reach = max(box.support.shape) * box.step / 2
    for axes, order in zip(places, _views(box), strict=True):
        across, vertical, horizontal = order
        # The outline is where the crystal is; inside of it, what isn't known stays white.
        plane = np.transpose(quantity.values, order)[box.centre[across]]
        edge = np.transpose(box.support, order)[box.centre[across]]
        high, wide = (n * box.step / 2 for n in plane.shape)
        names = [f"{box.names[i]} ({box.unit})" for i in (horizontal, vertical)]
        dress(axes, f"{quantity.title} across {box.names[across]}", names[0], names[1], size)
        axes.imshow(
            np.ma.masked_where(~edge | ~np.isfinite(plane), plane), cmap=quantity.colours, norm=norm,
            origin="lower", extent=(-wide, wide, -high, high), interpolation="nearest",
        )  # fmt: skip
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        if box.names[vertical] == "row":  # row 0 is the detector's top
            axes.invert_yaxis()
    draw_scale(places[-1], ScalarMappable(norm, quantity.colours), quantity.label, size)


def draw_intensities(places: Sequence[Axes], slices: NDArray[np.float32], size: float = 9) -> None:
    """Draw central slices of the measured intensity and the model's, float32 (2, 3, side, side)."""
    highest = float(np.nanmax(slices, initial=1.0))
    norm = LogNorm(max(highest * 1e-6, 0.3), highest)
    names = ("rocking", "row", "column")
    for number, (axes, picture) in enumerate(zip(places, slices.reshape(6, *slices.shape[2:]), strict=True)):
        across = number % 3
        vertical, horizontal = (name for i, name in enumerate(names) if i != across)
        dress(axes, {0: "Measured, counts", 3: "The object's, counts"}.get(number, ""), "", "", size)
        axes.set_xlabel(f"{horizontal} →", fontsize=size - 1, color=PALE, labelpad=1)
        axes.set_ylabel(f"← {vertical}" if vertical == "row" else f"{vertical} →", fontsize=size - 1,
                        color=PALE, labelpad=1)  # fmt: skip
        shown = np.ma.masked_invalid(np.clip(picture, norm.vmin, None))
        axes.imshow(shown, cmap=COUNTS, norm=norm, origin="upper" if vertical == "row" else "lower",
                    interpolation="nearest")  # fmt: skip
        axes.set(xticks=[], yticks=[], facecolor="#dddddd")
        axes.spines[["left", "bottom"]].set_visible(False)
    draw_scale(places[-1], ScalarMappable(norm, COUNTS), "counts", size)


def draw_strain_histogram(
    axes: Axes, result: Reconstruction, limits: tuple[float, float], size: float = 9
) -> None:
    """Draw how strain is distributed, within limits in 1e-4, in the bulk and at the surface."""
    assert result.strain is not None
    assert result.direct_basis is not None
    dress(axes, "Strain", r"strain ($10^{-4}$)", "voxels (%)", size)
    known = np.isfinite(result.strain) & result.support
    shell = surface_shell(result.support, result.direct_basis)
    edges = np.linspace(1.3 * limits[0], 1.3 * limits[1], 41).tolist()
    styles: tuple[tuple[NDArray[np.bool_], str, dict[str, Any]], ...] = (
        (known & ~shell, "bulk", {"histtype": "stepfilled", "color": "#b9c4cf"}),
        (known & shell, "surface", {"histtype": "step", "color": ACCENT, "linewidth": 1.2}),
    )
    for where, label, style in styles:
        values = 1e4 * result.strain[where].clip(-1, 1)
        if len(values):
            # What lies beyond is counted in the last bins.
            share = np.full(len(values), 100 / len(values))
            axes.hist(values.clip(edges[0], edges[-1]), bins=edges, weights=share, label=label, **style)
    axes.axvline(0, color=PALE, linewidth=0.7)
    axes.set_xlim(edges[0], edges[-1])
    axes.legend(fontsize=size - 1, frameon=False, loc="upper left", handlelength=1, borderpad=0)


def draw_scale(axes: Axes, colours: ScalarMappable, label: str, size: float = 9) -> None:
    """Draw the scale of a colour map to the right of axes."""
    place = axes.inset_axes((1.05, 0.0, 0.045, 1.0))
    scale = axes.figure.colorbar(colours, cax=place)
    scale.set_label(label, fontsize=size, color=INK)
    place.tick_params(labelsize=size - 1, color=PALE, labelcolor=INK)
    for spine in place.spines.values():
        spine.set_visible(False)
    if label.startswith("phase"):
        scale.set_ticks([-np.pi, 0, np.pi], labels=[r"$-\pi$", "0", r"$\pi$"])


def _views(box: Box) -> tuple[tuple[int, int, int], ...]:
    """Return (across, vertical, horizontal) of each slice: along the beam, from the side, from above."""
    if box.unit == "nm":
        return (2, 1, 0), (0, 1, 2), (1, 0, 2)
    return (0, 1, 2), (1, 0, 2), (2, 0, 1)

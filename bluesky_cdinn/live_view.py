"""The crystal of a scan that still runs at one glance: what it looks like, and whether it still changes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bluesky_cdinn.colours import cyclic_colours
from bluesky_cdinn.files import replacing
from bluesky_cdinn.records import PartialResult

_AXES = ("rocking", "row", "column")
_MARGIN = 2
_INK, _ACCENT = "#22262b", "#b3432b"


def live_figure(partials: Sequence[PartialResult], title: str = "") -> Figure:
    """Draw the newest partial result, and the course of all.

    Parameters
    ----------
    partials
        Of one scan, in their order; at least one.
    title
        Such as the scan's name.

    Returns
    -------
    matplotlib.figure.Figure
        Ready for ``savefig``, belonging to no window.
    """
    newest = partials[-1]
    drawing = Figure(figsize=(10, 6.4), dpi=100, facecolor="white", layout="constrained")
    pictures = drawing.subplot_mosaic(
        [["a0", "a1", "a2", "fit"], ["p0", "p1", "p2", "change"]], width_ratios=(1, 1, 1, 1.2)
    )
    shown = _shown(newest)
    for axis, name in enumerate(_AXES):
        amplitude, phase = newest.amplitude[axis][shown], newest.phase[axis][shown]
        inside = amplitude > 0.3 * newest.amplitude.max()
        pictures[f"a{axis}"].imshow(amplitude, cmap="magma", vmin=0, vmax=float(newest.amplitude.max()))
        pictures[f"p{axis}"].imshow(
            np.where(inside, phase, np.nan), cmap=cyclic_colours(), vmin=-np.pi, vmax=np.pi
        )
        pictures[f"a{axis}"].set_title(f"across the {name} axis", fontsize=9)
    for key, picture in pictures.items():
        if key[0] in "ap":
            picture.set(xticks=[], yticks=[])
    pictures["a0"].set_ylabel("amplitude")
    pictures["p0"].set_ylabel("phase, blue 0")
    _draw_course(pictures["fit"], partials, {"confidence": "confidence", "agreement": "agreement"})
    pictures["fit"].set(ylim=(0, 1.05))
    _draw_course(pictures["change"], partials, {"change_rad": "change", "phase_spread_rad": "spread"})
    pictures["change"].set(ylabel="phase, rad rms", yscale="log")
    share = "" if np.isnan(newest.fraction) else f", {newest.fraction:.0%} of the scan"
    drawing.suptitle(f"{title}  {newest.points} points{share}, chi2 {newest.chi2:.4f}".strip(), fontsize=11)
    return drawing


def save_live(partials: Sequence[PartialResult], path: Path, title: str = "") -> None:
    """Draw into an image file, which whoever looks at it never finds half written."""
    drawing = live_figure(partials, title)
    with replacing(path) as stream:
        drawing.savefig(stream, format=path.suffix.lstrip(".") or "png")


def _shown(partial: PartialResult) -> tuple[slice, slice]:
    """Return the part of the pictures that the object takes up, the same square in all."""
    inside = (partial.amplitude > 0.1 * partial.amplitude.max()).any(axis=0)
    places = np.argwhere(inside | inside.T)
    if not len(places):
        return slice(None), slice(None)
    side = slice(max(0, int(places.min()) - _MARGIN), int(places.max()) + 1 + _MARGIN)
    return side, side


def _draw_course(axis: Axes, partials: Sequence[PartialResult], names: dict[str, str]) -> None:
    points = [partial.points for partial in partials]
    for (key, label), colour in zip(names.items(), (_INK, _ACCENT), strict=True):
        values = [getattr(p, key, p.scalars.get(key, np.nan)) for p in partials]
        axis.plot(points, values, marker="o", markersize=3, linewidth=1.2, color=colour, label=label)
    axis.set_xlabel("points")
    axis.legend(fontsize=8, frameon=False)

"""A reconstruction to turn about in a browser: one HTML file that needs nothing else, no network either."""

import base64
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from bluesky_cdinn.crystal_box import Box, crystal_box
from bluesky_cdinn.documents import finite_scalars
from bluesky_cdinn.files import replacing
from bluesky_cdinn.panels import Quantity, quantities
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.report import facet_rows, number_rows, raw_rows, sample_name
from bluesky_cdinn.report_page import provenance
from bluesky_cdinn.surface import Surface, values_at

# Steps of a slice's colours; 0 is outside of the crystal.
_LEVELS = 254
_DIGITS = 4


def save_page(result: Reconstruction, path: Path) -> None:
    """Write a page with the crystal's surface, its slices and its numbers.

    Parameters
    ----------
    result
        What to show; a failed one shows its reason.
    path
        Of the HTML file, of some 6 MB, most of it plotly.
    """
    text = page(result)
    with replacing(path) as stream:
        stream.write(text.encode())


def page(result: Reconstruction) -> str:
    """Return the page of a reconstruction, HTML."""
    # Importing plotly takes longer than all else here.
    from plotly.offline import get_plotlyjs

    shown = ""
    if result.support.any():
        # "</" may not stand in a script.
        shown = json.dumps(_shown(result), allow_nan=False).replace("</", "<\\/")
    rows = _rows(result) if shown else raw_rows(result)
    numbers = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in rows)
    scan = "" if result.scan_id is None else f"scan {result.scan_id}, "
    fields = {
        "TITLE": html.escape(sample_name(result)),
        "RUN": html.escape(f"{scan}raw run {result.raw_uid or 'unknown'}"),
        "CLASS": "" if shown else "failed",
        "REASON": html.escape("" if result.support.any() else result.reason or "an empty reconstruction"),
        "WARNINGS": html.escape("; ".join(result.warnings)),
        "NUMBERS": numbers,
        "PROVENANCE": html.escape(provenance(result)).replace("\n", "<br>"),
        "DATA": shown or "null",
        "PLOTLY": get_plotlyjs() if shown else "",
    }
    return _filled(files("bluesky_cdinn").joinpath("data/page3d.html").read_text(encoding="utf-8"), fields)


def _rows(result: Reconstruction) -> list[tuple[str, str]]:
    """Return the numbers and facets of a crystal in words."""
    shape = " x ".join(map(str, result.density.shape))
    told = [(f"facet {name}", f"{area} nm², {strain} · 10⁻⁴") for name, area, strain in facet_rows(result)]
    heading = [("facets", "area, mean strain")] if told else []
    return [*number_rows(finite_scalars(result)), ("grid", shape), *heading, *told]


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """Return a template whose ``{{NAME}}`` are replaced, once each: what is filled in stays what it is."""
    pieces = template.split("{{")
    done = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        done += [fields[name], rest]
    return "".join(done)


def _shown(result: Reconstruction) -> dict[str, Any]:
    """Return what the page's script draws."""
    box = crystal_box(result, finer=1.0)
    surface = box.surface()
    maps = quantities(box)
    if box.displacement is not None and np.isfinite(box.displacement).any():
        widest = float(np.nanquantile(np.abs(box.displacement), 0.98))
        limits = (-max(widest, 1e-6), max(widest, 1e-6))
        maps.append(Quantity("Displacement", "displacement along Q (nm)", box.displacement, "PuOr_r", limits))
    # What a crystal's colours are first: strain where it is known, else phase; amplitude is shown in slices.
    maps.sort(key=lambda shown: ["Strain", "Phase", "Displacement", "Amplitude"].index(shown.title))
    middle = surface.points_nm - surface.points_nm.mean(axis=0)
    return {
        "unit": box.unit,
        "axes": list(box.names),
        "shape": list(box.support.shape),
        "step": box.step,
        "centre": list(box.centre),
        "points": middle.T.round(2).tolist(),
        "triangles": surface.triangles.T.tolist(),
        "maps": [_map(shown, box, surface) for shown in maps],
    }


def _map(shown: Quantity, box: Box, surface: Surface) -> dict[str, Any]:
    low, high = shown.limits
    known = box.support & np.isfinite(shown.values)
    share = ((np.where(known, shown.values, low) - low) / (high - low)).clip(0, 1)
    levels = np.where(known, 1 + np.round(share * _LEVELS), 0).astype(np.uint8)
    at = values_at(surface, np.where(known, shown.values, np.nan).astype(np.float32))
    return {
        "name": shown.title,
        "label": _plain(shown.label),
        "limits": [low, high],
        "scale": _scale(shown.colours),
        "surface": [float(f"{value:.{_DIGITS}g}") for value in np.nan_to_num(at)],
        "levels": base64.b64encode(levels.tobytes()).decode(),
    }


def _plain(label: str) -> str:
    return label.replace(r"$10^{-4}$", "10⁻⁴")


def _scale(colours: Colormap | str, steps: int = 33) -> list[list[Any]]:
    """Return a colour map as plotly reads it."""
    table: NDArray[Any] = (colormaps[colours] if isinstance(colours, str) else colours)(
        np.linspace(0, 1, steps)
    )
    return [
        [i / (steps - 1), "rgb({},{},{})".format(*(255 * row[:3]).round().astype(int))]
        for i, row in enumerate(table)
    ]

"""How a reconstruction looks in a notebook: its numbers, and a small picture beside them."""

import base64
import html
from io import BytesIO

from matplotlib.figure import Figure

from bluesky_cdinn.crystal_box import crystal_box
from bluesky_cdinn.documents import finite_scalars
from bluesky_cdinn.panels import draw_scale, quantities
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.rendering import draw_surface, sides
from bluesky_cdinn.report import number_rows, sample_name


def reconstruction_html(result: Reconstruction) -> str:
    """Return a table of numbers and, where there is a crystal, its surface from two sides, as HTML."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in number_rows(finite_scalars(result))
    )
    head = (
        f"<b>{html.escape(sample_name(result))}</b> {html.escape(f'{result.status} {result.reason}'.strip())}"
    )
    picture = ""
    if result.support.any():
        data = base64.b64encode(_picture(result)).decode()
        picture = f'<img alt="the crystal\'s surface" src="data:image/png;base64,{data}">'
    return f'<div>{head}<div style="display:flex;gap:2em"><table>{rows}</table>{picture}</div></div>'


def _picture(result: Reconstruction) -> bytes:
    box = crystal_box(result, finer=1.0)
    surface, quantity = box.surface(), quantities(box)[-1]
    drawing = Figure(figsize=(6, 2.9), dpi=80, facecolor="white")
    places = drawing.subplots(1, 2)
    for axes, side in zip(places, sides(box), strict=False):
        colours = draw_surface(axes, box, surface, quantity, side, 8)
        if axes is places[-1]:
            draw_scale(axes, colours, quantity.label, 8)
    stream = BytesIO()
    drawing.savefig(stream, format="png", bbox_inches="tight")
    return stream.getvalue()

"""A crystal's surface drawn into a figure: shaded, the near in front of the far, with a scale bar."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from bluesky_cdinn.colours import INK, PALE
from bluesky_cdinn.crystal_box import Box
from bluesky_cdinn.panels import Quantity
from bluesky_cdinn.surface import Surface, values_at

FloatArray = NDArray[np.float64]

# Light from above the viewer's left shoulder; what no light reaches has this much of its colour.
_LIGHT, _AMBIENT = np.array([-0.45, 0.65, 0.75]), 0.55
_NICE = np.array([1, 2, 5])


@dataclass(frozen=True)
class Side:
    """From where a crystal is seen.

    Parameters
    ----------
    title
        Says it in words.
    right, up
        Indices of the box's axes that point right and up in the picture, and their signs.
    """

    title: str
    right: tuple[int, int]
    up: tuple[int, int]

    @property
    def frame(self) -> FloatArray:
        """Rows: right, up and towards the viewer, float64 (3, 3)."""
        right, up = (sign * np.eye(3)[axis] for axis, sign in (self.right, self.up))
        return np.stack([right, up, np.cross(right, up)])


SIDES = (
    Side("against the beam, from +z", (0, 1), (1, 1)),
    Side("from the side, from +x", (2, -1), (1, 1)),
    Side("from above, from +y", (0, 1), (2, -1)),
)
# Without a geometry: as the detector sees it, rows downwards, and from two sides of that.
_GRID_SIDES = (
    Side("along rocking", (2, 1), (1, -1)),
    Side("along row", (2, 1), (0, 1)),
    Side("along column", (1, 1), (0, 1)),
)


def sides(box: Box) -> tuple[Side, ...]:
    """Return the three sides that a crystal is shown from."""
    return SIDES if box.unit == "nm" else _GRID_SIDES


def draw_surface(
    axes: Axes, box: Box, surface: Surface, quantity: Quantity, side: Side, size: float = 9
) -> ScalarMappable:
    """Draw a crystal's surface coloured by what a map says there.

    Parameters
    ----------
    axes
        Where to; all of its frame goes.
    box, surface
        The crystal and its `Box.surface`.
    quantity
        The map, on the box's grid.
    side
        From where.
    size
        Of the words, points.

    Returns
    -------
    matplotlib.cm.ScalarMappable
        The colours, for a scale.
    """
    colours = ScalarMappable(Normalize(*quantity.limits), quantity.colours)
    seen = surface.points_nm @ side.frame.T
    facing = surface.normals @ side.frame.T
    triangles = surface.triangles
    corners = seen[triangles]
    # Two edges' cross product points to the viewer on the front alone.
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    front = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] > 0
    triangles, corners = triangles[front], corners[front]
    order = corners[:, :, 2].mean(axis=1).argsort()
    triangles, corners = triangles[order], corners[order]
    at_corner = values_at(surface, _known(quantity, box))
    paint = np.asarray(colours.to_rgba(_mean(at_corner, triangles, quantity)))[:, :3]
    shaded = _shade(paint, facing[triangles].mean(axis=1))
    patches = PolyCollection(list(corners[:, :, :2]), facecolors=shaded, edgecolors=shaded, linewidths=0.5)
    patches.set_rasterized(True)
    axes.add_collection(patches)
    _frame(axes, box, side, seen, size)
    return colours


def _known(quantity: Quantity, box: Box) -> NDArray[np.float32]:
    return np.where(box.support, quantity.values, np.nan).astype(np.float32)


def _mean(at_corner: NDArray[np.float32], triangles: NDArray[np.int_], quantity: Quantity) -> FloatArray:
    """Return the mean over each triangle's corners; of angles the mean direction."""
    values = at_corner[triangles].astype(np.float64)
    if quantity.title == "Phase":
        return np.angle(np.exp(1j * values).mean(axis=1))
    return values.mean(axis=1)


def _shade(paint: FloatArray, normals: FloatArray) -> FloatArray:
    """Return colours (n, 3) under the light, with a little gloss."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    light = _LIGHT / np.linalg.norm(_LIGHT)
    diffuse = (normals @ light).clip(0, 1)
    half = light + np.array([0.0, 0.0, 1.0])
    gloss = (normals @ (half / np.linalg.norm(half))).clip(0, 1) ** 30
    lit = paint * (_AMBIENT + (1 - _AMBIENT) * diffuse)[:, None] + 0.12 * gloss[:, None]
    return lit.clip(0, 1)


def _frame(axes: Axes, box: Box, side: Side, seen: FloatArray, size: float) -> None:
    """Draw the scale bar and the two axes of the picture, and take away the frame."""
    reach = 1.08 * float(np.abs(seen - seen.mean(axis=0)).max())
    middle = seen.mean(axis=0)
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - 1.25 * reach, middle[1] + reach))
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(side.title, loc="left", fontsize=size, color=INK)
    bar = nice_length(0.5 * reach)
    right, low = middle[0] + 0.95 * reach, middle[1] - 1.1 * reach
    axes.plot([right - bar, right], [low, low], color=INK, linewidth=2.2, solid_capstyle="butt")
    axes.text(right - bar / 2, low - 0.03 * reach, f"{bar:g} {box.unit}", fontsize=size - 1, color=INK,
              ha="center", va="top")  # fmt: skip
    corner, arm = np.array([middle[0] - 0.92 * reach, low]), 0.28 * reach
    for (axis, sign), along in ((side.right, (1, 0)), (side.up, (0, 1))):
        tip = corner + arm * np.array(along)
        start, end = (corner, tip) if sign > 0 else (tip, corner)
        axes.annotate(
            "", tuple(end), tuple(start), arrowprops={"arrowstyle": "->", "color": PALE, "linewidth": 0.9}
        )
        name = corner + 1.15 * arm * np.array(along)
        ha, va = ("left", "center") if along[0] else ("center", "bottom")
        axes.text(name[0], name[1], box.names[axis], fontsize=size - 1, color=PALE, ha=ha, va=va)


def nice_length(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... that is not over a length."""
    power = 10.0 ** np.floor(np.log10(most))
    return float((_NICE * power)[power * _NICE <= most * (1 + 1e-9)].max())

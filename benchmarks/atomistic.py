"""Measure the relaxed crystals: what strains them, how they scatter, what scaling them keeps.

    python benchmarks/atomistic.py [--set FOLDER] [--only routes,surface,...] [--render]

Writes results/atomistic.json, results/atomistic.md and docs/images/atomistic.png. About ten CPU minutes. The
statistics are those of the training crystals that --set names, never of the held-out ones: the procedural
generator is matched to them.
"""

# ruff: noqa: E402
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import resource
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _phase_statistics import percentiles, phase_statistics
from _report import Row, table
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from bluesky_cdinn.training.atomistic import MATERIALS, Atoms, Recipe, build
from bluesky_cdinn.training.atomistic_making import make_crystal
from bluesky_cdinn.training.atomistic_set import as_set, load_set
from bluesky_cdinn.training.atomistic_source import Shelf, Views, atomistic_crystals
from bluesky_cdinn.training.displacement import Field, Grid, coarse_grained, remaining_displacement, smear
from bluesky_cdinn.training.kinematic import bragg_peak, continuum_peak, scattering_vector
from bluesky_cdinn.training.procedural import Recipe as ProceduralRecipe
from bluesky_cdinn.training.procedural import procedural_crystals
from bluesky_cdinn.training.relaxation import relax

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "atomistic.json"
FIGURE = HERE.parent / "docs" / "images" / "atomistic.png"
GOLD = MATERIALS["gold"]

# Seeds of this benchmark: 600 000 and up.
ROUTES = {
    "perfect": Recipe(600_001, hold="free", strain=0, bend=0, steps=1),
    "free": Recipe(600_001, hold="free"),
    "clamped at one end": Recipe(600_001, hold="base", bend=0.015),
    "clamped at both": Recipe(600_001, hold="ends", bend=0.01, twist=0.01),
    "cavity": Recipe(600_001, hold="base", defect="vacancies"),
    "edge dislocation": Recipe(600_001, hold="short", defect="edge", steps=50),
    "screw dislocation": Recipe(600_001, hold="short", defect="screw", steps=50),
}
REFLECTIONS = ((1, 1, 1), (2, 0, 0), (2, 2, 0))
# Distance from the peak, in fringes of a crystal of the sphere's diameter.
FRINGES = (0, 2, 4, 8, 12)
SIDE = 49
DEPTHS_NM = (0.0, 0.15, 0.3, 0.5, 0.8, 1.2, 2.0)


def fringe_grid(atoms: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the step of a grid that reaches 12 fringes, 1/nm, and each point's distance in fringes."""
    diameter = 2 * np.cbrt(3 * atoms * GOLD.lattice_nm**3 / 4 / (4 * np.pi))
    basis = np.eye(3) * FRINGES[-1] * 2 * np.pi / diameter / (SIDE // 2)
    q = (np.moveaxis(np.indices((SIDE,) * 3), 0, -1) - SIDE // 2) @ basis.T
    return basis, q


def patterns(
    atoms: Atoms, positions: NDArray[Any], field: Field, recipe: Recipe, hkl: tuple[int, int, int]
) -> dict[str, NDArray[Any]]:
    """Return the scattered waves of the atoms, of what is stored, and of the mean of exp(iQ.u)."""
    wavevector = scattering_vector(hkl, GOLD.lattice_nm)
    grid = field.grid
    basis, q = fringe_grid(len(positions))
    sigma = grid.sigma_nm(GOLD.lattice_nm)
    smeared = np.exp(-((q * sigma) ** 2).sum(axis=-1) / 2) * GOLD.lattice_nm**3 / 4
    stored = as_set(recipe, field, atoms.dislocation).density(0, hkl)
    # exp(iQ.r) less the affine part, which moved the peak.
    shift = -field.gradient.T @ wavevector
    wave = np.exp(1j * (positions @ (wavevector + shift)))
    real, imaginary = smear(positions, np.column_stack([wave.real, wave.imag]), grid, sigma)
    averaged = (real + 1j * imaginary) * GOLD.lattice_nm**3 / 4
    zero = np.zeros(3)
    places = (grid.corner_nm, grid.voxel_nm, zero, basis, SIDE)
    return {
        "atoms": bragg_peak(positions, wavevector + shift, basis, SIDE),
        "stored": continuum_peak(stored, *places) / smeared,
        "mean": continuum_peak(averaged, *places) / smeared,
    }


def routes() -> list[Row]:
    """Compare the continuum with the sum over atoms, near and far from the peak."""
    rows = []
    for name, recipe in ROUTES.items():
        atoms, positions, field = make_crystal(recipe)
        for hkl in REFLECTIONS:
            waves = patterns(atoms, positions, field, recipe, hkl)
            basis, q = fringe_grid(len(positions))
            distance = np.linalg.norm(q, axis=-1) / basis[0, 0] * FRINGES[-1] / (SIDE // 2)
            for low, high in zip((0, *FRINGES[:-1]), (FRINGES[-1], *FRINGES[1:]), strict=True):
                shell = (distance >= low) & (distance < high)
                exact = waves["atoms"][shell]
                row = {"crystal": name, "hkl": list(hkl), "fringes": [low, high]}
                row["power"] = float((np.abs(exact) ** 2).sum() / (np.abs(waves["atoms"]) ** 2).sum())
                for way in ("stored", "mean"):
                    row[way] = agreement(waves[way][shell], exact)
                rows.append(row)
    return rows


def agreement(wave: NDArray[Any], exact: NDArray[Any]) -> Row:
    """Return correlation of the waves and of the intensities, and the relative error of the magnitudes."""
    first, second = np.abs(wave) ** 2, np.abs(exact) ** 2
    norm = np.linalg.norm
    return {
        "complex": float(np.abs(np.vdot(wave, exact)) / norm(wave) / norm(exact)),
        "intensity": float(np.vdot(first, second) / norm(first) / norm(second)),
        "error": float(norm(np.abs(wave) - np.abs(exact)) / norm(exact)),
    }


def surface() -> list[Row]:
    """Let perfect crystals relax, and measure by how much bonds are shorter at each depth."""
    rows = []
    sizes = [("gold", n) for n in (5_000, 20_000)] + [(m, 5_000) for m in MATERIALS if m != "gold"]
    for name, count in sizes:
        recipe = Recipe(600_002, name, atoms=count, hold="free", strain=0, bend=0, steps=400)
        atoms = build(recipe)
        material = MATERIALS[name]
        positions = relax(atoms.positions_nm, material.potential, recipe.steps).positions_nm
        sites = atoms.sites_nm
        length = material.lattice_nm / np.sqrt(2)
        first, second = cKDTree(sites).query_pairs(1.01 * length, output_type="ndarray").T
        stretch = np.linalg.norm(positions[first] - positions[second], axis=1) / length - 1
        middles = (sites[first] + sites[second]) / 2
        depth = (atoms.body.distances - middles @ atoms.body.normals.T).min(axis=1)
        layers = [stretch[(depth >= low) & (depth < high)].mean() for low, high in pairwise(DEPTHS_NM)]
        remaining, _ = remaining_displacement(positions, positions - sites)
        phase = remaining @ scattering_vector((1, 1, 1), material.lattice_nm)
        rows.append(
            {
                "material": name,
                "atoms": len(positions),
                "stretch": list(map(float, layers)),
                "phase_rms": float(phase.std()),
                "phase_99": float(np.ptp(np.percentile(phase, [0.5, 99.5]))),
            }
        )
    return rows


def scaling() -> list[Row]:
    """Compare a crystal scaled by two with the crystal of twice the size, both atom by atom."""
    rows = []
    for hold in ("free", "base", "ends"):
        # Of a seed that clamps the same facet at both sizes.
        small, large = (
            make_crystal(Recipe(600_004, atoms=n, hold=hold, bend=0.01, steps=600))[2]
            for n in (3_000, 24_000)
        )
        # Both grids reach as many voxels beyond the crystal: a voxel is the same part of each.
        inside = (small.occupancy > 0.9) & (large.occupancy > 0.9)
        depth = ndimage.distance_transform_edt(inside)
        for part, chosen in (("all", inside), ("deeper than 3 of 28 voxels", depth > 3)):
            scaled, true = 2 * small.displacement_nm[:, chosen], large.displacement_nm[:, chosen]
            correlation = np.corrcoef(scaled.ravel(), true.ravel())[0, 1]
            size = np.linalg.norm(true) / np.linalg.norm(scaled)
            rows.append({"hold": hold, "part": part, "correlation": float(correlation), "size": float(size)})
    return rows


def statistics(path: Path) -> dict[str, Row]:
    """Compare the phases of stored crystals with those of procedural ones of the same range."""
    stored = load_set(path)
    plain = stored.select(i for i, r in enumerate(stored.recipes) if r.defect in ("none", "vacancies"))
    generator = torch.Generator().manual_seed(600_005)
    views = Views(phase_range_rad=(1.0, 3.0), oversampling=(2.0, 3.5))
    recipe = ProceduralRecipe(phase_range_rad=(1.0, 3.0), dislocation=0, domain=0, void=0)
    kinds = {
        "atomistic": atomistic_crystals(Shelf.of(plain), 120, 32, generator, views),
        "procedural": procedural_crystals(120, 32, generator, recipe),
    }
    found: dict[str, Row] = {}
    for name, crystals in kinds.items():
        rows = [phase_statistics(density) for density in crystals.density.numpy()]
        found[name] = {key: list(map(float, values)) for key, values in percentiles(rows).items()}
    found["amplitude"] = stored_amplitudes(plain)
    return found


def stored_amplitudes(crystals: Any) -> Row:
    """Return rms and range of the phases as simulated, by hold and reflection, rad: 10, 50, 90 %."""
    found = {}
    for hold in ("free", "short", "base", "ends"):
        for hkl in REFLECTIONS:
            rows = []
            for item in [i for i, r in enumerate(crystals.recipes) if r.hold == hold]:
                cell = MATERIALS[crystals.recipes[item].material].lattice_nm
                wavevector = scattering_vector(hkl, cell)
                inside = crystals.occupancy[item] > 100
                phase = np.tensordot(wavevector, crystals.displacement_nm[item].astype(float), axes=1)[inside]
                rows.append({"rms": phase.std(), "range": np.ptp(np.percentile(phase, [0.5, 99.5]))})
            key = f"{hold} {''.join(map(str, hkl))}"
            found[key] = {k: list(map(float, v)) for k, v in percentiles(rows).items()} | {"n": len(rows)}
    return found


def cost() -> list[Row]:
    """Count the CPU seconds of each part of making a crystal."""
    rows = []
    for count, steps in ((5_000, 300), (20_000, 40), (20_000, 300), (40_000, 300)):
        recipe = Recipe(600_006, atoms=count, hold="base", steps=steps)
        begun = time.process_time()
        atoms = build(recipe)
        built = time.process_time()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        positions = relax(atoms.positions_nm, GOLD.potential, steps, atoms.clamped).positions_nm
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        relaxed = time.process_time()
        coarse_grained(positions, positions - atoms.sites_nm, GOLD.lattice_nm, Grid.around(positions, 28))
        ended = time.process_time()
        child = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        parts = {"build": built - begun, "relax": child, "coarse_grain": ended - relaxed}
        rows.append({"atoms": len(positions), "steps": steps, **parts})
    return rows


PARTS: dict[str, Callable[[], Any]] = {
    "routes": routes,
    "surface": surface,
    "scaling": scaling,
    "cost": cost,
}


def triple(values: list[float], digits: int = 2) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def report(found: dict[str, Any]) -> str:
    """Return all tables."""
    text = []
    if "statistics" in found:
        kinds = found["statistics"]
        head = ("10 / 50 / 90 % of crystals", "relaxed", "procedural")
        body = [(k, triple(v), triple(kinds["procedural"][k])) for k, v in kinds["atomistic"].items()]
        text += ["### Phases inside, both at a range of 1 to 3 rad\n", table(head, body)]
        head = ("hold, reflection", "crystals", "rms (rad)", "range of 99 % (rad)")
        body = [(k, str(v["n"]), triple(v["rms"]), triple(v["range"])) for k, v in kinds["amplitude"].items()]
        text += ["### Phases as simulated, without dislocations\n", table(head, body)]
    if "surface" in found:
        depths = [f"{low} to {high} nm" for low, high in pairwise(DEPTHS_NM)]
        head = ("perfect crystal", "atoms", "rms (rad)", "99 % (rad)", *depths)
        body = [
            (
                r["material"],
                str(r["atoms"]),
                f"{r['phase_rms']:.3f}",
                f"{r['phase_99']:.2f}",
                *(f"{100 * v:.2f}" for v in r["stretch"]),
            )
            for r in found["surface"]
        ]
        text += [
            "### Surface relaxation: stretch of the bonds by depth, %; phases at 111\n",
            table(head, body),
        ]
    if "routes" in found:
        text += ["### Continuum against atoms\n", routes_table(found["routes"])]
    if "scaling" in found:
        head = ("hold", "part", "correlation", "true over scaled")
        body = [
            (r["hold"], r["part"], f"{r['correlation']:.3f}", f"{r['size']:.2f}") for r in found["scaling"]
        ]
        text += ["### Scaled by two against grown by two\n", table(head, body)]
    if "cost" in found:
        head = ("atoms", "steps", "build (s)", "relax (s)", "coarse-grain (s)")
        body = [
            (
                str(r["atoms"]),
                str(r["steps"]),
                f"{r['build']:.2f}",
                f"{r['relax']:.1f}",
                f"{r['coarse_grain']:.2f}",
            )
            for r in found["cost"]
        ]
        text += ["### CPU seconds a crystal\n", table(head, body)]
    return "\n".join(text)


def routes_table(rows: list[Row]) -> str:
    """Return complex correlation over all, and the magnitudes' error by distance from the peak."""
    shells = [f"{low} to {high} fringes" for low, high in pairwise(FRINGES)]
    head = ("crystal", "hkl", "complex correlation", "of intensities", *shells)
    body = []
    for row in rows:
        if row["fringes"] == [0, FRINGES[-1]]:
            alike = [r for r in rows if r["crystal"] == row["crystal"] and r["hkl"] == row["hkl"]]
            errors = [f"{r['stored']['error']:.3f} ({r['mean']['error']:.3f})" for r in alike if r is not row]
            names = ("complex", "intensity")
            both = [f"{row['stored'][k]:.4f} ({row['mean'][k]:.4f})" for k in names]
            body.append((row["crystal"], "".join(map(str, row["hkl"])), *both, *errors))
    return table(head, body)


def plot(file: Path) -> None:
    """Draw two crystals: phase, both patterns, and the error by distance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(11, 5.4), layout="constrained")
    for panels, name in zip(axes, ("clamped at both", "edge dislocation"), strict=True):
        recipe = ROUTES[name]
        atoms, positions, field = make_crystal(recipe)
        hkl = (1, 1, 1) if atoms.dislocation is None else winding_reflection(atoms)
        density = as_set(recipe, field, atoms.dislocation).density(0, hkl)
        middle = np.argmax((np.abs(density) > 0.5).sum(axis=(1, 2)))
        phase = np.where(np.abs(density) > 0.5, np.angle(density), np.nan)[middle]
        panels[0].imshow(phase, cmap="twilight", vmin=-np.pi, vmax=np.pi)
        panels[0].set_title(f"{name}: phase at {''.join(map(str, hkl))}", fontsize=9)
        waves = patterns(atoms, positions, field, recipe, hkl)
        top = np.log10(np.abs(waves["atoms"]).max() ** 2)
        for panel, way, title in zip(
            panels[1:3], ("atoms", "stored"), ("sum over atoms", "continuum"), strict=True
        ):
            picture = np.log10(np.abs(waves[way][SIDE // 2]) ** 2 + 1e-3)
            panel.imshow(picture, cmap="inferno", vmin=top - 7, vmax=top, extent=[-12, 12, -12, 12])
            panel.set_title(f"{title}, log intensity", fontsize=9)
            panel.set_xlabel("fringes")
        basis, q = fringe_grid(len(positions))
        distance = np.linalg.norm(q, axis=-1) / basis[0, 0] * FRINGES[-1] / (SIDE // 2)
        edges = np.arange(0, 12.5, 0.5)
        for way, label in (("stored", "exp(iQ.⟨u⟩), as stored"), ("mean", "⟨exp(iQ.u)⟩")):
            errors = [
                agreement(waves[way][s], waves["atoms"][s])["error"]
                for s in ((distance >= low) & (distance < low + 0.5) for low in edges[:-1])
            ]
            panels[3].semilogy(edges[:-1] + 0.25, errors, label=label)
        panels[3].set_xlabel("distance from the peak (fringes)")
        panels[3].set_title("relative error of |F|", fontsize=9)
        panels[3].legend(fontsize=7)
        for panel in panels[:1]:
            panel.set_xticks([])
            panel.set_yticks([])
    figure.savefig(file, dpi=110)


def winding_reflection(atoms: Atoms) -> tuple[int, int, int]:
    """Return a 200 reflection that sees the whole Burgers vector of an edge dislocation."""
    assert atoms.dislocation is not None
    axis = int(np.argmax(np.abs(atoms.dislocation.frame[0])))
    return tuple(int(2 * v) for v in np.eye(3)[axis])  # pyright: ignore[reportReturnType]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, comma-separated")
    parser.add_argument("--set", type=Path, help="of training crystals, for the statistics")
    parser.add_argument("--render", action="store_true", help="only write tables of what is kept")
    parser.add_argument("--no-figure", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts = [] if given.render else [name for name in given.only.split(",") if name]
    for name in parts:
        found[name] = PARTS[name]()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if given.set and not given.render:
        found["statistics"] = statistics(given.set)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    text = report(found)
    RESULTS.with_suffix(".md").write_text(text)
    print(text)
    if not given.no_figure:
        plot(FIGURE)


if __name__ == "__main__":
    main()

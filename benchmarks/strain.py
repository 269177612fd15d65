"""How right are strain, displacement, their sigmas and the facets? Crystals that nobody tuned on tell.

    python benchmarks/strain.py                 # 30 crystals at three levels of counts, 6 CPU min; resumes
    python benchmarks/strain.py --crystals 1    # of each class: a glance
    python benchmarks/strain.py --resampled 6   # beside that, what drawing the counts anew changes

Writes results/strain.json and results/strain.md. Truth and reconstruction are compared on the voxels of the
reconstruction, after its place (to 1/20 voxel) and its twin are found; offset and ramp, which no measurement
tells, are taken out of both. Nothing is left out but what is said: bad reconstructions count too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _strained_crystals import CLASSES, COUNTS, Measured, counted, faces, measured_crystals, rocking_frames
from numpy.typing import NDArray

import bluesky_cdinn
from bluesky_cdinn import quality
from bluesky_cdinn.facets import facets
from bluesky_cdinn.geometry import bragg_vector
from bluesky_cdinn.pipeline import reconstruct_curve
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.sim.crystal import sample
from bluesky_cdinn.strain import SHELL, depth_nm, strain_field
from bluesky_cdinn.uncertainty import surface_voxels
from bluesky_cdinn.unwrapping import flatten_phase, neighbour_products, unwrapped_phase

FloatArray = NDArray[np.float64]
Row = dict[str, float | str]

HERE = Path(__file__).resolve().parent
RESULTS, TABLE = HERE / "results" / "strain.json", HERE / "results" / "strain.md"
# The calibration of `uncertainty` used seeds from 900 000 on.
FIRST_SEED = 950_000
# Smaller faces than this share of the surface are not looked for.
LEAST_FACE = 0.02


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true at each voxel of a reconstruction's support, in the order of ``numpy.argwhere``.

    Parameters
    ----------
    phase, strain
        Without offset and ramp, rad and dimensionless, float64 (voxels,).
    places
        In the crystal's own frame, nm, float64 (voxels, 3).
    sign
        -1 where the reconstruction is the twin.
    cells
        Voxels of the crystal's own grid, int (voxels, 3).
    q_length
        abs(Q) of the mean lattice, 1/nm.
    """

    phase: FloatArray
    strain: FloatArray
    places: FloatArray
    sign: int
    cells: NDArray[np.int64]
    q_length: float


def truth_of(case: Measured, result: Reconstruction) -> Truth:
    """Return the truth of a reconstruction: of the crystal and its twin the one that is nearer."""
    basis, q, geometry = result.direct_basis, result.q_vector, case.curve.geometry
    assert basis is not None
    assert q is not None
    assert geometry is not None
    along = q / np.linalg.norm(q)
    shape = result.density.shape
    amplitude = np.abs(sample(case.crystal, basis, shape))
    cells = np.argwhere(result.support) - np.array(shape) // 2
    weights = np.sqrt(np.abs(result.density[result.support]).astype(np.float64))
    flat, _ = flatten_phase(result.density, result.support)
    found = unwrapped_phase(flat, result.support)[result.support]
    best: tuple[float, Truth] | None = None
    for sign in (1, -1):
        shown = amplitude if sign > 0 else quality.twin(amplitude.astype(np.complex64)).real
        offset, _ = quality.best_shift(
            shown.astype(np.complex64), np.abs(result.density).astype(np.complex64)
        )
        places = sign * (cells - offset) @ basis.T
        phase = sign * case.crystal.phase(places)
        ahead, behind = (case.crystal.phase(places + step * along) for step in (0.05, -0.05))
        design = np.column_stack([np.ones(len(places)), places])
        ramp = np.linalg.lstsq(design * weights[:, None], phase * weights, rcond=None)[0]
        # In the crystal's own frame the twin's phase has the ramp turned round.
        rest = phase - design @ ramp
        strain = ((ahead - behind) / 0.1 - sign * ramp[1:] @ along) / np.linalg.norm(q)
        error = float(np.sqrt(np.mean(np.angle(np.exp(1j * (found - rest))) ** 2)))
        mean_q = bragg_vector(geometry) - sign * ramp[1:]
        own = sign * (cells - np.rint(offset).astype(int))
        truth = Truth(rest, strain, places, sign, own, float(np.linalg.norm(mean_q)))
        if best is None or error < best[0]:
            best = error, truth
    assert best is not None
    return best[1]


def errors(case: Measured, result: Reconstruction) -> tuple[Truth, FloatArray, FloatArray]:
    """Return the truth and how far phase (rad) and strain are from it at each voxel of the support."""
    truth = truth_of(case, result)
    flat, _ = flatten_phase(result.density, result.support)
    found = unwrapped_phase(flat, result.support)[result.support]
    phase = np.angle(np.exp(1j * (found - truth.phase)))
    assert result.strain is not None
    return truth, phase - phase.mean(), result.strain[result.support] - truth.strain


def row_of(case: Measured, result: Reconstruction) -> Row:
    """Return every number of one reconstruction."""
    assert result.direct_basis is not None
    assert result.q_vector is not None
    assert result.phase_sd is not None
    assert result.strain_sd is not None
    truth, phase, strain = errors(case, result)
    support, length = result.support, float(np.linalg.norm(result.q_vector))
    voxel_nm = abs(np.linalg.det(result.direct_basis)) ** (1 / 3)
    shell = depth_nm(support, result.direct_basis)[support] < SHELL * voxel_nm
    row: Row = {
        "case": case.name,
        "class": case.strain,
        "counts": case.counts,
        "version": bluesky_cdinn.__version__,
        "voxel_nm": voxel_nm,
        "confidence": result.confidence,
        "true_strain": 1e4 * rms(truth.strain),
        "d_spacing_error": 1e4 * (truth.q_length / length - 1),
        "false_dislocation_voxels": result.scalars["dislocation_voxels"],
        "cpu_s": result.cpu_s,
        "strain_cpu_s": cpu_of_strain(result),
    }
    zones = {"all": np.ones_like(shell), "surface": shell, "bulk": ~shell}
    ratio = {
        "phase": phase / result.phase_sd[support],
        "strain": strain / result.strain_sd[support],
    }
    old = differences(result) - truth.strain
    for zone, part in zones.items():
        row[f"strain_{zone}"] = 1e4 * rms(strain[part])
        row[f"differences_{zone}"] = 1e4 * rms(old[part])
        row[f"displacement_{zone}"] = rms(phase[part]) / length
        for name, values in ratio.items():
            known = values[part & np.isfinite(values)]
            row[f"{name}_covered_{zone}"] = float(np.mean(np.abs(known) < 1))
    edge = surface_voxels(support)[support]
    return row | facet_numbers(case, result, truth, edge)


def rms(values: FloatArray) -> float:
    """Return the root mean square of what is known."""
    return float(np.sqrt(np.nanmean(np.square(values)))) if np.isfinite(values).any() else float("nan")


def cpu_of_strain(result: Reconstruction) -> float:
    """Return the CPU time of everything that comes from the phase, facets included."""
    began = time.process_time()
    assert result.direct_basis is not None
    assert result.q_vector is not None
    strain_field(result.density, result.support, result.direct_basis, result.q_vector, spread_rad=0.1)
    facets(result)
    return time.process_time() - began


def differences(result: Reconstruction) -> FloatArray:
    """Return the strain by central differences, one-sided at the surface: what planes are compared with."""
    assert result.direct_basis is not None
    assert result.q_vector is not None
    length = np.linalg.norm(result.q_vector)
    weights = np.linalg.solve(result.direct_basis, result.q_vector / length) / length
    flat, _ = flatten_phase(result.density, result.support)
    strain = np.zeros(result.support.shape)
    for axis, (weight, products) in enumerate(
        zip(weights, neighbour_products(flat, result.support), strict=True)
    ):
        known, step = products != 0, np.where(products != 0, np.angle(products), 0)
        count = known.astype(int) + np.roll(known, 1, axis)
        total = step + np.roll(step, 1, axis)
        strain += weight * np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return strain[result.support]


def facet_numbers(case: Measured, result: Reconstruction, truth: Truth, edge: NDArray[np.bool_]) -> Row:
    """Return how well the faces of a crystal were found."""
    body = case.crystal.body
    areas, distances = faces(body)
    normals = np.where(areas[:, None] > 0, body.normals * truth.sign, 0)
    nearest = (body.distances - truth.places[edge] @ body.normals.T + 1e9 * (areas <= 0)).argmin(axis=1)
    wanted = areas > LEAST_FACE * areas.sum()
    hit, angles, area, distance, strained, named = set(), [], [], [], [], []
    strays = 0
    for facet in facets(result):
        cosines = normals @ np.array(facet.normal)
        face = int(cosines.argmax())
        angle = float(np.degrees(np.arccos(np.clip(cosines[face], -1, 1))))
        if angle > 10 or face in hit:
            strays += 1
            continue
        hit.add(face)
        angles.append(angle)
        area.append(facet.area_nm2 / areas[face] - 1)
        distance.append(facet.distance_nm - distances[face])
        named.append(sorted(facet.family) == sorted(case.families[face]))
        if (nearest == face).any():
            strained.append(1e4 * (facet.strain_mean - truth.strain[edge][nearest == face].mean()))
    return {
        "faces": int(wanted.sum()),
        "faces_found": sum(int(face) in hit for face in np.flatnonzero(wanted)),
        "strays": strays,
        "named": float(np.mean(named)) if named else float("nan"),
        "angle_median": float(np.median(angles)) if angles else float("nan"),
        "angle_90": float(np.quantile(angles, 0.9)) if angles else float("nan"),
        "area_error": float(np.median(area)) if area else float("nan"),
        "distance_error_nm": float(np.median(distance)) if distance else float("nan"),
        "facet_strain": rms(np.array(strained)) if strained else float("nan"),
    }


def resampled_row(case: Measured, draws: int) -> Row:
    """Return what drawing the counts anew changes, beside the sigma that one reconstruction states."""
    assert case.curve.geometry is not None
    expected = rocking_frames(case.crystal, case.curve.geometry)
    maps: list[dict[tuple[int, ...], float]] = []
    stated = []
    for draw in range(draws):
        rng = np.random.default_rng([draw, int(case.counts), 99])
        result = reconstruct_curve(counted(expected, case.counts, case.curve.geometry, rng))
        truth, phase, _ = errors(case, result)
        assert result.phase_sd is not None
        stated.append(float(np.sqrt(np.nanmean(result.phase_sd**2))))
        maps.append(dict(zip(map(tuple, truth.cells.tolist()), phase.tolist(), strict=True)))
    common = set.intersection(*(set(one) for one in maps))
    values = np.array([[one[cell] for cell in common] for one in maps])
    noise = values.var(axis=0, ddof=1).mean()
    # The mean of a few draws keeps some of their noise.
    bias = max((values.mean(axis=0) ** 2).mean() - noise / draws, 0.0)
    return {
        "case": case.name,
        "noise_rad": float(np.sqrt(noise)),
        "bias_rad": float(np.sqrt(bias)),
        "error_rad": rms(values),
        "stated_rad": float(np.mean(stated)),
    }


def median(rows: Sequence[Row], name: str) -> float:
    """Return the median of a number over rows."""
    return float(np.nanmedian([float(row[name]) for row in rows]))


def mean(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a number over rows."""
    return float(np.nanmean([float(row[name]) for row in rows]))


def report(rows: list[Row], resampled: list[Row]) -> str:
    """Return the tables."""
    crystals = len({str(row["case"]).rsplit("-", 1)[0] for row in rows})
    lines = [
        "# Strain, displacement, sigmas and facets",
        "",
        f"{crystals} faceted gold crystals that no choice saw (`python benchmarks/strain.py`), 250 to 400 nm,"
        f" voxels of {median(rows, 'voxel_nm'):.0f} nm, exact frames with Poisson counts. "
        "Medians over crystals; rms over voxels of the support; strain in units of 1e-4; "
        f"surface: less than {SHELL:g} voxels deep. In brackets: by central differences instead of planes.",
        "",
        "| counts | strain | true rms | all | surface | bulk | worst, all | u_Q all, nm | surface | bulk |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for counts in COUNTS:
        for strain in CLASSES:
            part = [row for row in rows if row["counts"] == counts and row["class"] == strain]
            if not part:
                continue
            cells = [
                f"{median(part, f'strain_{zone}'):.2f} ({median(part, f'differences_{zone}'):.2f})"
                for zone in ("all", "surface", "bulk")
            ]
            moved = [f"{median(part, f'displacement_{zone}'):.5f}" for zone in ("all", "surface", "bulk")]
            worst = max(float(row["strain_all"]) for row in part)
            lines.append(
                f"| {counts:.0e} | {strain} | {median(part, 'true_strain'):.2f} | {' | '.join(cells)} "
                f"| {worst:.2f} | {' | '.join(moved)} |"
            )
    lines += [
        "",
        "Share of voxels within one stated sigma of the truth (0.68 would be right), mean over crystals "
        "and its standard deviation between them:",
        "",
        "| counts | crystals | phase | between | surface | bulk | strain | between | surface | bulk |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for counts in (*COUNTS, None):
        part = [row for row in rows if counts in (None, row["counts"])]
        cells = []
        for name in ("phase", "strain"):
            cells.append(f"{mean(part, f'{name}_covered_all'):.2f}")
            cells.append(f"{np.std([float(row[f'{name}_covered_all']) for row in part]):.2f}")
            cells += [f"{mean(part, f'{name}_covered_{zone}'):.2f}" for zone in ("surface", "bulk")]
        head = "all" if counts is None else f"{counts:.0e}"
        lines.append(f"| {head} | {len(part)} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Facets, of faces with {LEAST_FACE:.0%} of the surface or more; strain: rms error of the means:",
        "",
        "| counts | found | strays | angle, deg | 90 % | area | distance, nm | right name | strain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for counts in COUNTS:
        part = [row for row in rows if row["counts"] == counts]
        if part:
            share = mean(part, "faces_found") / mean(part, "faces")
            lines.append(
                f"| {counts:.0e} | {share:.1%} | {mean(part, 'strays'):.2f} "
                f"| {median(part, 'angle_median'):.2f} | {median(part, 'angle_90'):.2f} "
                f"| {median(part, 'area_error'):+.1%} | {median(part, 'distance_error_nm'):+.2f} "
                f"| {mean(part, 'named'):.1%} | {median(part, 'facet_strain'):.2f} |"
            )
    false = sum(float(row["false_dislocation_voxels"]) for row in rows)
    cpu = median(rows, "strain_cpu_s")
    lines += [
        "",
        f"Mean spacing of the planes: off by {1e2 * median_size(rows, 'd_spacing_error'):.2f}e-6 (median). "
        f"Dislocation voxels in crystals that have none: {false:.0f} in {len(rows)} reconstructions. "
        f"Everything beyond the phase takes {cpu:.2f} s of CPU, {cpu / median(rows, 'cpu_s'):.0%} of it all.",
    ]
    if resampled:
        lines += [
            "",
            "Counts drawn anew, rms over voxels, rad: what changes between draws, what stays, both, and the "
            "sigma that one draw states:",
            "",
            "| crystal | noise | bias | error | stated |",
            "|---|---|---|---|---|",
        ]
        for row in resampled:
            values = [
                f"{float(row[name]):.4f}" for name in ("noise_rad", "bias_rad", "error_rad", "stated_rad")
            ]
            lines.append(f"| {row['case']} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def median_size(rows: Sequence[Row], name: str) -> float:
    """Return the median of a number's size over rows."""
    return float(np.nanmedian([abs(float(row[name])) for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--crystals", type=int, default=10, help="of each class of strain")
    parser.add_argument("--resampled", type=int, default=0, help="draws of the counts, of the first crystals")
    parser.add_argument("--again", action="store_true", help="don't reuse what was computed before")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = (
        {} if arguments.again or not arguments.results.exists() else json.loads(arguments.results.read_text())
    )
    done = {row["case"]: row for row in kept.get("rows", [])}
    redrawn: list[Row] = kept.get("resampled", [])
    rows: list[Row] = []
    for case in measured_crystals(FIRST_SEED, arguments.crystals):
        rows.append(done.get(case.name) or row_of(case, reconstruct_curve(case.curve)))
        arguments.results.write_text(json.dumps({"rows": rows, "resampled": redrawn}, indent=1))
    if arguments.resampled:
        redrawn = [resampled_row(case, arguments.resampled) for case in measured_crystals(FIRST_SEED, 1)]
        arguments.results.write_text(json.dumps({"rows": rows, "resampled": redrawn}, indent=1))
    arguments.results.with_suffix(".md").write_text(report(rows, redrawn))
    print(report(rows, redrawn))


if __name__ == "__main__":
    main()

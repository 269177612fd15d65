"""Judge the crystal while its scan still runs, and the result that starts from there.

    python benchmarks/running_scans.py               # 36 crystals, the real scan: 15 CPU minutes
    python benchmarks/running_scans.py --cases 6     # a glance
    python benchmarks/running_scans.py --render      # table and figure from what is kept

Each curve is handed over in growing parts, as the worker's process gets them. Rows lie in
results/running_scans.json, written one by one; a run that was stopped goes on. The tables go to
results/running_scans.md, the figure to docs/images/running_scans.png.
"""

# ruff: noqa: E402
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _cases import crystal_case, scan_file
from _report import table
from numpy.typing import NDArray

from bluesky_cdinn import pipeline, quality
from bluesky_cdinn.errors import IncompleteScan
from bluesky_cdinn.following import ScanFollower
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.sim.recording import load_recording

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
RESULTS, TABLES = HERE / "results" / "running_scans.json", HERE / "results" / "running_scans.md"
PICTURE = HERE.parent / "docs" / "images" / "running_scans.png"
# This benchmark's own; tests, tuning and training stay away.
FIRST_SEED = 600_000
CLASSES = {"weak": (0.5, 2.0), "medium": (2.0, 6.0), "strong": (6.0, 12.0)}
COUNTS = (1e6, 1e5, 1e4)
FRACTIONS = tuple(np.round(np.arange(0.4, 1.0, 0.05), 2))
RIGHT = 0.1

Row = dict[str, Any]
Density = NDArray[np.complex64]


def curves(curve: RockingCurve, points: Sequence[int]) -> Iterable[RockingCurve]:
    """Yield the first so many points of a curve, as they are known while the scan runs."""
    for n in points:
        yield RockingCurve(
            frames=np.asarray(curve.frames)[:n],
            angles_deg=curve.angles_deg[:n],
            count_time_s=None if curve.count_time_s is None else curve.count_time_s[:n],
            planned_deg=curve.angles_deg,
            expected_points=len(curve.angles_deg),
            geometry=curve.geometry,
            raw_uid="scan",
            exit_status="unfinished",
            metadata=curve.metadata,
        )


def follow(curve: RockingCurve, options: ReconstructionOptions) -> tuple[list[Row], list[Density], Row]:
    """Return the updates' numbers and objects, and the two results: started from them, and without."""
    follower, rows, objects = ScanFollower(), [], []
    total = len(curve.angles_deg)
    for part in curves(curve, [round(f * total) for f in FRACTIONS]):
        began = time.process_time()
        try:
            partial = follower(part, options)
        except IncompleteScan:
            continue
        rows.append(
            {
                "fraction": len(part.angles_deg) / total,
                "cpu_s": time.process_time() - began,
                "chi2": partial.chi2,
                "confidence": partial.confidence,
                **partial.scalars,
            }
        )
        objects.append(follower._scans["scan"].last.density)
    results = {}
    whole = RockingCurve(**{**vars(curve), "raw_uid": "scan"})
    for start in ("warm", "cold"):
        began = time.process_time()
        found = follower(whole, options) if start == "warm" else pipeline.reconstruct_curve(whole, options)
        results[start] = {
            "density": found.density,
            "cpu_s": time.process_time() - began,
            "chi2": found.chi2,
            "confidence": found.confidence,
            "found_from": found.parameters["found_from"],
        }
    return rows, objects, results


def at(fraction: float, update: Row) -> bool:
    """Whether an update was made at this share of its scan, up to whole points."""
    return abs(update["fraction"] - fraction) < 0.02


def on_grid(density: Density, shape: tuple[int, ...]) -> Density:
    """Return an object of the working grid on the full one: the same voxels, more of them."""
    whole = np.zeros(shape, np.complex64)
    common = [min(n, m) for n, m in zip(shape, density.shape, strict=True)]
    whole[window_on_grid(shape, common)] = density[window_on_grid(density.shape, common)]
    return whole


def crystal_row(number: int) -> Row:
    """Return what comes of one crystal: class and counts take turns, all else is random."""
    seed = FIRST_SEED + number
    rng = np.random.default_rng(seed)
    kind = list(CLASSES)[number % 3]
    counts = COUNTS[number // 3 % 3]
    case = crystal_case(f"{kind}-{seed}", kind, seed, float(rng.uniform(*CLASSES[kind])), counts)
    assert case.truth is not None
    curve = RockingCurve(frames=case.intensity, angles_deg=np.linspace(-0.3, 0.3, len(case.intensity)))
    rows, objects, results = follow(curve, ReconstructionOptions(max_shape=case.intensity.shape))
    final = results["warm"]["density"]
    for row, density in zip(rows, objects, strict=True):
        whole = on_grid(density, case.truth.shape)
        found = quality.compare(whole, case.truth)
        row |= {"phase_rmse": found.phase_rmse, "iou": found.iou}
        row["to_final_rad"] = quality.phase_difference(quality.align(whole, final, ramps=True), final)
    for result in results.values():
        found = quality.compare(result.pop("density"), case.truth)
        result |= {"phase_rmse": found.phase_rmse, "iou": found.iou}
    return {"case": case.name, "kind": kind, "counts": counts, **case.facts, "updates": rows, **results}


def scan_row(path: Path) -> Row:
    """Return what comes of the real scan, against its own result and the one without updates."""
    recording = load_recording(path)
    curve = RockingCurve(
        frames=recording.frames[...],
        angles_deg=recording.angles_deg,
        count_time_s=recording.count_time_s,
        metadata={"cdi": recording.cdi},
    )
    rows, objects, results = follow(curve, ReconstructionOptions(max_shape=(64, 64, 64)))
    warm, cold = (results[start].pop("density") for start in ("warm", "cold"))
    for row, density in zip(rows, objects, strict=True):
        aligned = quality.align(on_grid(density, warm.shape), warm, ramps=True)
        row["to_final_rad"] = quality.phase_difference(aligned, warm)
        row["to_final_correlation"] = quality.similarity(aligned, warm)
    aligned = quality.align(cold, warm, ramps=True)
    apart = {
        "correlation": quality.similarity(aligned, warm),
        "apart_rad": quality.phase_difference(aligned, warm),
    }
    return {"case": path.stem, "kind": "real", "updates": rows, **results, **apart}


def fraction_table(rows: Sequence[Row]) -> str:
    """Median error by share of the scan, class by class; who hadn't the peak in view is left out."""
    body = []
    for fraction in FRACTIONS:
        cells, said = [f"{fraction:.0%}"], []
        for kind in CLASSES:
            of_kind = [r for r in rows if r["kind"] == kind]
            there = [u for r in of_kind for u in r["updates"] if at(fraction, u)]
            said += there
            errors = [u["phase_rmse"] for u in there]
            cells.append(f"{np.median(errors):.3f} ({len(there)} of {len(of_kind)})" if there else "-")
        if said:
            right = [u["phase_rmse"] < RIGHT for u in said]
            stated = [u["confidence"] for u in said]
            cells += [
                f"{np.mean(right):.0%}",
                f"{np.mean(stated):.0%}",
                f"{np.mean(np.subtract(stated, right) ** 2):.3f}",
                f"{np.median([u['cpu_s'] for u in said]):.1f}",
            ]
            body.append(cells)
    head = ["scan done", *(f"{kind}, rad" for kind in CLASSES), "right", "stated", "Brier", "CPU s"]
    return table(head, body)


def result_table(rows: Sequence[Row]) -> str:
    """Return the result that started from the updates beside the one that started from nothing."""
    body = []
    for kind in CLASSES:
        of_kind = [r for r in rows if r["kind"] == kind]
        for start in ("warm", "cold"):
            said = [r[start] for r in of_kind]
            if not said:
                continue
            right = [s["phase_rmse"] < RIGHT for s in said]
            brier = np.mean(np.subtract([s["confidence"] for s in said], right) ** 2)
            body.append(
                [
                    kind,
                    {"warm": "the last update", "cold": "nothing"}[start],
                    f"{sum(right)} of {len(right)}",
                    f"{np.median([s['phase_rmse'] for s in said]):.3f}",
                    f"{np.median([s['chi2'] for s in said]):.5f}",
                    f"{brier:.3f}",
                    f"{np.median([s['cpu_s'] for s in said]):.2f}",
                ]
            )
    return table(["crystals", "started from", "right", "phase RMSE, rad", "chi2", "Brier", "CPU s"], body)


def scan_table(row: Row) -> str:
    """Return how far the real scan's updates were from its result."""
    body = [
        [
            f"{u['fraction']:.0%}",
            f"{u['to_final_rad']:.3f}",
            f"{u['to_final_correlation']:.3f}",
            f"{u['chi2']:.4f}",
            f"{u['confidence']:.2f}",
            f"{u['cpu_s']:.1f}",
        ]
        for u in row["updates"]
    ]
    return table(["scan done", "to the result, rad", "correlation", "chi2", "confidence", "CPU s"], body)


def draw(rows: Sequence[Row]) -> None:
    """Plot errors to the truth and distances to the result against the share of the scan."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    shades = dict(zip(CLASSES, ("tab:blue", "tab:orange", "tab:red"), strict=True))
    for kind, shade in shades.items():
        for axis, key in zip(axes, ("phase_rmse", "to_final_rad"), strict=True):
            of_kind = [r["updates"] for r in rows if r["kind"] == kind]
            for updates in of_kind:
                axis.plot(
                    [u["fraction"] for u in updates], [u[key] for u in updates], color=shade, alpha=0.15
                )
            middle = []
            for fraction in FRACTIONS:
                there = [
                    u[key] for updates in of_kind for u in updates if abs(u["fraction"] - fraction) < 0.02
                ]
                if there:
                    middle.append((fraction, np.median(there)))
            if middle:
                axis.plot(*np.transpose(middle), color=shade, marker="o", label=kind)
    for real in (r for r in rows if r["kind"] == "real"):
        updates = real["updates"]
        xs, ys = [u["fraction"] for u in updates], [u["to_final_rad"] for u in updates]
        axes[1].plot(xs, ys, color="black", marker="s", label="real scan")
    axes[0].set(yscale="log", ylabel="phase, rad rms", xlabel="share of the scan done", title="to the truth")
    axes[1].set(xlabel="share of the scan done", title="to the result of the whole scan")
    for axis in axes:
        axis.axhline(RIGHT, color="grey", linewidth=0.6, linestyle="--")
        axis.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def machine() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def render(rows: Sequence[Row]) -> None:
    """Write tables and figure."""
    synthetic = [r for r in rows if r["kind"] in CLASSES]
    text = [
        f"{len(synthetic)} crystals of 64 frames, one thread, {datetime.now(UTC):%Y-%m-%d}, {machine()}.",
        "While the scan runs (median phase RMSE, crystals that have their peak in view; right: to "
        f"{RIGHT} rad; stated: mean confidence):",
        fraction_table(synthetic),
        "The result, started from the last update or from nothing:",
        result_table(synthetic),
    ]
    for real in (r for r in rows if r["kind"] == "real"):
        ends = (
            f"chi2 {real['warm']['chi2']:.4f} in {real['warm']['cpu_s']:.1f} CPU s, without updates "
            f"{real['cold']['chi2']:.4f} in {real['cold']['cpu_s']:.1f}; the two differ by "
            f"{real['apart_rad']:.3f} rad, correlation {real['correlation']:.3f}"
        )
        text += [f"The measured scan, its central 64 x 64 x 64 ({ends}):", scan_table(real)]
    TABLES.write_text("\n\n".join(text) + "\n")
    print(TABLES.read_text())
    draw(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=36)
    parser.add_argument("--again", action="store_true", help="forget the rows that are kept")
    parser.add_argument("--render", action="store_true", help="only tables and figure")
    options = parser.parse_args()
    kept: dict[str, Row] = {}
    if RESULTS.is_file() and not options.again:
        kept = {row["key"]: row for row in json.loads(RESULTS.read_text())}
    wanted = {} if options.render else {f"crystal-{n}": n for n in range(options.cases)}
    if not options.render and (path := scan_file()) is not None:
        wanted["scan"] = path
    for key, what in wanted.items():
        if key in kept:
            continue
        row = scan_row(what) if isinstance(what, Path) else crystal_row(what)
        kept[key] = {"key": key, **row}
        RESULTS.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
        print(
            key,
            row["case"],
            *(f"{u['fraction']:.2f}:{u.get('phase_rmse', u['to_final_rad']):.3f}" for u in row["updates"]),
        )
    render(list(kept.values()))


if __name__ == "__main__":
    main()

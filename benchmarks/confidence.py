"""Is the stated confidence true, and is a wrong result flagged? Every second crystal here is in trouble.

    python benchmarks/confidence.py --fit            # calibrate on 154 crystals, 6 CPU minutes; resumes
    python benchmarks/confidence.py                  # test on 220 others
    python benchmarks/confidence.py --cases 22       # a glance

The first prints the constants of `doubts.CALIBRATION`. The second says how true the stated confidence is on
crystals that no choice saw, and writes results/confidence.md and docs/images/confidence.png. Both keep their
rows in results/confidence.json. Where the engine has changed, ``--again`` computes them anew.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _doubtful import KINDS, TURNS, mixed_cases
from scipy.optimize import minimize

import bluesky_cdinn
from bluesky_cdinn import quality
from bluesky_cdinn.doubts import Signs, confidence, signs_of, terms
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.training.held_out import Case
from bluesky_cdinn.weights import load_weights, shipped_weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "confidence.json"
PICTURE = HERE.parent / "docs" / "images" / "confidence.png"
# First seed of each set, and how many crystals are in it.
SETS = {"calibration": (1_220_000, 154), "test": (1_230_000, 220)}
# What is right: phase, rad rms, and the supports' intersection over union.
RIGHT, PLACE = 0.1, 0.9
EDGES = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0001)

Row = dict[str, Any]


def made_by() -> str:
    """Return what a row depends on beside its case; rows of anything else are not reused."""
    weights = load_weights().sha256[:12] if shipped_weights() else "none"
    return f"weights {weights}, version {bluesky_cdinn.__version__}"


def row_of(case: Case) -> Row:
    result = reconstruct(
        DiffractionVolume(case.intensity, case.valid), ReconstructionOptions(seed=case.facts["seed"])
    )
    found = quality.compare(result.density, case.truth)
    # What shares no place with the truth has no phase to compare.
    rmse = found.phase_rmse if np.isfinite(found.phase_rmse) else 3.0
    return {
        "case": case.name,
        "kind": case.kind,
        "made_by": made_by(),
        "phase_range_rad": case.facts["phase_range_rad"],
        "counts": case.facts["counts"],
        "phase_rmse": rmse,
        "iou": found.iou,
        "signs": asdict(signs_of(result.scalars, result.chi2)),
        "confidence": result.confidence,
        "warnings": result.warnings,
        "found_from": str(result.parameters["found_from"]),
        "cpu_s": result.cpu_s,
    }


def right(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["phase_rmse"] < RIGHT and row["iou"] > PLACE for row in rows])


def stated(rows: Sequence[Row]) -> np.ndarray:
    """Return the confidence that the calibration in force gives."""
    return np.array([confidence(Signs(**row["signs"])) for row in rows])


def fit(rows: Sequence[Row]) -> list[float]:
    """Return intercept and slopes of the likeliest logistic curve in log(unevenness) and log(halo)."""
    logs = [terms(row["signs"]["unevenness"], row["signs"]["halo"]) for row in rows]
    design = np.column_stack([np.ones(len(rows)), np.array(logs)])
    signed = np.where(right(rows), -1.0, 1.0)

    def surprise(parameters: np.ndarray) -> float:
        return float(np.logaddexp(0, signed * (design @ parameters)).sum())

    return minimize(surprise, [-11.0, -2.0, -2.0]).x.tolist()


def reliability(rows: Sequence[Row]) -> list[dict[str, float]]:
    said, true = stated(rows), right(rows)
    bins = []
    for low, high in pairwise(EDGES):
        inside = (said >= low) & (said < high)
        if inside.any():
            share = {"stated": float(said[inside].mean()), "right": float(true[inside].mean())}
            bins.append({"from": low, "to": min(high, 1.0), "cases": int(inside.sum()), **share})
    return bins


def reliability_table(rows: Sequence[Row]) -> str:
    lines = ["| stated | cases | mean | right |", "|---|---|---|---|"]
    for one in reliability(rows):
        shares = f"{one['stated']:.2f} | {one['right']:.0%}"
        lines.append(f"| {one['from']:g} to {one['to']:g} | {one['cases']} | {shares} |")
    return "\n".join(lines)


def kinds_table(rows: Sequence[Row]) -> str:
    """Return how many of each kind are wrong, and how many of those are not flagged."""
    heads = ("kind", "cases", "right", "wrong", "wrong over 0.5", "wrong over 0.9", "right under 0.5")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kind in (*KINDS, "all"):
        own = [row for row in rows if kind in (row["kind"], "all")]
        if own:
            said, true = stated(own), right(own)
            wrong = [int((~true & (said > level)).sum()) for level in (-1, 0.5, 0.9)]
            numbers = (len(own), int(true.sum()), *wrong, int((true & (said < 0.5)).sum()))
            lines.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def silent_lines(rows: Sequence[Row]) -> str:
    """Return the wrong ones over 0.5, one a line, those off by most first."""
    said, true = stated(rows), right(rows)
    silent = [(row, c) for row, c, ok in zip(rows, said, true, strict=True) if c > 0.5 and not ok]
    return "\n".join(
        f"- {row['case']}: {row['phase_rmse']:.3f} rad, overlap {row['iou']:.3f}, stated {c:.2f}"
        for row, c in sorted(silent, key=lambda one: -one[0]["phase_rmse"])
    )


def report(name: str, rows: Sequence[Row]) -> str:
    said, true = stated(rows), right(rows)
    brier = float(((said - true) ** 2).mean())
    warned = [bool(row["warnings"]) for row in rows]
    told = (
        float(np.mean([w for w, ok in zip(warned, true, strict=True) if not ok])) if not true.all() else 1.0
    )
    alarms = float(np.mean([w for w, ok in zip(warned, true, strict=True) if ok])) if true.any() else 0.0
    return "\n\n".join(
        (
            f"## {name}: {len(rows)} crystals, {true.mean():.0%} right, Brier score {brier:.3f}",
            f"A warning goes with {told:.0%} of the wrong and {alarms:.0%} of the right ones.",
            reliability_table(rows),
            kinds_table(rows),
            "Wrong ones over 0.5:\n\n" + (silent_lines(rows) or "none"),
        )
    )


def draw(rows: Sequence[Row]) -> None:
    figure, axes = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for one in reliability(rows):
        # One sigma of a share, by Wilson: not zero where all are right.
        n, p = one["cases"], one["right"]
        centre, half = (p + 0.5 / n) / (1 + 1 / n), np.sqrt(p * (1 - p) / n + 0.25 / n**2) / (1 + 1 / n)
        axes.plot([one["stated"]] * 2, [centre - half, centre + half], color="C0", lw=1.5)
        axes.plot(one["stated"], p, "o", color="C0")
        axes.annotate(f"{n}", (one["stated"], p), textcoords="offset points", xytext=(7, -9), fontsize=8)
    axes.set(xlabel="stated confidence", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"{len(rows)} crystals that no choice saw", fontsize=10)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="calibrate instead of testing")
    parser.add_argument("--cases", type=int, help=f"a multiple of {len(TURNS)} has all kinds alike")
    parser.add_argument("--again", action="store_true", help="don't reuse what was computed before")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    name = "calibration" if arguments.fit else "test"
    first_seed, count = SETS[name]
    path, current = arguments.results, made_by()
    kept = json.loads(path.read_text()) if path.exists() else {}
    usable = [] if arguments.again else [row for row in kept.get(name, []) if row["made_by"] == current]
    done: dict[str, Row] = {row["case"]: row for row in usable}
    rows: list[Row] = []
    for case in mixed_cases(first_seed, arguments.cases or count):
        rows.append(done.get(case.name) or row_of(case))
        # The other set may be written meanwhile.
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**kept, name: rows}, indent=1))
    print(report(name, rows))
    if arguments.fit:
        print(f"\nthe fit: CALIBRATION = {tuple(round(x, 2) for x in fit(rows))}")
    else:
        path.with_suffix(".md").write_text(report(name, rows) + "\n")
        draw(rows)


if __name__ == "__main__":
    main()

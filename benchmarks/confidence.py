"""Is the stated confidence true? Calibrate it on crystals of one set of seeds, test it on another.

    python benchmarks/confidence.py                 # 200 + 200 crystals, about 15 CPU minutes; resumes
    python benchmarks/confidence.py --cases 20      # a glance

Writes results/confidence.json, and docs/images/confidence.png with the reliability diagram. The constants of
`quality.CALIBRATION` are the printed fit to the first set; the diagram is of the second, which no choice saw.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from scipy.optimize import minimize

import bluesky_cdinn
from bluesky_cdinn import quality
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.training.held_out import TROUBLES, Case, procedural_case
from bluesky_cdinn.weights import load_weights, shipped_weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "confidence.json"
PICTURE = HERE.parent / "docs" / "images" / "confidence.png"
# First seed of each set.
SETS = {"calibration": 400_000, "test": 500_000}
RIGHT = 0.1
EDGES = (0, 0.3, 0.7, 0.9, 0.97, 1.0001)

Row = dict[str, float | str]


def cases(name: str, count: int) -> Iterator[Case]:
    """Yield crystals as hard as they come: 0.5 to 15 rad, 3e3 to 1e7 counts, gaps and defects."""
    for seed in range(SETS[name], SETS[name] + count):
        rng = np.random.default_rng([seed, 7])
        counts = float(np.exp(rng.uniform(np.log(3e3), np.log(1e7))))
        trouble = str(rng.choice(TROUBLES))
        yield procedural_case(f"{name}-{seed}", seed, rng.uniform(0.5, 15), counts, trouble)


def made_by(start: str) -> str:
    """Return what a row depends on beside its case; rows of anything else are not reused."""
    shipped = shipped_weights()
    weights = load_weights().sha256[:12] if shipped and start in ("auto", "network") else "none"
    return f"{start}, weights {weights}, version {bluesky_cdinn.__version__}"


def row_of(case: Case, start: str) -> Row:
    result = reconstruct(DiffractionVolume(case.intensity, case.valid), ReconstructionOptions(start=start))
    found = quality.compare(result.density, case.truth)
    return {
        "case": case.name,
        "start": str(result.parameters["found_from"]),
        "made_by": made_by(start),
        "phase_range_rad": case.facts["phase_range_rad"],
        "counts": case.facts["counts"],
        "trouble": case.facts["trouble"],
        # 10 rad stands for two finalists that share nothing.
        "spread": min(result.scalars.get("phase_spread_rad", 10.0), 10.0),
        "chi2": result.chi2,
        "confidence": result.confidence,
        "phase_rmse": found.phase_rmse,
        "iou": found.iou,
        "cpu_s": result.cpu_s,
    }


def fit(rows: list[Row]) -> tuple[float, float]:
    """Return intercept and slope of the likeliest logistic curve in log(spread)."""
    spread = np.log(np.clip([float(row["spread"]) for row in rows], 1e-3, 10))
    right = np.array([float(row["phase_rmse"]) < RIGHT for row in rows])

    def surprise(parameters: np.ndarray) -> float:
        logit = parameters[0] + parameters[1] * spread
        return float(np.logaddexp(0, np.where(right, -logit, logit)).sum())

    intercept, slope = minimize(surprise, [-5.0, -1.7]).x
    return float(intercept), float(slope)


def stated(rows: list[Row]) -> np.ndarray:
    """Return the confidence that the calibration in force gives."""
    return np.array([quality.confidence(float(row["spread"]), float(row["chi2"])) for row in rows])


def table(rows: list[Row]) -> list[dict[str, float]]:
    confidence = stated(rows)
    right = np.array([float(row["phase_rmse"]) < RIGHT for row in rows])
    bins = []
    for low, high in pairwise(EDGES):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            bins.append(
                {
                    "from": low,
                    "to": min(high, 1.0),
                    "cases": int(inside.sum()),
                    "stated": float(confidence[inside].mean()),
                    "right": float(right[inside].mean()),
                }
            )
    return bins


def draw(rows: list[Row]) -> None:
    bins = table(rows)
    figure, axes = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for one in bins:
        # One sigma of a share, by Wilson: not zero where all are right.
        n, p = one["cases"], one["right"]
        centre, half = (p + 0.5 / n) / (1 + 1 / n), np.sqrt(p * (1 - p) / n + 0.25 / n**2) / (1 + 1 / n)
        axes.plot([one["stated"]] * 2, [centre - half, centre + half], color="C0", lw=1.5)
        axes.plot(one["stated"], p, "o", color="C0")
        axes.annotate(f"{n}", (one["stated"], p), textcoords="offset points", xytext=(7, -9), fontsize=8)
    axes.set(xlabel="stated confidence", ylabel="share right to 0.1 rad", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"{len(rows)} crystals that no choice saw", fontsize=10)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="of each set")
    parser.add_argument("--start", default="auto")
    parser.add_argument("--again", action="store_true", help="don't reuse what was computed before")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = (
        {} if arguments.again or not arguments.results.exists() else json.loads(arguments.results.read_text())
    )
    current = made_by(arguments.start)
    rows = [row for name in SETS for row in kept.get(name, []) if row["made_by"] == current]
    done: dict[str, Row] = {row["case"]: row for row in rows}
    sets: dict[str, list[Row]] = {name: [] for name in SETS}
    for name in SETS:
        for number, case in enumerate(cases(name, arguments.cases)):
            sets[name].append(done.get(case.name) or row_of(case, arguments.start))
            if number % 10 == 9:
                arguments.results.write_text(json.dumps(sets, indent=1))
    arguments.results.write_text(json.dumps(sets, indent=1))
    intercept, slope = fit(sets["calibration"])
    print(f"fit to the calibration set: CALIBRATION = ({intercept:.2f}, {slope:.2f})")
    print(f"in force: {quality.CALIBRATION}")
    for name, rows in sets.items():
        right = np.array([float(row["phase_rmse"]) < RIGHT for row in rows])
        brier = float(((stated(rows) - right) ** 2).mean())
        print(f"\n{name}: {len(rows)} crystals, {right.mean():.0%} right, Brier score {brier:.3f}")
        for one in table(rows):
            print(f"  {one['from']:.2f} to {one['to']:.2f}: {one['cases']:3d} cases, "
                  f"stated {one['stated']:.2f}, right {one['right']:.2f}")  # fmt: skip
        silent = [
            row for row, c in zip(rows, stated(rows), strict=True) if c > 0.9 and row["phase_rmse"] > 0.2
        ]
        print(f"  over 0.9 and off by more than 0.2 rad: {[row['case'] for row in silent]}")
    draw(sets["test"])


if __name__ == "__main__":
    main()

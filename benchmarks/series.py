"""Judge scans of a series that start from the scan before against scans that start from nothing.

    python benchmarks/series.py                # 12 series of 4 scans: 10 CPU minutes
    python benchmarks/series.py --series 4     # a glance
    python benchmarks/series.py --render       # the tables from what is kept

A crystal's strain grows from scan to scan, part of it in another pattern than it had, and its peak drifts;
every third crystal changes altogether before its third scan: another strain, or another shape too. Each scan
is reconstructed as a whole, and followed at 60 and 80 % of it. Rows lie in results/series.json, written one
by one; a run that was stopped goes on. The tables go to results/series.md.
"""

# ruff: noqa: E402
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from _cases import far_field
from _report import table
from numpy.typing import NDArray

from bluesky_cdinn import quality
from bluesky_cdinn.errors import IncompleteScan
from bluesky_cdinn.following import ScanFollower
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.series_start import FOUND_FROM
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.sim.crystal import Crystal, SmoothField, random_crystal, sample, strained_crystal

HERE = Path(__file__).resolve().parent
RESULTS, TABLES = HERE / "results" / "series.json", HERE / "results" / "series.md"
# This benchmark's own; tests, tuning and training stay away.
FIRST_SEED = 1_100_000
SIDE, SCANS, CHANGES_AT = 64, 4, 2
COUNTS = (1e6, 1e5, 1e4)
RANGES, GROWTHS = (0.5, 2.0, 4.0, 6.0), (0.3, 1.0, 2.0)
# Of what grows, in another pattern; and voxels by which the peak moves from scan to scan.
OTHER, DRIFT = 0.3, 1.5
FRACTIONS = (0.6, 0.8)
RIGHT = 0.1
WAYS = ("from nothing", "from the scan before", "updates from nothing", "updates from the scan before")

Row = dict[str, Any]
Density = NDArray[np.complex64]


@dataclass(frozen=True)
class Sum:
    """Two strain fields, each in its share; called as one is."""

    one: SmoothField
    other: SmoothField
    share: float
    other_share: float

    def __call__(self, points_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the phase at points (..., 3), rad."""
        return self.share * self.one(points_nm) + self.other_share * self.other(points_nm)


def scans(number: int) -> Iterator[tuple[Density, NDArray[np.float32]]]:
    """Yield truth and counts of each scan of one series."""
    rng = np.random.default_rng(FIRST_SEED + number)
    counts, first, growth, changes = facts(number)
    crystal = random_crystal(rng, 100.0, 1.0)
    other = strained_crystal(rng, crystal.body, 1.0)
    changed = random_crystal(rng, 100.0, 1.0)
    if number % 2:
        changed = strained_crystal(rng, crystal.body, 1.0)
    extent = np.ptp(crystal.body.vertices(), axis=0).max()
    voxel_nm = extent * rng.uniform(2.2, 3.0) / SIDE
    peak = rng.uniform(-0.5, 0.5, 3)
    for scan in range(SCANS):
        body, one, grown = crystal.body, crystal.field, growth * scan
        if changes and scan >= CHANGES_AT:
            body, one = changed.body, changed.field
        field = Sum(one, other.field, first + grown, OTHER * grown)
        density = sample(Crystal(body, field), voxel_nm * np.eye(3), (SIDE,) * 3)  # type: ignore[arg-type]
        peak = peak + rng.uniform(-DRIFT, DRIFT, 3)
        density = density * quality.ramp(density.shape, peak)
        density = (density * np.sqrt(counts) / np.abs(far_field(density)).max()).astype(np.complex64)
        yield density, rng.poisson(np.abs(far_field(density)) ** 2).astype(np.float32)


def facts(number: int) -> tuple[float, float, float, bool]:
    """Return counts, first phase range and its growth, rad, and whether the crystal changes altogether."""
    return COUNTS[number % 3], RANGES[number % 4], GROWTHS[number // 2 % 3], number // 2 % 3 == 2


def series_rows(number: int) -> Iterator[Row]:
    """Yield what comes of each scan of one series, each way."""
    counts, _, growth, changes = facts(number)
    options = ReconstructionOptions(max_shape=(SIDE,) * 3)
    followers = {way: ScanFollower() for way in WAYS}
    for scan, (truth, intensity) in enumerate(scans(number)):
        row: Row = {
            "series": number,
            "scan": scan,
            "counts": counts,
            "growth_rad": growth,
        }
        row |= {"changed": changes and scan == CHANGES_AT, "changes": changes}
        for way, follower in followers.items():
            before = "" if scan == 0 else str(scan - 1)
            cdi = {"starts_from": before} if way.endswith("before") else {}
            curve = RockingCurve(
                intensity, np.linspace(-0.3, 0.3, SIDE), raw_uid=str(scan), metadata={"cdi": cdi}
            )
            row[way] = outcome(follower, curve, options, truth, FRACTIONS if way.startswith("upd") else ())
        yield row


def outcome(
    follower: ScanFollower,
    curve: RockingCurve,
    options: ReconstructionOptions,
    truth: Density,
    fractions: Sequence[float],
) -> Row:
    """Reconstruct a scan as it grows, and whole."""
    began = time.process_time()
    for fraction in fractions:
        n = round(fraction * SIDE)
        part = replace(
            curve,
            frames=np.asarray(curve.frames)[:n],
            angles_deg=curve.angles_deg[:n],
            planned_deg=curve.angles_deg,
            exit_status="unfinished",
        )
        try:
            follower(part, options)
        except IncompleteScan:
            continue
    result = follower(curve, options)
    found = quality.compare(result.density, truth)
    return {
        "cpu_s": time.process_time() - began,
        "phase_rmse": found.phase_rmse,
        "iou": found.iou,
        "chi2": result.chi2,
        "confidence": result.confidence,
        "found_from": result.parameters["found_from"],
    }


def way_table(rows: Sequence[Row]) -> str:
    """Return the ways side by side, for crystals that change slowly and for the scan of a sudden change."""
    groups = {
        "first of a series": [r for r in rows if r["scan"] == 0],
        "grows": [r for r in rows if r["scan"] and not r["changed"]],
        "has changed": [r for r in rows if r["changed"]],
    }
    body = []
    for group, of_group in groups.items():
        for way in WAYS if of_group else ():
            said = [r[way] for r in of_group]
            right = [s["phase_rmse"] < RIGHT for s in said]
            brier = np.mean(np.subtract([s["confidence"] for s in said], right) ** 2)
            wrong = [s["confidence"] for s, fine in zip(said, right, strict=True) if not fine]
            body.append(
                [
                    f"{group}, {way}",
                    f"{sum(right)} of {len(right)}",
                    f"{np.median([s['phase_rmse'] for s in said]):.4f}",
                    f"{np.max([s['phase_rmse'] for s in said]):.3f}",
                    f"{max(wrong):.2f}" if wrong else "-",
                    f"{brier:.3f}",
                    f"{np.median([s['cpu_s'] for s in said]):.2f}",
                    f"{sum(s['cpu_s'] for s in said):.0f}",
                ]
            )
    head = ["scan, started", "right", "median RMSE, rad", "worst", "surest wrong", "Brier", "CPU s", "all, s"]
    return table(head, body)


def pair_lines(rows: Sequence[Row]) -> list[str]:
    """Return how starting from the scan before compares with a start from nothing, scan by scan."""
    lines = []
    for cold, warm in (WAYS[:2], WAYS[2:]):
        later = [r for r in rows if r["scan"]]
        ratio = [r[warm]["phase_rmse"] / r[cold]["phase_rmse"] for r in later]
        lost = [r for r in later if r[cold]["phase_rmse"] < RIGHT <= r[warm]["phase_rmse"]]
        won = [r for r in later if r[warm]["phase_rmse"] < RIGHT <= r[cold]["phase_rmse"]]
        cpu = sum(r[warm]["cpu_s"] for r in later) / sum(r[cold]["cpu_s"] for r in later)
        lines.append(
            f"{warm} over {cold}: RMSE {np.median(ratio):.2f} times in the median, {max(ratio):.1f} at most, "
            f"over 1.5 times in {sum(r > 1.5 for r in ratio)} of {len(ratio)}; right no more in {len(lost)}, "
            f"right at last in {len(won)}; CPU {cpu:.2f} times."
        )
    taken = [r[WAYS[1]]["found_from"] == FOUND_FROM for r in rows if r["scan"]]
    return [*lines, f"Without updates {sum(taken)} of {len(taken)} took the objects of the scan before."]


def render(rows: Sequence[Row]) -> None:
    """Write the tables."""
    if not rows:
        return
    number = len({r["series"] for r in rows})
    head = (
        f"{number} series of {SCANS} scans, {SIDE} frames each, one thread, "
        f"{datetime.now(UTC):%Y-%m-%d}; right: to {RIGHT} rad."
    )
    TABLES.write_text("\n\n".join([head, way_table(rows), *pair_lines(rows)]) + "\n")
    print(TABLES.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=12)
    parser.add_argument("--again", action="store_true", help="forget the rows that are kept")
    parser.add_argument("--render", action="store_true", help="only the tables")
    options = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not options.again else []
    kept = {row["series"] for row in rows}
    for number in [] if options.render else range(options.series):
        if number in kept:
            continue
        rows += series_rows(number)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        print(number, *(f"{w[way]['phase_rmse']:.3f}" for w in rows[-SCANS:] for way in WAYS), flush=True)
    render(rows)


if __name__ == "__main__":
    main()

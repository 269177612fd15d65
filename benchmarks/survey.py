"""Judge what a survey of a simulated sample measures and what it skips, against what there is.

    python benchmarks/survey.py               # 3 samples of 12 places: 6 CPU minutes
    python benchmarks/survey.py --samples 1   # a glance
    python benchmarks/survey.py --render      # the tables from what is kept

Each sample has an empty place, a grain a thousand times as weak, one whose peak is at the detector's edge,
two grains in one place, and eight of random size, strain and brightness. Rows lie in results/survey.json, one
a sample; the tables go to results/survey.md.
"""

# ruff: noqa: E402
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from _direct import DirectReconstruction
from _report import table
from bluesky import RunEngine

from bluesky_cdinn import quality
from bluesky_cdinn.geometry import bragg_vector
from bluesky_cdinn.plans import survey
from bluesky_cdinn.sim.crystal import interior_points, sample
from bluesky_cdinn.sim.detector_effects import random_detector
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.grains import Grain, random_grains, sample_beamline
from bluesky_cdinn.survey_ranking import GrainSeen, grain_grid, weighted_score

HERE = Path(__file__).resolve().parent
RESULTS, TABLES = HERE / "results" / "survey.json", HERE / "results" / "survey.md"
# This benchmark's own; tests, tuning and training stay away.
FIRST_SEED = 1_100_000
COLUMNS, ROWS, PITCH_UM, BEST, SIDE = 4, 3, 10.0, 3, 64
LOOK = (-0.4, 0.4, 21)
GLANCE_S, MEASURE_S = 4.0, 40.0
SCORE = weighted_score(count_time_s=MEASURE_S / LOOK[2])

Row = dict[str, Any]


class Exposure:
    """Adds up how long frames were exposed, and counts them."""

    def __init__(self) -> None:
        self.seconds, self.frames = 0.0, 0
        self._times: dict[str, float] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        if name == "descriptor" and "det" in doc["configuration"]:
            self._times[doc["uid"]] = float(doc["configuration"]["det"]["data"]["det_count_time"])
        elif name == "event" and doc["descriptor"] in self._times:
            self.seconds += self._times[doc["descriptor"]]
            self.frames += 1


def sample_row(number: int) -> Row:
    """Survey one sample and say what it took."""
    rng = np.random.default_rng(FIRST_SEED + number)
    grains = random_grains(rng, COLUMNS, ROWS, pitch_um=PITCH_UM, side_px=SIDE)
    detector = random_detector(np.random.default_rng([FIRST_SEED + number, 1]), (SIDE, SIDE), gap=False)
    beamline = sample_beamline(grains, detector=detector, seed=FIRST_SEED + number)
    axes = {"x": PITCH_UM * np.arange(COLUMNS), "y": PITCH_UM * np.arange(ROWS)}
    live, exposure = DirectReconstruction(), Exposure()
    engine = RunEngine({}, call_returns_result=True)
    engine.subscribe(exposure)
    stages = [beamline.x, beamline.y]
    plan = survey(
        beamline.det,
        beamline.theta,
        stages,
        grain_grid(axes),
        *LOOK,
        best=BEST,
        glance_s=GLANCE_S,
        measure_s=MEASURE_S,
        live=live,
    )
    began = time.process_time()
    ended: Any = engine(plan)
    print(ended.plan_result, flush=True)
    return {
        "sample": number,
        "cpu_s": time.process_time() - began,
        "grains": [told(grain, live, grains) for grain in ended.plan_result],
        "exposure_s": exposure.seconds,
        "frames": exposure.frames,
    }


def told(seen: GrainSeen, live: DirectReconstruction, grains: Sequence[Grain]) -> Row:
    """Return what was found of a grain, and what there was."""
    place = seen.positions["x"], seen.positions["y"]
    there = [grain for grain in grains if grain.place_um == place]
    row: Row = {**asdict(seen), "kind": kind(there)}
    if there:
        row["true_score"] = SCORE(true_grain(there[0]))
    crystal = live.crystals.get(seen.raw_uid) or live.crystals.get(seen.glance_uid)
    if crystal is not None and there and crystal.direct_basis is not None:
        truth = sample(there[0].crystal, crystal.direct_basis, crystal.density.shape)
        row["phase_rmse"] = quality.compare(crystal.density, truth).phase_rmse
    return row


def true_grain(grain: Grain) -> GrainSeen:
    """Return what a survey that knew everything would know of a grain."""
    q = bragg_vector(gold_geometry((SIDE, SIDE)))
    points = interior_points(grain.crystal.body)
    step_nm = 0.5 * q / np.linalg.norm(q)
    along = (grain.crystal.phase(points + step_nm) - grain.crystal.phase(points - step_nm)) / 1.0
    volume = len(points) / 40**3 * np.prod(np.ptp(grain.crystal.body.vertices(), axis=0))
    return GrainSeen(
        grain.name,
        status="seen",
        counts_s=grain.peak_rate,
        size_nm=float(np.cbrt(volume)),
        strain_rms=float(np.std(along / np.linalg.norm(q))),
        confidence=1.0,
    )


def kind(there: Sequence[Grain]) -> str:
    """Return what a place holds."""
    if not there:
        return "empty"
    if len(there) > 1:
        return "two at once"
    if there[0].shift_px[0] == SIDE / 2:
        return "cut at the edge"
    return "weak" if there[0].peak_rate < 1000 else "good"


def kind_table(rows: Sequence[Row]) -> str:
    """Return what became of each kind of place."""
    body = []
    for name in ("good", "empty", "weak", "cut at the edge", "two at once"):
        of_kind = [grain for row in rows for grain in row["grains"] if grain["kind"] == name]
        counts = [sum(g["status"] == s for g in of_kind) for s in ("measured", "seen", "skipped")]
        why = sorted({g["reason"].split(":")[0].split(",")[0] for g in of_kind if g["reason"]})
        body.append([name, *map(str, counts), "; ".join(why) or "-"])
    return table(["place", "measured", "seen", "skipped", "why"], body)


def choice_table(rows: Sequence[Row]) -> str:
    """Return, sample by sample, how good the choice was and what it cost."""
    body = []
    for row in rows:
        good = {g["name"]: g for g in row["grains"] if g["kind"] == "good"}
        best = sorted(good, key=lambda name: -good[name]["true_score"])[:BEST]
        picked = [g for g in row["grains"] if g["status"] == "measured"]
        usual = np.mean([g["true_score"] for g in good.values()])
        marks = [np.mean([good[n]["true_score"] for n in best]), np.mean([g["true_score"] for g in picked])]
        body.append(
            [
                str(row["sample"]),
                f"{len({g['name'] for g in picked} & set(best))} of {BEST}",
                f"{marks[1]:.3f}",
                f"{marks[0]:.3f}",
                f"{usual:.3f}",
                f"{max(g['phase_rmse'] for g in picked):.3f}",
                f"{row['exposure_s']:.0f}",
                f"{COLUMNS * ROWS * MEASURE_S:.0f}",
                f"{row['frames']}",
            ]
        )
    head = ["sample", "of the best", "score", "of the best", "of all good", "worst RMSE, rad"]
    return table([*head, "exposure, s", "of measuring all", "frames"], body)


def render(rows: Sequence[Row]) -> None:
    """Write the tables."""
    if not rows:
        return
    head = f"{len(rows)} samples of {COLUMNS * ROWS} places, {datetime.now(UTC):%Y-%m-%d}."
    text = [
        head,
        "What became of each place:",
        kind_table(rows),
        f"The {BEST} that were measured: how many have one of the {BEST} highest true scores, their mean "
        "true score, and what it cost:",
        choice_table(rows),
    ]
    TABLES.write_text("\n\n".join(text) + "\n")
    print(TABLES.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="forget the rows that are kept")
    parser.add_argument("--render", action="store_true", help="only the tables")
    options = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not options.again else []
    kept = {row["sample"] for row in rows}
    for number in [] if options.render else range(options.samples):
        if number not in kept:
            rows.append(sample_row(number))
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    render(rows)


if __name__ == "__main__":
    main()

"""Judge what a survey of a simulated sample measures and what it skips, against measuring every grain.

    python benchmarks/survey.py               # 3 samples of 12 places: 15 CPU minutes
    python benchmarks/survey.py --samples 1   # a glance
    python benchmarks/survey.py --render      # the tables from what is kept

Each sample has an empty place, a grain a thousand times as weak, one whose peak is at the detector's edge,
two grains in one place, and eight of random size, strain and brightness. After the survey every grain that
can be is measured as the best were. Rows lie in results/survey.json, one a sample; the tables go to
results/survey.md.
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
from bluesky_cdinn.plans import survey
from bluesky_cdinn.sim.crystal import sample
from bluesky_cdinn.sim.grains import Grain, SampleBeamline, random_grains, sample_beamline
from bluesky_cdinn.survey_ranking import GrainSeen, grain_grid, weighted_score

HERE = Path(__file__).resolve().parent
RESULTS, TABLES = HERE / "results" / "survey.json", HERE / "results" / "survey.md"
# This benchmark's own; tests, tuning and training stay away.
FIRST_SEED = 1_100_000
COLUMNS, ROWS, PITCH_UM, BEST = 4, 3, 10.0, 3
LOOK = (-0.4, 0.4, 21)
MEASURE_S = 60.0

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
    """Survey one sample, then measure whatever a survey can measure of it."""
    grains = random_grains(np.random.default_rng(FIRST_SEED + number), COLUMNS, ROWS, pitch_um=PITCH_UM)
    beamline = sample_beamline(grains, seed=FIRST_SEED + number)
    began = time.process_time()
    live, found, spent = surveyed(beamline, best=BEST)
    cpu_s = time.process_time() - began
    every, known, all_spent = surveyed(beamline, best=COLUMNS * ROWS, glance_s=0.0, least_counts=0.0)
    return {
        "sample": number,
        "cpu_s": cpu_s,
        "survey": [told(grain, live, grains) for grain in found],
        "all": [told(grain, every, grains) for grain in known],
        "survey_s": spent.seconds,
        "all_s": all_spent.seconds,
        "survey_frames": spent.frames,
        "all_frames": all_spent.frames,
    }


def surveyed(
    beamline: SampleBeamline, **options: Any
) -> tuple[DirectReconstruction, Sequence[GrainSeen], Exposure]:
    """Survey a sample and say what it took."""
    axes = {"x": PITCH_UM * np.arange(COLUMNS), "y": PITCH_UM * np.arange(ROWS)}
    live, exposure = DirectReconstruction(), Exposure()
    engine = RunEngine({}, call_returns_result=True)
    engine.subscribe(exposure)
    plan = survey(
        beamline.det,
        beamline.theta,
        [beamline.x, beamline.y],
        grain_grid(axes),
        *LOOK,
        measure_s=MEASURE_S,
        live=live,
        **options,
    )
    ended: Any = engine(plan)
    print(ended.plan_result, flush=True)
    return live, ended.plan_result, exposure


def told(seen: GrainSeen, live: DirectReconstruction, grains: Sequence[Grain]) -> Row:
    """Return what was found of a grain, and what there was."""
    place = seen.positions["x"], seen.positions["y"]
    there = [grain for grain in grains if grain.place_um == place]
    row: Row = {**asdict(seen), "kind": kind(there)}
    crystal = live.crystals.get(seen.raw_uid) or live.crystals.get(seen.glance_uid)
    if crystal is not None and there and crystal.direct_basis is not None:
        truth = sample(there[0].crystal, crystal.direct_basis, crystal.density.shape)
        found = quality.compare(crystal.density, truth)
        row |= {"phase_rmse": found.phase_rmse, "iou": found.iou}
    return row


def kind(there: Sequence[Grain]) -> str:
    """Return what a place holds."""
    if not there:
        return "empty"
    if len(there) > 1:
        return "two at once"
    if there[0].shift_px[0] == 64.0:
        return "cut at the edge"
    return "weak" if there[0].peak_rate < 1000 else "good"


def kind_table(rows: Sequence[Row]) -> str:
    """Return what became of each kind of place."""
    body = []
    for name in ("good", "empty", "weak", "cut at the edge", "two at once"):
        of_kind = [grain for row in rows for grain in row["survey"] if grain["kind"] == name]
        counts = [sum(g["status"] == s for g in of_kind) for s in ("measured", "seen", "skipped")]
        why = sorted({g["reason"].split(":")[0] for g in of_kind if g["reason"]})
        body.append([name, *map(str, counts), "; ".join(why) or "-"])
    return table(["place", "measured", "seen", "skipped", "why"], body)


def choice_table(rows: Sequence[Row]) -> str:
    """Return, sample by sample, how good the choice was and what it cost."""
    score = weighted_score(count_time_s=MEASURE_S / LOOK[2])
    body = []
    for row in rows:
        known = {g["name"]: g for g in row["all"] if g["status"] == "measured" and g["kind"] == "good"}
        scores = {name: score(GrainSeen.of(fields_of(g))) for name, g in known.items()}
        best = sorted(scores, key=lambda name: -scores[name])[:BEST]
        picked = [g["name"] for g in row["survey"] if g["status"] == "measured"]
        errors = [g["phase_rmse"] for g in row["survey"] if g["status"] == "measured"]
        others = [g["phase_rmse"] for g in known.values()]
        lost = np.mean([scores[n] for n in best]) - np.mean([scores.get(n, 0.0) for n in picked])
        body.append(
            [
                str(row["sample"]),
                f"{len(set(picked) & set(best))} of {BEST}",
                f"{lost:.3f}",
                f"{np.median(errors):.3f}" if errors else "-",
                f"{np.median(others):.3f}" if others else "-",
                f"{row['survey_s']:.0f}",
                f"{row['all_s']:.0f}",
                f"{row['survey_frames']}",
                f"{row['all_frames']}",
            ]
        )
    head = [
        "sample",
        "of the best",
        "score lost",
        "RMSE of them, rad",
        "of all",
        "s",
        "all, s",
        "frames",
        "all",
    ]
    return table(head, body)


def fields_of(row: Row) -> Row:
    """Return what a row says of a grain, without what is known beside."""
    return {name: row[name] for name in GrainSeen.__dataclass_fields__ if name in row}


def render(rows: Sequence[Row]) -> None:
    """Write the tables."""
    if not rows:
        return
    head = f"{len(rows)} samples of {COLUMNS * ROWS} places, {datetime.now(UTC):%Y-%m-%d}."
    text = [
        head,
        "What became of each place:",
        kind_table(rows),
        f"The {BEST} that were measured, among the best {BEST} of those measured one and all; exposure:",
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

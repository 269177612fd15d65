"""Let bluesky-adaptive's optimisers choose a rocking curve's range and number of angles, at one dose.

    python benchmarks/optimiser.py [--crystals 6] [--trials 12]      # Ax needs bluesky-adaptive[ax]
    python benchmarks/optimiser.py --render

Each optimiser has so many trials on each crystal, by the real plans, and minimises 1 - confidence. What gave
the least is then measured again three times, since the best of many noisy trials is lucky too; those are
compared with the truth. Random search and a usual fixed scan are the measure. Rows lie in
results/optimiser.json, written one by one; a run that was stopped goes on.
"""

# ruff: noqa: E402
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
from _direct import DirectReconstruction
from bluesky import RunEngine
from bluesky_adaptive.plans import optimize
from bluesky_adaptive.protocols import OptimizationProblem
from bluesky_adaptive.scipy import Objective, RangeDOF, Scipy
from bluesky_adaptive.scipy.configs import SCP, ScipyCFG

from bluesky_cdinn import quality
from bluesky_cdinn.adaptive import ID, Resilient, RockingTrials, at_dose
from bluesky_cdinn.sim.crystal import sample
from bluesky_cdinn.sim.detector_effects import random_detector
from bluesky_cdinn.sim.devices import gold_geometry, simulated_beamline
from bluesky_cdinn.summary import ReconstructionSummary

FIRST_SEED = 1_100_500
RESULTS = Path(__file__).resolve().parent / "results" / "optimiser.json"
TABLE = RESULTS.with_suffix(".md")
BOUNDS = {"half_range": (0.1, 0.6), "num": (16.0, 80.0)}
USUAL = {"half_range": 0.35, "num": 48.0}
OBJECTIVE = "doubt"
# Of a failed trial, for optimisers that must be given a number.
WORST = {OBJECTIVE: 1.0}
DOSE_S = 6.4
# Counts a second in the peak's brightest pixel: photons decide, or range and sampling do.
RATES = (3e3, 3e4)
REPEATS = 3

Row = dict[str, Any]


def doubt(found: ReconstructionSummary) -> float:
    return 1 - found.confidence


class RandomSearch:
    """Tries anything within the bounds, whatever came of it."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 7])
        self._numbers = count()

    def suggest(self, num_points: int | None = None) -> Sequence[Mapping[str, Any]]:
        """Return one trial, anywhere."""
        tried = {name: float(self._rng.uniform(*ends)) for name, ends in BOUNDS.items()}
        return [{ID: next(self._numbers), **tried}]

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Learn nothing."""

    def get_best_points(self) -> Any:
        """Return none: the documents have them all."""
        return []


def ax(seed: int) -> Any:
    from ax import RangeParameterConfig
    from bluesky_adaptive.ax.optimizer import AxOptimizer

    parameters = [
        RangeParameterConfig(name=name, bounds=ends, parameter_type="float") for name, ends in BOUNDS.items()
    ]
    return AxOptimizer(parameters, f"-{OBJECTIVE}", client_kwargs={"random_seed": seed})


def nelder_mead() -> Any:
    dofs = [RangeDOF(name=name, bounds=ends, parameter_type="float") for name, ends in BOUNDS.items()]
    config = ScipyCFG(
        dofs=dofs,
        objective=Objective(name=OBJECTIVE, minimize=True),
        optimizer=SCP.NELDER_MEAD,
        rescale=None,
        max_iter=None,
    )
    return Scipy([], config, lambda uid, suggestions: [], timeout=None).optimizer


class Beamline:
    """One crystal, in the beam of a RunEngine of its own."""

    def __init__(self, number: int, rate: float) -> None:
        rng = np.random.default_rng(FIRST_SEED + number)
        detector = random_detector(rng, (48, 48), gap=False)
        self.facts = {
            "seed": FIRST_SEED + number,
            "size_nm": round(float(rng.uniform(250, 500)), 1),
            "phase_range_rad": round(float(rng.uniform(0.5, 4.0)), 2),
        }
        self.det, self.theta = simulated_beamline(
            geometry=gold_geometry(detector.shape),
            detector=detector,
            peak_rate=rate,
            time_scale=0,
            **self.facts,
        )
        self.live = DirectReconstruction()
        self.RE = RunEngine({}, call_returns_result=True)
        self.trials = RockingTrials(self.theta, at_dose(DOSE_S), {OBJECTIVE: doubt}, live=self.live)

    def optimised(self, optimizer: Any, trials: int) -> list[Mapping[str, float]]:
        """Return what an optimiser's trials were and gave, as its run's documents say it."""
        seen: list[Mapping[str, float]] = []

        def note(name: str, doc: Mapping[str, Any]) -> None:
            if name == "event" and OBJECTIVE in doc["data"]:
                seen.append(doc["data"])

        problem = OptimizationProblem(
            optimizer=Resilient(optimizer, None if hasattr(optimizer, "register_failures") else WORST),
            actuators=[],
            sensors=[self.det],
            evaluation_function=self.trials.evaluate,
            acquisition_plan=self.trials.acquire,
        )
        self.RE(optimize(problem, iterations=trials), note)
        return seen

    def measured(self, parameters: Mapping[str, float]) -> Row:
        """Measure one scan, and compare with the truth."""
        trial = {ID: 0, **{name: parameters[name] for name in BOUNDS}}
        uid = self.RE(self.trials.acquire([trial], [], [self.det])).plan_result
        (found,) = self.trials.evaluate(uid, [trial])
        if math.isnan(found[OBJECTIVE]):
            return {"failed": True}
        crystal = self.live.crystals[uid]
        truth = sample(self.det.source.crystal, crystal.direct_basis, crystal.density.shape)
        against = quality.compare(crystal.density, truth)
        return {"confidence": 1 - found[OBJECTIVE], "phase_rmse": against.phase_rmse, "iou": against.iou}


def optimisers(seed: int) -> dict[str, Any]:
    return {"Ax": ax(seed), "random search": RandomSearch(seed), "Nelder-Mead": nelder_mead()}


def crystal_row(number: int, rate: float, trials: int) -> Row:
    """Return what each optimiser made of one crystal."""
    row: Row = {"rate": rate}
    for name, optimizer in optimisers(FIRST_SEED + number).items():
        beamline = Beamline(number, rate)
        row |= beamline.facts
        seen = beamline.optimised(optimizer, trials)
        close = getattr(optimizer, "close", None)
        if close is not None:
            close()
        good = [trial for trial in seen if not math.isnan(trial[OBJECTIVE])]
        best = min(good, key=lambda trial: trial[OBJECTIVE])
        row[name] = {
            "trials": len(seen),
            "failed": len(seen) - len(good),
            "best": {key: best[key] for key in (*BOUNDS, OBJECTIVE)},
            "again": [beamline.measured(best) for _ in range(REPEATS)],
        }
    beamline = Beamline(number, rate)
    row["usual scan"] = {
        "trials": 0,
        "failed": 0,
        "again": [beamline.measured(USUAL) for _ in range(REPEATS)],
    }
    return row


def render(rows: Sequence[Row]) -> str:
    """Return the tables, one for each rate."""
    lines = ["# Optimisers of bluesky-adaptive over rocking curves"]
    for rate in RATES:
        if at_rate := [row for row in rows if row["rate"] == rate]:
            lines += ["", *table(rate, at_rate)]
    return "\n".join(lines) + "\n"


def table(rate: float, rows: Sequence[Row]) -> list[str]:
    """Return one table's lines, the optimisers below each other."""
    lines = [
        f"{len(rows)} simulated crystals, {rate:g} counts/s at the peak, {DOSE_S:g} s of exposure a scan, "
        f"{rows[0]['Ax']['trials']} trials an optimiser; medians over crystals of the medians of "
        f"{REPEATS} scans at the best parameters, and how much those scatter (median range).",
        "",
        "| | confidence | its range | phase error, rad | overlap | failed | half range, deg | angles |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("usual scan", "random search", "Nelder-Mead", "Ax"):
        again = [[scan for scan in row[name]["again"] if "failed" not in scan] for row in rows]
        middles = [
            statistics.median(statistics.median(scan[key] for scan in scans) for scans in again if scans)
            for key in ("confidence", "phase_rmse", "iou")
        ]
        scatter = statistics.median(
            np.ptp([scan["confidence"] for scan in scans]) for scans in again if scans
        )
        chosen = [
            statistics.median(row[name].get("best", USUAL)[parameter] for row in rows) for parameter in BOUNDS
        ]
        failed, tried = (sum(row[name][key] for row in rows) for key in ("failed", "trials"))
        lines.append(
            f"| {name} | {middles[0]:.2f} | {scatter:.2f} | {middles[1]:.3f} | {middles[2]:.3f} | "
            f"{failed} of {tried} | {chosen[0]:.2f} | {chosen[1]:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crystals", type=int, default=6)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(row["seed"], row["rate"]) for row in rows}
    for rate, number in product(RATES, range(0 if args.render else args.crystals)):
        if (FIRST_SEED + number, rate) in done:
            continue
        rows.append(crystal_row(number, rate, args.trials))
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    TABLE.write_text(render(rows))
    print(render(rows))


if __name__ == "__main__":
    main()

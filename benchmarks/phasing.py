"""Phase the same patterns with this package and with others, and print, plot and keep one table.

    python benchmarks/phasing.py [--quick] [--only ours,er_hio,...] [--render]

See README.md beside it.
"""

# ruff: noqa: E402
# One thread for all libraries, before any of them starts.
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cases import Case, far_field, scan_case, scan_file, synthetic_cases
from _peers import Outcome, Program, Solver, adam, can_import, er_hio, install, ours, timed
from _report import FIGURE, plot, report
from numpy.typing import NDArray

from bluesky_cdinn import quality

HERE = Path(__file__).parent
Row = dict[str, Any]
INSIDE: dict[str, Solver] = {"ours": ours, "er_hio": timed(er_hio), "adam": timed(adam)}
# Module, script, and what is set beside the script's own. cohere's shrink-wrap threshold is a choice of its
# user's: 0.1, of its examples, is robust and blunt, 0.2 is sharp and fails more often.
OUTSIDE: dict[str, tuple[str, str, Row]] = {
    "cohere": ("cohere_core", "_peer_cohere.py", {}),
    "cohere_sharp": ("cohere_core", "_peer_cohere.py", {"shrink_wrap_threshold": 0.2}),
    "pynx": ("pynx", "_peer_pynx.py", {}),
}
SOLVERS = (*INSIDE, *OUTSIDE)
# The costly and hopeless one gets every sixth synthetic case and no real scan.
ADAM_EVERY = 6


def scaled_chi2(density: NDArray[Any], case: Case) -> float:
    """Return chi2 on the valid voxels, at the scale that fits best: programs scale their objects freely."""
    model = np.abs(far_field(density))[case.valid].astype(np.float64)
    goal = np.sqrt(case.intensity[case.valid].astype(np.float64))
    power = float((model**2).sum())
    scale = float((model * goal).sum()) / power if power else 0.0
    return float(((scale * model - goal) ** 2).sum() / (goal**2).sum())


def centred(case: Case) -> tuple[Case, tuple[int, ...]]:
    """Return the case with its brightest voxel at n // 2, as the other programs want it, and the roll."""
    peak = np.unravel_index(np.where(case.valid, case.intensity, 0).argmax(), case.intensity.shape)
    roll = tuple(int(n // 2 - p) for n, p in zip(case.intensity.shape, peak, strict=True))
    turned = (np.roll(a, roll, axis=(0, 1, 2)) for a in (case.intensity, case.valid))
    return Case(case.name, case.kind, *turned), roll


def solve(solver: Solver, program: str, case: Case, seed: int) -> Outcome:
    """Return a program's density for the case, on the case's own grid; only ours finds the peak itself."""
    if program == "ours":
        return ours(case.intensity, case.valid, seed, raw=case.raw)
    turned, roll = centred(case)
    outcome = solver(turned.intensity, turned.valid, seed)
    back = quality.ramp(outcome.density.shape, [-r for r in roll])
    return Outcome(outcome.density * back, outcome.cpu_s, outcome.wall_s, outcome.facts)


def synthetic_row(program: str, case: Case, outcome: Outcome) -> Row:
    assert case.truth is not None
    found = quality.compare(outcome.density, case.truth)
    chi2, floor = scaled_chi2(outcome.density, case), scaled_chi2(case.truth, case)
    return {
        "program": program,
        "case": case.name,
        "kind": case.kind,
        **case.facts,
        "cpu_s": outcome.cpu_s,
        "wall_s": outcome.wall_s,
        "chi2": chi2,
        "chi2_over_truth": chi2 / floor,
        "phase_rmse": found.phase_rmse,
        "iou": found.iou,
        "amplitude_nrmse": found.amplitude_nrmse,
        "correlation": found.correlation,
        "success": bool(found.phase_rmse < 0.1 and found.iou > 0.95),
        **outcome.facts,
    }


def scan_row(program: str, case: Case, outcomes: list[Outcome]) -> Row:
    """Return how well the seeds agree on the real scan, pair by pair, and what they cost."""
    same, apart = [], []
    for first, second in combinations([o.density for o in outcomes], 2):
        aligned = quality.align(second, first)
        same.append(quality.similarity(aligned, first))
        apart.append(quality.phase_difference(aligned, first))
    # The largest set that agrees with one of them.
    n = len(outcomes)
    table = np.eye(n)
    for (i, j), value in zip(combinations(range(n), 2), same, strict=True):
        table[i, j] = table[j, i] = value
    return {
        "program": program,
        "case": case.name,
        "kind": case.kind,
        "seeds": n,
        "valid": float(case.valid.mean()),
        "chi2": [scaled_chi2(o.density, case) for o in outcomes],
        "cpu_s": [o.cpu_s for o in outcomes],
        "wall_s": [o.wall_s for o in outcomes],
        "confidence": [o.facts.get("confidence") for o in outcomes],
        "correlations": same,
        "phase_differences_rad": apart,
        "alike": int((table > 0.9).sum(axis=1).max()),
    }


def open_solver(name: str, options: argparse.Namespace) -> tuple[Solver, Row] | None:
    """Return a program ready to be asked, and what it says of itself; None where it isn't to be had."""
    if name in INSIDE:
        return INSIDE[name], {"torch": torch.__version__}
    module, script, settings = OUTSIDE[name]
    command = (options.pynx_python if module == "pynx" else options.cohere_python).split()
    if not command and module == "cohere_core":
        command = [str(install(module, HERE.parent / ".bench-venv"))]
    if not command:
        command = next(([c] for c in ("python3", "/usr/bin/python3") if can_import([c], module)), [])
    if not command or not can_import(command, module):
        print(f"{name}: no Python with {module} found; left out", file=sys.stderr)
        return None
    options.scratch.mkdir(parents=True, exist_ok=True)
    inside = options.scratch_inside if module == "pynx" else None
    program = Program(command, script, options.scratch, inside, settings)
    return program, {**program.facts, "settings": settings}


def environment() -> Row:
    """Return where and on what this runs."""
    cpus = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
    described = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpus[0].split(":")[1].strip() if cpus else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "commit": described or "unknown",
    }


class Results:
    """Rows by program and case, in a JSON file that is written after each, so that a run can go on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        kept = json.loads(path.read_text()) if path and path.exists() else {}
        self.programs: dict[str, Row] = kept.get("programs", {})
        self.rows: list[Row] = kept.get("rows", [])
        self.scans: list[Row] = kept.get("scans", [])

    def has(self, program: str, case: str) -> bool:
        """Return whether a program's row for a case is there."""
        return any(r["program"] == program and r["case"] == case for r in self.rows + self.scans)

    def forget(self, program: str) -> None:
        """Drop all rows of a program."""
        self.rows, self.scans = (
            [r for r in kept if r["program"] != program] for kept in (self.rows, self.scans)
        )

    def save(self) -> None:
        """Write what there is, if it is to be kept."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"programs": self.programs, "rows": self.rows, "scans": self.scans}
        self.path.write_text(json.dumps(content, indent=1) + "\n")


def run(options: argparse.Namespace, results: Results) -> None:
    """Run what is asked for and not there yet; the programs take turns, so that a busy machine hits all."""
    cases = list(synthetic_cases(4, 0) if options.quick else synthetic_cases(options.cases, options.extra))
    cases = [case for case in cases if case.name.startswith(tuple(options.kinds.split(",")))]
    solvers: dict[str, Solver] = {}
    for name in options.only.split(","):
        if name not in SOLVERS:
            raise SystemExit(f"--only takes {', '.join(SOLVERS)}; got {name!r}")
        opened = open_solver(name, options)
        if opened is None:
            continue
        if options.again:
            results.forget(name)
        solvers[name], facts = opened
        results.programs[name] = {**facts, **environment()}
        # Warm: the first call pays for what libraries do once.
        solve(solvers[name], name, cases[0], 1)
    for i, case in enumerate(cases):
        for name, solver in solvers.items():
            if results.has(name, case.name) or (name == "adam" and i % ADAM_EVERY):
                continue
            results.rows.append(synthetic_row(name, case, solve(solver, name, case, seed=i)))
            results.save()
            print(line(results.rows[-1]), file=sys.stderr, flush=True)
    path = None if options.quick else scan_file()
    for side in [int(s) for s in options.scan_sides.split(",") if s] if path else []:
        run_scan(scan_case(path, side), solvers, options, results)
    for solver in solvers.values():
        if isinstance(solver, Program):
            solver.close()


def run_scan(case: Case, solvers: dict[str, Solver], options: argparse.Namespace, results: Results) -> None:
    """Run the programs on the real scan from several seeds, where that isn't there yet."""
    for name, solver in solvers.items():
        if results.has(name, case.name) or name == "adam":
            continue
        large = case.intensity.shape[0] > 64 and name != "ours"
        seeds = range(options.large_seeds if large else options.seeds)
        outcomes = [solve(solver, name, case, seed) for seed in seeds]
        results.scans.append(scan_row(name, case, outcomes))
        results.save()
        row = results.scans[-1]
        print(f"{name} {case.name} chi2 {np.median(row['chi2']):.4f} alike {row['alike']}", file=sys.stderr)


def line(row: Row) -> str:
    return (
        f"{row['program']:<8}{row['case']:<11}{row['phase_range_rad']:6.2f} rad  cpu {row['cpu_s']:6.2f} s  "
        f"chi2/truth {row['chi2_over_truth']:6.2f}  rmse {row['phase_rmse']:.3f}  iou {row['iou']:.3f}  "
        f"{'ok' if row['success'] else 'FAILED'}  conf {row.get('confidence', float('nan')):.2f}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 cases, ours alone, kept nowhere")
    parser.add_argument("--render", action="store_true", help="write table and plot of kept results")
    parser.add_argument("--only", default="", help=f"of {','.join(SOLVERS)}, comma-separated")
    parser.add_argument("--again", action="store_true", help="forget kept results of the programs that run")
    parser.add_argument(
        "--kinds", default="", help="cases whose names begin so, comma-separated; all by default"
    )
    parser.add_argument("--cases", type=int, default=32, help="synthetic crystals, 0.5 to 2 pi rad")
    parser.add_argument("--extra", type=int, default=4, help="cases of each kind of trouble")
    parser.add_argument("--seeds", type=int, default=10, help="starts on the real scan")
    parser.add_argument("--large-seeds", type=int, default=2, help="the others' starts on its 128^3")
    parser.add_argument("--scan-sides", default="64,128", help="cubes of the real scan; empty for none")
    parser.add_argument("--cohere-python", default="", help="one that has cohere_core; else it is installed")
    parser.add_argument("--pynx-python", default="", help="one that has pynx, or a command that starts it")
    scratch = Path(tempfile.gettempdir()) / "phasing-benchmark"
    parser.add_argument("--scratch", type=Path, default=scratch, help="folder shared with the programs")
    parser.add_argument("--scratch-inside", default=None, help="the same, as --pynx-python sees it")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "phasing.json")
    options = parser.parse_args()
    options.only = options.only or ("ours" if options.quick else ",".join(SOLVERS))
    return options


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    results = Results(None if options.quick else options.results)
    if not options.render:
        begun = time.perf_counter()
        run(options, results)
        print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    text = report(results.programs, results.rows, results.scans)
    print(text)
    if not options.quick:
        options.results.with_suffix(".md").write_text(text)
        plot(results.rows, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Judge the network's start: alone, and as what phase retrieval begins with, beside starts without it.

    python benchmarks/network.py [--quick] [--only alone,refined,...] [--contenders network,paper,...]

See README.md beside it.
"""

# ruff: noqa: E402
# One thread for all libraries, before any of them starts.
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cases import scan_case, scan_file
from _network_report import FIGURES, draw, report
from _peers import shrink_wrap
from phasing import environment

from bluesky_cdinn import phasing, quality
from bluesky_cdinn.errors import WeightsError
from bluesky_cdinn.forward import to_centre
from bluesky_cdinn.guess import CYCLE, half_phased, room_of
from bluesky_cdinn.network_start import network_start, seen_shape
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.posing import centre_peak
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.refine import ER, HIO, BreakTwins, GradientDescent, Measurement, Objects, Step, run
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.starts import Start, autocorrelation_start, random_start
from bluesky_cdinn.support import autocorrelation_support
from bluesky_cdinn.training.curve import read_curve
from bluesky_cdinn.training.evaluation import Point, begin, follow, row_of, scaled_chi2, score_start, timed
from bluesky_cdinn.training.held_out import COUNTS, SIDE, Case, atomistic_cases, procedural_cases
from bluesky_cdinn.training.subjects import start_from
from bluesky_cdinn.weights import load_weights
from bluesky_cdinn.windows import measurement_window, objects_on

HERE = Path(__file__).parent
Row = dict[str, Any]
Recipe = Callable[[Measurement], Sequence[Step]]
SECTIONS = ("alone", "refined", "pipeline", "scan", "forward", "curves")
ATOMISTIC_SET = HERE / "data" / "atomistic_heldout.npz"
# Of the contender that is the network's start without its network: about as long as it takes with it.
COARSE_ITERATIONS = 160
# On the real scan chi2 is looked at this often, and each start is tried from this many seeds.
SCAN_EVERY, SCAN_SEEDS, SCAN_SIDE = 5, 5, 64


@dataclass(frozen=True, eq=False)
class Contender:
    """A start that is to be judged.

    Parameters
    ----------
    name
        In tables.
    start
        What it does.
    chosen
        Whether its objects have chosen between the twins already, so that no refinement must do it.
    inside
        Iterations of phase retrieval that it does itself, on the grid that its network sees.
    facts
        What it is.
    """

    name: str
    start: Start
    chosen: bool = False
    inside: int = 0
    facts: Row = field(default_factory=dict)

    def work(self, measurement: Measurement) -> float:
        """Return its own iterations as so many on the whole grid: the same number of voxels updated."""
        share = np.prod(seen_shape(measurement)) / measurement.magnitude.numel() if self.inside else 0.0
        return float(self.inside * share)


def coarse_start(measurement: Measurement, count: int, generator: torch.Generator) -> Objects:
    """Start as the network's start does, but for the network: phase retrieval on the grid that it sees."""
    seen = measurement_window(measurement, seen_shape(measurement))
    objects = autocorrelation_start(seen, count, generator)
    objects = half_phased(objects, seen, COARSE_ITERATIONS, room_of(objects.support))
    # What lies outside the support is feedback, not object.
    settled = Objects.start(objects.density, objects.support)
    return objects_on(settled, tuple(measurement.magnitude.shape))


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Return what was asked for and is to be had."""
    found = []
    for name in options.contenders.split(","):
        try:
            found.append(contender(name, options))
        except WeightsError as error:
            print(f"{name}: {error}; left out", file=sys.stderr)
    return found


def contender(name: str, options: argparse.Namespace) -> Contender:
    """Return a contender by its name.

    Raises
    ------
    WeightsError
        Its weights are not to be had.
    """
    if name == "network":
        start = network_start(options.weights)
        inside = start.headway + (start.looks - 1) * CYCLE
        return Contender(name, start, True, inside, {**start.weights, "looks": start.looks})
    if name == "paper":
        if options.paper is None:
            raise WeightsError("--paper must name the published network's weights")
        card = load_weights(options.paper).card
        return Contender(name, start_from(options.paper), True, 0, {"card": card})
    classical: dict[str, Contender] = {
        "coarse": Contender(name, coarse_start, True, COARSE_ITERATIONS),
        "autocorrelation": Contender(name, autocorrelation_start),
        "random": Contender(name, random_start),
    }
    if name not in classical:
        raise SystemExit(f"--contenders takes network, paper, {', '.join(classical)}; got {name!r}")
    return classical[name]


def engine(measurement: Measurement, attempt: int = 0) -> list[Step]:
    """Return this package's search, HIO under an amplitude ceiling, on the grid that is given."""
    level, excess, _ = phasing.ATTEMPTS[attempt]
    room = excess * float(autocorrelation_support(measurement.intensity, level).sum())
    return phasing.search_recipe(max(1, int(room)))


def engine_for_real_crystals(measurement: Measurement) -> list[Step]:
    """Return the search with the second bound on the support, for autocorrelations with a halo."""
    return engine(measurement, attempt=1)


def shrink(threshold: float, sigma: float) -> Step:
    """Return the shrink-wrap by the maximum, as other programs have it (`_peers.shrink_wrap`)."""

    def step(objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        supports = [shrink_wrap(density, threshold, sigma) for density in objects.density]
        objects.support = torch.stack(supports).float()
        yield objects

    return step


def er_hio(measurement: Measurement) -> list[Step]:
    """Return 3 x (20 ER + 180 HIO) + 20 ER with a shrink-wrap every 20, as `_peers.er_hio` has it."""
    steps: list[Step] = []
    for block in range(30):
        sigma = 3 - block / 7.5 if block < 15 else max(0.5, 1 - (block - 15) / 20)
        steps += [ER(20) if block % 10 == 0 else HIO(20), shrink(0.25, sigma)]
    return [*steps, ER(20)]


def adam(measurement: Measurement) -> list[Step]:
    """Return the published refinement: Adam, rate 0.01, 1000 steps, a shrink-wrap every 50."""
    steps: list[Step] = []
    for _ in range(19):
        steps += [GradientDescent(50, loss="amplitude", rate=0.01), shrink(0.1, 1.0)]
    return [*steps, GradientDescent(50, loss="amplitude", rate=0.01)]


RECIPES: dict[str, Recipe] = {"engine": engine, "er_hio": er_hio, "adam": adam}


def without_twin_breaking(recipe: Recipe) -> Recipe:
    """Return the recipe for objects that have chosen between the twins: half of them would be cut away."""
    return lambda measurement: [step for step in recipe(measurement) if not isinstance(step, BreakTwins)]


def alone(who: Contender, cases: Sequence[Case], some: Sequence[Case], results: "Results") -> None:
    """Score a start by itself, on the whole grid and, for some cases, on the central window."""
    if who.name in ("autocorrelation", "random"):
        return
    for case in [*cases, *(case.at(SIDE // 2) for case in some)]:
        side = case.intensity.shape[0]
        key = {"section": "alone", "contender": who.name, "case": case.name, "side": side}
        if not results.has(**key):
            (row,) = score_start(who.start, [case])
            results.add({**key, **row})


def refined(who: Contender, cases: dict[str, Sequence[Case]], results: "Results") -> None:
    """Refine a start by every recipe until the crystal is found, or the recipe ends."""
    for recipe, few in cases.items():
        if recipe == "adam" and who.name in ("coarse", "random"):
            continue
        steps = without_twin_breaking(RECIPES[recipe]) if who.chosen else RECIPES[recipe]
        for case in few:
            key = {"section": "refined", "contender": who.name, "recipe": recipe, "case": case.name}
            if results.has(**key):
                continue
            points = list(follow(who.start, steps, case, every=10, beyond=0))
            work = who.work(case.measurement())
            results.add({**key, **row_of(case), **outcome(points), "inside": work})


def outcome(points: Sequence[Point]) -> Row:
    """Return whether and when a refinement found the crystal, and where it ended."""
    first = next((point for point in points if point.found), None)
    last = points[-1]
    return {
        "found": first is not None,
        "steps": None if first is None else first.step,
        "cpu_s": None if first is None else first.cpu_s,
        "steps_done": last.step,
        "cpu_s_done": last.cpu_s,
        "correlation": last.correlation,
        "chi2": last.chi2,
        "phase_rmse": None if last.score is None else last.score.phase_rmse,
        "iou": None if last.score is None else last.score.iou,
    }


def pipeline(who: Contender, cases: Sequence[Case], results: "Results") -> None:
    """Reconstruct by the package's one call, from this start."""
    if who.name not in ("network", "autocorrelation"):
        return
    for case in cases:
        key = {"section": "pipeline", "contender": who.name, "case": case.name}
        if results.has(**key):
            continue
        options = ReconstructionOptions(start=who.name, device="cpu")  # type: ignore[arg-type]
        begun = time.process_time()
        result = reconstruct(DiffractionVolume(case.intensity, case.valid), options)
        cpu_s = time.process_time() - begun
        found = quality.compare(result.density, case.truth)
        solved = bool(found.phase_rmse < 0.1 and found.iou > 0.95)
        numbers = {**asdict(found), "chi2": result.chi2, "confidence": result.confidence, "cpu_s": cpu_s}
        results.add({**key, **row_of(case), **numbers, "solved": solved})


def scan(who: Contender, path: Path, results: "Results") -> None:
    """Follow chi2 on the real scan by CPU time, and likeness to what the package makes of it."""
    if who.name == "random" or results.has(section="scan", contender=who.name):
        return
    recorded = scan_case(path, SCAN_SIDE)
    volume, _ = centre_peak(DiffractionVolume(recorded.intensity, recorded.valid))
    reference = reconstruct(volume, ReconstructionOptions(start="autocorrelation", device="cpu")).density
    case = Case("scan", "scan", "real", volume.intensity, volume.valid, reference, {})
    measurement = case.measurement()
    recipe = engine_for_real_crystals
    if who.chosen:
        recipe = without_twin_breaking(recipe)
    for seed in range(SCAN_SEEDS):
        objects, cpu_s = begin(who.start, measurement, seed)
        curve = [(0, cpu_s, scaled_chi2(objects.density[0] * objects.support[0], measurement))]
        with torch.no_grad():
            steps = timed(run(recipe(measurement), objects, measurement))
            for number, (state, took) in enumerate(steps, start=1):
                cpu_s += took
                if number % SCAN_EVERY == 0:
                    inside = state.density[0] * state.support[0]
                    curve.append((number, round(cpu_s, 4), scaled_chi2(inside, measurement)))
        final = to_centre(objects.density[0] * objects.support[0]).numpy()
        key = {"section": "scan", "contender": who.name, "case": f"seed {seed}"}
        results.add({**key, "correlation": quality.correlation(final, reference), "curve": curve})


def forward(who: Contender, results: "Results") -> None:
    """Time the start on one 64^3 measurement, one thread and two."""
    case = next(procedural_cases(1))
    measurement = case.measurement()
    for threads in (1, 2):
        key = {"section": "forward", "contender": who.name, "threads": threads}
        if results.has(**key):
            continue
        torch.set_num_threads(threads)
        generator, taken = torch.Generator().manual_seed(0), []
        for _ in range(12):
            begun = time.perf_counter()
            with torch.no_grad():
                who.start(measurement, 1, generator)
            taken.append(1e3 * (time.perf_counter() - begun))
        torch.set_num_threads(1)
        # The first calls pay for what libraries do once.
        results.add({**key, "ms": float(np.median(taken[2:])), "least_ms": min(taken)})


def curves(options: argparse.Namespace, results: "Results") -> None:
    """Keep the learning curves of training runs, thinned."""
    for given in options.curve:
        name, _, folder = given.partition("=")
        lines = read_curve(Path(folder))
        kept = lines[:: max(1, len(lines) // 60)]
        results.forget(section="curves", contender=name)
        results.add({"section": "curves", "contender": name, "case": name, "lines": kept})


class Results:
    """Rows in a JSON file that is written after each, so that a run can go on where it was stopped."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        kept = json.loads(path.read_text()) if path and path.exists() else {}
        self.contenders: dict[str, Row] = kept.get("contenders", {})
        self.rows: list[Row] = kept.get("rows", [])

    def has(self, **key: Any) -> bool:
        """Return whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def forget(self, **key: Any) -> None:
        """Drop all rows with these values."""
        self.rows = [r for r in self.rows if any(r.get(name) != value for name, value in key.items())]

    def add(self, row: Row) -> None:
        """Keep a row, and say a line of it."""
        self.rows.append({name: rounded(value) for name, value in row.items()})
        self.save()
        print(line(row), file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write what there is, if it is to be kept."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        self.path.write_text(f'{{"contenders": {json.dumps(self.contenders)},\n"rows": [\n{rows}\n]}}\n')


def rounded(value: Any) -> Any:
    """Return a value with its numbers to five digits: what a file is worth keeping."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


def line(row: Row) -> str:
    shown = ("section", "contender", "recipe", "case", "side", "threads")
    numbers = ("found", "solved", "steps", "correlation", "phase_rmse", "iou", "chi2", "cpu_s", "ms")
    parts = [str(row[name]) for name in shown if name in row]
    parts += [f"{name} {rounded(row[name])}" for name in numbers if row.get(name) is not None]
    return "  ".join(parts)


def held_out_cases(options: argparse.Namespace) -> list[Case]:
    """Return all cases; three of a class are one without trouble, one behind a gap, one with a defect."""
    if options.quick:
        return list(procedural_cases(1))
    relaxed = atomistic_cases(ATOMISTIC_SET, max(1, 4 * options.crystals // 9))
    return [*procedural_cases(options.crystals), *relaxed]


def thinned(cases: Sequence[Case], each: int, counts: Sequence[float] = COUNTS) -> list[Case]:
    """Return every so many crystals of each kind and class, with these counts only."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.kind, case.strain, case.facts["counts"]), []).append(case)
    return [case for group in groups.values() for case in group[::each] if case.facts["counts"] in counts]


def run_sections(options: argparse.Namespace, results: Results) -> None:
    """Run what is asked for and not there yet."""
    needed = {"alone", "refined", "pipeline"} & set(options.only)
    cases = held_out_cases(options) if needed else []
    # Each at the cost that it has: a step of Adam takes ten times as long as one of HIO.
    some, few = thinned(cases, 2), thinned(cases, 4)
    by_recipe = {"engine": some, "er_hio": few, "adam": thinned(cases, 9, COUNTS[-1:])}
    by_recipe = {recipe: by_recipe[recipe] for recipe in options.recipes.split(",")}
    found = contenders(options)
    for who in found:
        for section in options.only if options.again else ():
            results.forget(contender=who.name, section=section)
        results.contenders[who.name] = {**who.facts, **environment()}
        # Warm: the first call pays for what libraries do once.
        begin(who.start, next(procedural_cases(1)).measurement())
    sections: dict[str, Callable[[Contender], None]] = {
        "alone": lambda who: alone(who, cases, some, results),
        "refined": lambda who: refined(who, by_recipe, results),
        "pipeline": lambda who: pipeline(who, few, results),
    }
    path = None if options.quick else scan_file()
    if path is not None:
        sections["scan"] = lambda who: scan(who, path, results)
    # Last, so that two threads on a busy machine hold up nothing.
    sections["forward"] = lambda who: forward(who, results)
    for name, section in sections.items():
        for who in found if name in options.only else []:
            section(who)
    if "curves" in options.only:
        curves(options, results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 cases, kept nowhere")
    parser.add_argument("--render", action="store_true", help="write tables and plots of kept results")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--contenders", default="network,paper,coarse,autocorrelation,random")
    parser.add_argument("--recipes", default="", help=f"of {','.join(RECIPES)}, for the section refined")
    parser.add_argument("--again", action="store_true", help="forget kept rows of the contenders that run")
    parser.add_argument("--crystals", type=int, default=9, help="procedural crystals of each class")
    parser.add_argument("--weights", type=Path, help="the network's, instead of those that ship")
    parser.add_argument("--paper", type=Path, help="weights of the published network, from `cdinn package`")
    parser.add_argument("--curve", action="append", default=[], help="NAME=FOLDER of a training run")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "network.json")
    options = parser.parse_args()
    options.recipes = options.recipes or ("engine,er_hio" if options.quick else ",".join(RECIPES))
    options.only = options.only.split(",")
    unknown = [name for name in options.only if name not in SECTIONS]
    if unknown:
        parser.error(f"--only takes {', '.join(SECTIONS)}; got {', '.join(unknown)}")
    return options


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    results = Results(None if options.quick else options.results)
    if not options.render:
        begun = time.process_time()
        run_sections(options, results)
        print(f"{time.process_time() - begun:.0f} CPU s", file=sys.stderr)
    results.save()
    text = report(results.contenders, results.rows)
    print(text)
    if not options.quick:
        options.results.with_suffix(".md").write_text(text)
        draw(results.rows, options.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())

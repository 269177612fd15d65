"""What a reconstruction costs against the Fourier transforms in it, where the rest goes, and its memory.

    python benchmarks/engine_cost.py                    # 32^3 to 256^3, half an hour of one core
    python benchmarks/engine_cost.py --sides 32,64      # a glance
    python benchmarks/engine_cost.py --render           # the tables of what is kept

Writes results/engine_cost.json and results/engine_cost.md. Each crystal has a process of its own, one thread,
warmed up on another crystal. Counted are all transforms, of torch, SciPy and NumPy; the *floor* is the time
of as many transforms of the same sizes by torch, and of nothing else.
"""

# ruff: noqa: E402
# One thread for all libraries, before any of them starts.
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft
import torch
from _cases import Case, measured
from _report import Row, ordered, table
from phasing import environment

from bluesky_cdinn import quality
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.sim.crystal import random_crystal, sample

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "engine_cost.json"
FIRST_SEED = 96_900
COUNTS, PHASE_RANGE = 1e6, 3.0
# The oversampling of every axis: one that needs the whole grid, and one that needs an eighth of it.
SAMPLINGS = {"2.4": 2.4, "4.5": 4.5}
LIBRARIES: dict[str, ModuleType] = {"torch": torch.fft, "scipy": scipy.fft, "numpy": np.fft}
TRANSFORMS = ("fftn", "ifftn", "rfftn", "irfftn")
# (kind of transform, shape) of each transform, and how many.
Counts = Counter[tuple[str, tuple[int, ...]]]
# Crystals a side; the large ones are alike.
CRYSTALS = {32: 6, 64: 4, 128: 2}
# Of the functions that aren't transforms, how many are told.
TOLD = 8


def crystal_on(side: int, oversampling: float, seed: int) -> Case:
    """Return a crystal whose pattern is oversampled alike along each axis, on ``side`` voxels."""
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng, 100.0, PHASE_RANGE)
    voxels_nm = np.ptp(crystal.body.vertices(), axis=0) * oversampling / side
    placed = replace(crystal, body=crystal.body.moved(rng.uniform(-0.5, 0.5, 3) * voxels_nm))
    density = sample(placed, np.diag(voxels_nm), (side,) * 3)
    return measured(Case(f"{side}-{seed}", "", np.zeros(0), np.zeros(0, bool), density), COUNTS, rng)


@contextmanager
def counted() -> Iterator[Counts]:
    """Count all transforms that are done inside, one for each volume of a batch."""
    counts: Counts = Counter()
    kept = {(library, name): getattr(library, name) for library in LIBRARIES.values() for name in TRANSFORMS}

    def counting(name: str, transform: Callable[..., Any]) -> Callable[..., Any]:
        def count(array: Any, *args: Any, **keywords: Any) -> Any:
            result = transform(array, *args, **keywords)
            # The real side's shape.
            shape = tuple((result if name == "irfftn" else array).shape)
            # Those of planes and lines cost next to nothing.
            if len(shape) >= 3:
                counts[name, shape[-3:]] += int(np.prod(shape[:-3], dtype=int))
            return result

        return count

    for (library, name), transform in kept.items():
        setattr(library, name, counting(name, transform))
    try:
        yield counts
    finally:
        for (library, name), transform in kept.items():
            setattr(library, name, transform)


def transform_s(name: str, shape: Sequence[int]) -> float:
    """Return the CPU time of one transform of single precision by torch, s: the median of several."""
    real = torch.randn(*shape)
    arguments: dict[str, Any] = {}
    array = real if name == "rfftn" else torch.complex(real, real)
    if name == "irfftn":
        array, arguments = torch.fft.rfftn(real), {"s": tuple(shape)}
    transform, times = getattr(torch.fft, name), []
    for _ in range(9 if real.numel() > 1e6 else 41):
        begun = time.process_time()
        transform(array, dim=(-3, -2, -1), **arguments)
        times.append(time.process_time() - begun)
    return float(np.median(times[1:]))


def memory_bytes(field: str) -> int:
    """Return what the kernel says of this process: VmRSS, now, or VmHWM, the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status says no {field}: memory is measured on Linux alone")


def forget_peak() -> None:
    """Let the most memory begin anew with what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def others(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Return the functions in which a call's CPU time goes, transforms aside, each with its share."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(call)
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent = {key: own for key, (_, _, own, _, _) in stats.items() if "fft" not in key[2]}
    total = sum(own for _, _, own, _, _ in stats.values())
    most = sorted(spent.items(), key=lambda item: -item[1])[:TOLD]
    return [(_name(*key), own / total) for key, own in most]


def _name(path: str, _: int, function: str) -> str:
    return function.strip("<>") if path == "~" else f"{Path(path).stem}.{function}"


def measure(path: Path) -> Row:
    """Return what the reconstruction of one stored pattern costs."""
    torch.set_num_threads(1)
    options = ReconstructionOptions(seed=1, device="cpu")
    small = crystal_on(32, 2.4, FIRST_SEED - 1)
    reconstruct(DiffractionVolume(small.intensity, small.valid), options)
    forget_peak()
    before = memory_bytes("VmRSS")
    with np.load(path) as stored:
        intensity, truth = stored["intensity"], stored.get("truth")
    volume = DiffractionVolume(intensity, np.ones(intensity.shape, bool))
    with counted() as counts:
        begun = time.process_time()
        result = reconstruct(volume, options)
        cpu_s = time.process_time() - begun
    peak = memory_bytes("VmHWM") - before
    times = {key: transform_s(*key) for key in counts}
    profiled = others(lambda: reconstruct(volume, options)) if intensity.size <= 128**3 else []
    found = None if truth is None else quality.compare(result.density, truth)
    return {
        "shape": list(intensity.shape),
        "working_shape": result.parameters["working_shape"],
        "levels": result.parameters["levels"],
        "found_from": result.parameters["found_from"],
        "fft_ms": 1e3 * transform_s("fftn", intensity.shape),
        "cpu_s": cpu_s,
        "floor_s": sum(counts[key] * took for key, took in times.items()),
        "transforms": [[*key[1], key[0], counts[key], times[key]] for key in counts],
        "stages_s": result.timings_s,
        "others": profiled,
        "peak_volumes": peak / (8 * intensity.size),
        "phase_rmse": None if found is None else found.phase_rmse,
        "iou": None if found is None else found.iou,
        "confidence": result.confidence,
    }


def rows_of(side: int, sampling: str, crystals: int) -> Iterator[Row]:
    """Yield what crystals cost, each in a process of its own."""
    for number in range(crystals):
        case = crystal_on(side, SAMPLINGS[sampling], FIRST_SEED + number)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "case.npz"
            assert case.truth is not None
            # The comparison would take more memory than what it compares.
            truth = {"truth": case.truth} if side <= 128 else {}
            np.savez(path, intensity=case.intensity, **truth)
            command = [sys.executable, str(Path(__file__)), "--one", str(path)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield {"side": side, "oversampling": sampling, "seed": FIRST_SEED + number, **json.loads(answer)}


def transforms_in(row: Row) -> float:
    """Return how many complex transforms of the whole grid those of a row have the voxels of."""
    halves = {"fftn": 1.0, "ifftn": 1.0, "rfftn": 0.5, "irfftn": 0.5}
    voxels = sum(n0 * n1 * n2 * halves[name] * count for n0, n1, n2, name, count, _ in row["transforms"])
    return voxels / np.prod(row["shape"])


def cost_table(rows: Sequence[Row]) -> str:
    """Return time against the floor, side by side."""
    head = ("grid", "oversampling", "crystals", "one FFT, ms", "transforms", "as many of the whole grid")
    head += (
        "CPU s",
        "floor, s",
        "times the floor",
        "times one FFT",
        "memory, complex volumes",
        "phase RMSE, rad",
    )
    body = []
    for (side, sampling), group in _groups(rows):
        mean = {key: float(np.mean([row[key] for row in group])) for key in ("fft_ms", "cpu_s", "floor_s")}
        number = np.mean([sum(count for *_, count, _ in row["transforms"]) for row in group])
        error = [row["phase_rmse"] for row in group if row["phase_rmse"] is not None]
        body.append(
            [
                f"{side}³",
                sampling,
                str(len(group)),
                f"{mean['fft_ms']:.2f}",
                f"{number:.0f}",
                f"{np.mean([transforms_in(row) for row in group]):.0f}",
                f"{mean['cpu_s']:.2f}",
                f"{mean['floor_s']:.2f}",
                f"{mean['cpu_s'] / mean['floor_s']:.2f}",
                f"{1e3 * mean['cpu_s'] / mean['fft_ms']:.0f}",
                f"{max(row['peak_volumes'] for row in group):.1f}" if side >= 256 else "-",
                f"{np.median(error):.3f}" if error else "-",
            ]
        )
    return table(head, body)


def stage_table(rows: Sequence[Row]) -> str:
    """Return the share of each stage in the time."""
    names = list(dict.fromkeys(name for row in rows for name in row["stages_s"]))
    body = []
    for (side, sampling), group in _groups(rows):
        whole = sum(sum(row["stages_s"].values()) for row in group)
        shares = [sum(row["stages_s"].get(name, 0.0) for row in group) / whole for name in names]
        body.append([f"{side}³, {sampling}", *(f"{share:.0%}" for share in shares)])
    return table(("grid, oversampling", *names), body)


def other_table(rows: Sequence[Row]) -> str:
    """Return what takes most time beside the transforms."""
    body = []
    for (side, sampling), group in _groups([row for row in rows if row["others"]]):
        shares: Counter[str] = Counter()
        for row in group:
            shares.update({name: share / len(group) for name, share in row["others"]})
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares.most_common(TOLD))
        body.append([f"{side}³, {sampling}", told])
    return table(("grid, oversampling", "share of the CPU time, under the profiler"), body)


def _groups(rows: Sequence[Row]) -> list[tuple[tuple[int, str], list[Row]]]:
    keyed = [{**row, "key": (row["side"], row["oversampling"])} for row in rows]
    return [(group[0]["key"], group) for _, group in ordered(keyed, "key")]


def report(kept: Row) -> str:
    """Return all tables as Markdown."""
    sections = {
        "Time against the floor": cost_table(kept["rows"]),
        "Stages, share of the wall time": stage_table(kept["rows"]),
        "The most beside the transforms": other_table(kept["rows"]),
    }
    where = kept["environment"]
    text = "\n".join(f"### {title}\n\n{body}" for title, body in sections.items())
    return (
        f"{text}\n{where['cpu']}, one thread, torch {where['torch']}, {where['date']}, {where['commit']}.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", default="32,64,128,256", help="of the grids, comma-separated")
    parser.add_argument("--samplings", default=",".join(SAMPLINGS), help="times oversampled")
    parser.add_argument("--crystals", type=int, default=None, help="of each; 1 to 6 by side where not given")
    parser.add_argument("--render", action="store_true", help="write the tables of what is kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return 0
    if options.render:
        kept = json.loads(options.results.read_text())
    else:
        kept = {"environment": environment(), "rows": []}
        for side in map(int, options.sides.split(",")):
            for sampling in options.samplings.split(","):
                for row in rows_of(side, sampling, options.crystals or CRYSTALS.get(side, 1)):
                    kept["rows"].append(row)
                    options.results.write_text(json.dumps(kept, indent=1) + "\n")
                    print(side, sampling, f"{row['cpu_s']:.2f} s", f"{row['peak_volumes']:.1f} volumes",
                          file=sys.stderr, flush=True)  # fmt: skip
    text = report(kept)
    print(text)
    options.results.with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What following scans costs the RunEngine, and how soon after a scan's end its crystal is there.

    python benchmarks/live.py                        # all three parts, about 10 minutes
    python benchmarks/live.py --parts latency        # one of: rate, latency, memory
    python benchmarks/live.py --rounds 3 --scans 20  # a glance

rate: points a second of a rocking scan with the live callback against the same scan without any, in turns,
for frames in events and in an HDF5 stream, as fast as the devices go and at 20 ms a point; and the CPU time
that the session's process spends beside the RunEngine's thread, which other load blurs less. latency: from
the raw stop document to the result, and to both runs in Tiled, with and without updates during the scan.
memory: the RunEngine's process over a series of short scans. The tables go to results/live.md,
where those of other parts stay.
"""

# ruff: noqa: E402
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import gc
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _report import table
from bluesky import RunEngine

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.plans import rocking_scan
from bluesky_cdinn.settings import LiveSettings, ReconstructionOptions, Settings, TiledSettings
from bluesky_cdinn.sim.area_detector import SimulatedAreaDetector
from bluesky_cdinn.sim.delivery import DeliveryName
from bluesky_cdinn.sim.detector_effects import random_detector
from bluesky_cdinn.sim.devices import gold_geometry, simulated_beamline
from bluesky_cdinn.sim.stage import RockingStage
from bluesky_cdinn.worker import ReconstructionWorker

TABLES = Path(__file__).resolve().parent / "results" / "live.md"
HALF_RANGE_DEG = 0.3


class KnownFrames:
    """A detector's source whose frames cost nothing: a bright spot that comes and goes with the angle."""

    def __init__(self, points: int, side: int) -> None:
        self.geometry = gold_geometry((side, side))
        self.shape, self.dtype = (side, side), np.dtype(np.uint16)
        angle = np.linspace(-3, 3, points)[:, None, None]
        row, column = np.ogrid[-6 : 6 : side * 1j, -6 : 6 : side * 1j]
        mean = 2e3 * np.sinc(angle) ** 2 * np.sinc(row) ** 2 * np.sinc(column) ** 2
        self._frames = np.random.default_rng(0).poisson(mean).astype(np.uint16)

    def frame(self, angle_deg: float, count_time_s: float) -> np.ndarray:
        """Return the frame at an angle."""
        place = (angle_deg + HALF_RANGE_DEG) / (2 * HALF_RANGE_DEG) * (len(self._frames) - 1)
        # A detector gives another array each time.
        return self._frames[int(np.clip(np.rint(place), 0, len(self._frames) - 1))].copy()


@contextmanager
def catalog(folder: Path, **live: Any) -> Iterator[Catalog]:
    """Open a catalog on an embedded server of its own."""
    tiled = TiledSettings(directory=folder / "tiled", readable_storage=(folder,))
    settings = Settings(tiled=tiled, spool=folder / "spool", live=LiveSettings(**live))
    with Catalog(settings) as opened:
        yield opened


def scan_cost(
    source: KnownFrames, points: int, delivery: DeliveryName, exposure_s: float, folder: Path, callback: Any
) -> tuple[float, float]:
    """Return points a second, and CPU time beside the RunEngine's thread, ms a point; from start to stop."""
    theta = RockingStage(name="theta", time_scale=0.0)
    det = SimulatedAreaDetector(
        name="det",
        source=source,
        stage=theta,
        delivery=delivery,
        directory=folder,
        count_time_s=exposure_s or 1.0,
        time_scale=1.0 if exposure_s else 0.0,
    )
    engine = RunEngine({})
    if callback is not None:
        engine.subscribe(callback)
    times: dict[str, tuple[float, float]] = {}

    def look(name: str, _: Any) -> None:
        times.setdefault(name, (time.perf_counter(), time.process_time() - time.thread_time()))

    engine.subscribe(look)
    engine(rocking_scan(det, theta, -HALF_RANGE_DEG, HALF_RANGE_DEG, points))
    (began, beside), (ended, beside_then) = times["start"], times["stop"]
    return points / (ended - began), 1e3 * (beside_then - beside) / points


def rate_rows(points: int, side: int, rounds: int, folder: Path) -> list[list[str]]:
    """Compare scans with the callback and without, in turns, so that both meet the same machine."""
    rows = []
    source = KnownFrames(points, side)
    with catalog(folder) as opened, LiveReconstruction(opened) as live:
        live.worker.start()
        for delivery in ("event", "stream"):
            for exposure_s in (0.0, 0.02):

                def scan(callback: Any, delivery=delivery, exposure_s=exposure_s) -> tuple[float, float]:
                    cost = scan_cost(source, points, delivery, exposure_s, folder, callback)
                    # The next one must not meet the last one's reconstruction, or its way into Tiled.
                    live.wait()
                    opened.flush(120)
                    return cost

                scan(live)
                pairs = [
                    (scan(None), scan(live)) if turn % 2 else (scan(live), scan(None))[::-1]
                    for turn in range(rounds)
                ]
                ratios = sorted(with_it[0] / without[0] for without, with_it in pairs)
                without, with_it = (np.median(costs, axis=0) for costs in zip(*pairs, strict=True))
                pace = f"{1e3 * exposure_s:g} ms a point" if exposure_s else "as fast as it goes"
                figures = [f"{without[0]:.1f}", f"{with_it[0]:.1f}", f"{statistics.median(ratios):.3f}"]
                spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
                beside = [f"{without[1]:.2f}", f"{with_it[1]:.2f}"]
                rows.append([f"{delivery}, {pace}", *figures, spread, *beside])
                print(*rows[-1], sep="  ", flush=True)
    return rows


def latencies(opened: Catalog, live: LiveReconstruction, seed: int) -> tuple[float, float, int]:
    """Return the time from the stop document to the result, and to Tiled, s; and the number of updates."""
    side = 64
    det, theta = simulated_beamline(
        detector=random_detector(np.random.default_rng(seed), (side, side), gap=False),
        seed=seed,
        time_scale=0.25,
    )
    stopped: list[float] = []
    engine = RunEngine({}, call_returns_result=True)
    engine.subscribe(lambda *_: stopped.append(time.perf_counter()), "stop")
    engine.subscribe(opened.raw_writer())
    engine.subscribe(live)

    plan = rocking_scan(det, theta, -HALF_RANGE_DEG, HALF_RANGE_DEG, 64)
    raw_uid = engine(plan).plan_result
    summary = live.result(raw_uid).result()
    result_s = time.perf_counter() - stopped[0]
    if not opened.flush(120):
        raise SystemExit("Tiled didn't take the runs")
    stored_s = time.perf_counter() - stopped[0]
    if not summary.success:
        raise SystemExit(f"the reconstruction failed: {summary.reason}")
    return result_s, stored_s, len(opened.partials(raw_uid))


def latency_rows(scans: int, folder: Path) -> list[list[str]]:
    """Measure the wait for the crystal, with updates during the scan and without, in turns."""
    found: dict[bool, list[tuple[float, float, int]]] = {True: [], False: []}
    with (
        catalog(folder, updates=True) as following,
        LiveReconstruction(following) as live,
        catalog(folder, updates=False) as leaving,
        LiveReconstruction(leaving) as late,
    ):
        for opened, callback in ((following, live), (leaving, late)):
            latencies(opened, callback, 0)
        for seed in range(1, scans + 1):
            for updates, opened, callback in ((True, following, live), (False, leaving, late)):
                found[updates].append(latencies(opened, callback, seed))
                print("updates" if updates else "none", *found[updates][-1], flush=True)
    rows = []
    for updates, measured in found.items():
        results, stored, partials = zip(*measured, strict=True)
        rows.append(
            [
                "updates during the scan" if updates else "only at the end",
                f"{statistics.median(results):.2f}",
                f"{max(results):.2f}",
                f"{statistics.median(stored):.2f}",
                f"{max(stored):.2f}",
                f"{statistics.median(partials):g}",
            ]
        )
    return rows


def memory_rows(scans: int, folder: Path) -> list[list[str]]:
    """Watch the RunEngine's process over a series of scans, whose crystals are not worth waiting for."""
    source = KnownFrames(16, 64)
    process = psutil.Process()
    rows = []
    quick = ReconstructionOptions(starts=1, refine=False)
    with (
        catalog(folder, interval_s=0.1) as opened,
        ReconstructionWorker(options=quick) as worker,
        LiveReconstruction(opened, worker=worker) as live,
    ):
        theta = RockingStage(name="theta", time_scale=0.0)
        det = SimulatedAreaDetector(name="det", source=source, stage=theta, time_scale=0.0)
        engine = RunEngine({}, call_returns_result=True)
        engine.subscribe(opened.raw_writer())
        engine.subscribe(live)
        watched = sorted({1, 10, scans // 4, scans // 2, scans})
        for scan in range(1, scans + 1):
            plan = rocking_scan(det, theta, -HALF_RANGE_DEG, HALF_RANGE_DEG, 16)
            live.result(engine(plan).plan_result).result()
            if scan in watched:
                opened.flush(60)
                gc.collect()
                held = process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()
                rows.append([f"after {scan}", f"{held[0]:.0f}", str(held[1]), str(held[2])])
                print(*rows[-1], sep="  ", flush=True)
    return rows


PARTS: dict[str, tuple[str, list[str]]] = {
    "rate": (
        "Points a second, {points} points of {side} x {side} uint16, medians of {rounds} pairs of scans",
        ["frames by", "without", "with", "ratio", "range", "CPU ms a point beside, without", "with"],
    ),
    "latency": (
        "From the raw stop document, 64 points of 64 x 64, 0.25 s each, {latencies} crystals, s",
        ["", "result, median", "worst", "in Tiled, median", "worst", "updates"],
    ),
    "memory": (
        "The RunEngine's process over {scans} scans of 16 points of 64 x 64",
        ["", "MB", "files", "threads"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of scans of the rate")
    parser.add_argument("--latencies", type=int, default=6, help="crystals of the latency")
    parser.add_argument("--scans", type=int, default=200, help="of the memory")
    args = parser.parse_args()
    run: dict[str, Callable[[Path], list[list[str]]]] = {
        "rate": lambda folder: rate_rows(args.points, args.side, args.rounds, folder),
        "latency": lambda folder: latency_rows(args.latencies, folder),
        "memory": lambda folder: memory_rows(args.scans, folder),
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n"
    written = []
    for part in args.parts:
        title, head = PARTS[part]
        with tempfile.TemporaryDirectory() as folder:
            rows = run[part](Path(folder))
        written.append(f"{title.format(**vars(args))}\n\n{table(head, rows)}")
    written += [
        section for section in sections() if not section.startswith(tuple(map(beginning, args.parts)))
    ]
    TABLES.write_text("\n## ".join([f"# What following a scan costs\n\n{machine}", *written]))
    print(TABLES.read_text())


def sections() -> list[str]:
    """Return what the file of results holds, a part each."""
    return [section.rstrip() + "\n" for section in TABLES.read_text().split("\n## ")[1:]]


def beginning(part: str) -> str:
    """Return how a part's title begins, whatever it was measured on."""
    return PARTS[part][0].partition("{")[0].partition(",")[0]


if __name__ == "__main__":
    main()

"""How a backfill scales from one process to two, and what it costs to decide what is to be done.

    python benchmarks/backfill.py [--scans 12] [--side 64] [--rounds 3] [--listed 1000] [--processes 2]

Start documents without data are stored, and a plan of all of them is made. Then simulated scans, cubes of
``--side``, are stored in an embedded Tiled server and reconstructed again and again, by one and by several
processes in turn, from the same seed in each round. Time counts from the first order given out to the last
result in Tiled, with the processes up and torch loaded in each.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _cases import crystal_case
from event_model import compose_run

from bluesky_cdinn.backfill import Wanted, plan
from bluesky_cdinn.backfill_campaign import Campaign
from bluesky_cdinn.backfill_dask import by_dask, local_cluster
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.settings import ReconstructionOptions, Settings, TiledSettings
from bluesky_cdinn.staleness import Standard

MOMENT = 1_700_000_000.0
FIRST_SEED = 95_000


def scan_documents(number: int, side: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the documents of one simulated scan, frames in its events."""
    frames = crystal_case("", "", FIRST_SEED + number, 2.0, side=side).intensity.astype(np.int32)
    metadata = {"purpose": "rocking_curve", "cdi": {"detector": "det", "rocking_motor": "theta"}}
    run = compose_run(metadata={**metadata, "scan_id": number}, validate=False)
    yield "start", dict(run.start_doc)
    shape = list(frames.shape[1:])
    keys = {
        "det": {"source": "x", "dtype": "array", "shape": shape, "dtype_numpy": frames.dtype.str},
        "theta": {"source": "x", "dtype": "number", "shape": [], "units": "deg"},
    }
    owners = {"det": ["det"], "theta": ["theta"]}
    stream = run.compose_descriptor(name="primary", data_keys=keys, object_keys=owners, validate=False)
    yield "descriptor", dict(stream.descriptor_doc)
    for index, frame in enumerate(frames):
        data = {"det": frame, "theta": 0.005 * index}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
        yield "event", dict(event)
    yield "stop", dict(run.compose_stop(validate=False))


@dataclass(frozen=True)
class Measured:
    """One campaign: seconds in all, of a scan, of CPU a scan, and a process's memory in MB early and late.

    The CPU time is that of the processes that reconstruct; and that of the rest, the campaign and the Tiled
    server, which is one for all of them.
    """

    seconds: float
    scan_s: float
    workers_cpu_s: float
    rest_cpu_s: float
    early_mb: float
    late_mb: float


def measured(settings: Settings, processes: int) -> Measured:
    """Reconstruct all scans."""
    standard = Standard(settings.reconstruction)
    with Catalog(settings) as catalog, local_cluster(settings, processes) as client:
        client.run(import_module, "bluesky_cdinn.pipeline")
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        todo = plan(catalog, Wanted(), standard)
        everything = [psutil.Process(), *psutil.Process().children(recursive=True)]
        began, cpu, workers_cpu = time.monotonic(), cpu_s(everything), cpu_s(workers)
        seconds, memory = [], []
        with Campaign(catalog, todo.orders, standard, lambda: False) as campaign:
            for outcome in by_dask(client, campaign):
                assert outcome.status == "success", outcome
                seconds.append(outcome.seconds)
                memory.append(max(worker.memory_info().rss for worker in workers) / 1e6)
        took, computing = time.monotonic() - began, cpu_s(workers) - workers_cpu
        rest = cpu_s(everything) - cpu - computing
    assert len(seconds) == len(todo.orders)
    median = statistics.median(seconds)
    early, late = memory[len(memory) // 3], memory[-1]
    return Measured(took, median, computing / len(seconds), rest / len(seconds), early, late)


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU time of processes: the campaign's, its workers', the Tiled server's."""
    times = [process.cpu_times() for process in processes]
    return sum(spent.user + spent.system for spent in times)


def scaling(settings: Settings, scans: int, side: int, rounds: int, processes: int) -> None:
    with Catalog(settings) as catalog:
        write = catalog.raw_writer()
        for number in range(scans):
            for name, document in scan_documents(number, side):
                write(name, document)
        catalog.flush()
    print(f"{scans} scans of {side}^3, {os.cpu_count()} cores, one thread a process")
    headings = ["round", "processes", "s", "a scan, s", "its CPU, s", "the rest's", "load"]
    print("".join(f"{heading:>14}" for heading in (*headings, "early MB", "late MB")))
    ratios = []
    for number in range(rounds):
        took = {}
        # The order turns, so that what was cached the first time favours neither.
        for count in (1, processes) if number % 2 == 0 else (processes, 1):
            options = ReconstructionOptions(device="cpu", seed=number)
            tiled = settings.tiled.model_copy(update={"processed": f"round-{number}-by-{count}"})
            one = measured(settings.model_copy(update={"reconstruction": options, "tiled": tiled}), count)
            took[count] = one.seconds
            cpu = (one.workers_cpu_s, one.rest_cpu_s)
            numbers = (one.seconds, one.scan_s, *cpu, os.getloadavg()[0], one.early_mb, one.late_mb)
            row = f"{number + 1:>14}{count:>14}" + "".join(f"{value:>14.1f}" for value in numbers)
            print(row, flush=True)
        ratios.append(took[1] / took[processes])
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{processes} processes against 1: {statistics.median(ratios):.2f} times as fast (each: {shown})")


def listing(settings: Settings, runs: int) -> None:
    tiled = settings.tiled.model_copy(update={"raw": "listed/raw", "processed": "listed/processed"})
    with Catalog(settings.model_copy(update={"tiled": tiled})) as catalog:
        raw, processed = plain_client(catalog.raw), plain_client(catalog.processed)
        stop = {"exit_status": "success"}
        for i in range(runs):
            start = {"uid": f"raw-{i}", "time": MOMENT + i, "purpose": "rocking_curve", "args": [*range(100)]}
            raw.create_container(start["uid"], metadata={"start": start, "stop": stop})
            if i % 2:
                begun = {"uid": f"made-{i}", "raw_uid": f"raw-{i}", "time": MOMENT + i, "status": "success"}
                begun |= {"purpose": "reconstruction", "history": [{"step": "crop"}] * 20}
                processed.create_container(begun["uid"], metadata={"start": begun, "stop": stop})
        requests = counted(catalog.raw.context.http_client)
        began = time.monotonic()
        found = plan(catalog, Wanted(), Standard())
        took = time.monotonic() - began
        assert len(found.orders) == runs - runs // 2
        print(f"{runs} scans, half of them reconstructed: planned by {requests()} requests in {took:.2f} s")


def counted(client: Any) -> Callable[[], int]:
    """Count the requests that a client makes from now on."""
    made: list[Any] = []
    client.event_hooks["request"].append(made.append)
    return lambda: len(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--listed", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(tiled=TiledSettings(directory=home / "tiled"), spool=home / "spool")
        # One server for all: those of the campaigns find it.
        with Catalog(settings) as holder:
            holder.start()
            listing(settings, args.listed)
            scaling(settings, args.scans, args.side, args.rounds, args.processes)


if __name__ == "__main__":
    main()

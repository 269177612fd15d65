"""How a backfill scales from one process to two, and what it costs to decide what is to be done.

    python benchmarks/backfill.py [--scans 12] [--side 64] [--blurred] [--rounds 3] [--processes 2]

Start documents without data are stored, and a plan of all of them is made. Then simulated scans, cubes of
``--side``, are stored in an embedded Tiled server and reconstructed again and again, by one and by several
processes in turn, from the same seed in each round. Time counts from the first order given out to the last
result in Tiled, with the processes up and torch loaded in each. Give a multiple of the processes' number of
scans: the last one of an odd number leaves the others idle.

"busy" is the CPU time that all of it took, of what the cores had to give: what is missing is waiting, or
other work on the machine, which "others" tells. The last line says what CPU time alone would give: a scan's
with one process, one after the other, against a scan's with several, shared by the cores.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _cases import crystal_case, partly_coherent
from event_model import compose_run

from bluesky_cdinn.backfill import Wanted, plan
from bluesky_cdinn.backfill_campaign import Campaign
from bluesky_cdinn.backfill_dask import by_dask, local_cluster
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.embedded import SERVER_FILE
from bluesky_cdinn.settings import ReconstructionOptions, Settings, TiledSettings
from bluesky_cdinn.staleness import Standard

MOMENT = 1_700_000_000.0
FIRST_SEED = 95_000
Documents = Iterator[tuple[str, dict[str, Any]]]


def scan_documents(number: int, side: int, blurred: bool) -> Documents:
    """Yield the documents of one simulated scan, frames in its events."""
    crystal = crystal_case("", "", FIRST_SEED + number, 2.0, side=side)
    frames = (partly_coherent(crystal) if blurred else crystal).intensity.astype(np.int32)
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

    The CPU time is that of the processes that reconstruct; of the Tiled server, which is one for all of them;
    and of the rest, which gives the orders out. ``busy`` and ``others`` are shares of all cores.
    """

    seconds: float
    scan_s: float
    workers_cpu_s: float
    server_cpu_s: float
    rest_cpu_s: float
    requests: float
    busy: float
    others: float
    early_mb: float
    late_mb: float

    @property
    def cpu_s(self) -> float:
        """CPU time of one scan, everybody's."""
        return self.workers_cpu_s + self.server_cpu_s + self.rest_cpu_s


def measured(settings: Settings, processes: int, server: psutil.Process) -> Measured:
    """Reconstruct all scans."""
    standard = Standard(settings.reconstruction)
    with Catalog(settings) as catalog, local_cluster(settings, processes) as client:
        client.run(import_module, "bluesky_cdinn.pipeline")
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        todo = plan(catalog, Wanted(), standard)
        family = psutil.Process().children(recursive=True)
        known = {server.pid, *(worker.pid for worker in workers)}
        rest = [psutil.Process(), *(process for process in family if process.pid not in known)]
        groups = (workers, [server], rest)
        served = requests_served(settings)
        began, cpu, machine = time.monotonic(), [*map(cpu_s, groups)], machine_busy_s()
        seconds, memory = [], []
        with Campaign(catalog, todo.orders, standard, lambda: False) as campaign:
            for outcome in by_dask(client, campaign):
                assert outcome.status == "success", outcome
                seconds.append(outcome.seconds)
                memory.append(max(worker.memory_info().rss for worker in workers) / 1e6)
        took = time.monotonic() - began
        spent = [after - before for after, before in zip(map(cpu_s, groups), cpu, strict=True)]
        cores_s = took * (os.cpu_count() or 1)
        others = (machine_busy_s() - machine - sum(spent)) / cores_s
        served = requests_served(settings) - served
    scans = len(seconds)
    assert scans == len(todo.orders)
    workers_cpu_s, server_cpu_s, rest_cpu_s = (group / scans for group in spent)
    return Measured(
        took,
        statistics.median(seconds),
        workers_cpu_s,
        server_cpu_s,
        rest_cpu_s,
        served / scans,
        sum(spent) / cores_s,
        others,
        memory[scans // 3],
        memory[-1],
    )


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU time that processes have taken."""
    times = [process.cpu_times() for process in processes]
    return sum(spent.user + spent.system for spent in times)


def machine_busy_s() -> float:
    """Return the CPU time that everybody on this machine has taken."""
    spent = psutil.cpu_times()
    return spent.user + spent.nice + spent.system


def requests_served(settings: Settings) -> int:
    """Return how many requests the embedded server's log tells of."""
    with (settings.tiled.directory / "access.log").open() as lines:
        return sum(1 for _ in lines)


def scaling(settings: Settings, stored: Iterable[Documents], rounds: int, processes: int) -> None:
    with Catalog(settings) as catalog:
        write = catalog.raw_writer()
        for documents in stored:
            for name, document in documents:
                write(name, document)
        catalog.flush()
    headings = ["round", "processes", "s", "a scan, s", "its CPU, s", "server's", "the rest's", "requests"]
    print("".join(f"{heading:>11}" for heading in (*headings, "busy", "others", "early MB", "late MB")))
    server = psutil.Process(json.loads((settings.tiled.directory / SERVER_FILE).read_text())["pid"])
    ratios, bounds = [], []
    for number in range(rounds):
        took: dict[int, Measured] = {}
        # The order turns, so that what was cached the first time favours neither.
        for count in (1, processes) if number % 2 == 0 else (processes, 1):
            options = ReconstructionOptions(device="cpu", seed=number)
            tiled = settings.tiled.model_copy(update={"processed": f"round-{number}-by-{count}"})
            own = settings.model_copy(update={"reconstruction": options, "tiled": tiled})
            one = took[count] = measured(own, count, server)
            times = (one.seconds, one.scan_s, one.workers_cpu_s, one.server_cpu_s, one.rest_cpu_s)
            row = f"{number + 1:>11}{count:>11}" + "".join(f"{value:>11.2f}" for value in times)
            row += f"{one.requests:>11.0f}{one.busy:>11.0%}{one.others:>11.0%}"
            print(f"{row}{one.early_mb:>11.0f}{one.late_mb:>11.0f}", flush=True)
        ratios.append(took[1].seconds / took[processes].seconds)
        cores = min(os.cpu_count() or 1, processes)
        bounds.append(cores * took[1].cpu_s / took[processes].cpu_s)
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{processes} processes against 1: {statistics.median(ratios):.2f} times as fast (each: {shown})")
    print(f"by CPU time alone, had nobody ever waited: {statistics.median(bounds):.2f} times")


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
    parser.add_argument("--blurred", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(tiled=TiledSettings(directory=home / "tiled"), spool=home / "spool")
        # One server for all, there before those of the campaigns look for it.
        with Catalog(settings) as holder:
            print(f"served at {holder.uri}")
            listing(settings, args.listed)
            kind = "partly coherent " if args.blurred else ""
            print(f"{args.scans} {kind}scans of {args.side}^3, {os.cpu_count()} cores, one thread a process")
            scans = (scan_documents(number, args.side, args.blurred) for number in range(args.scans))
            scaling(settings, scans, args.rounds, args.processes)


if __name__ == "__main__":
    main()

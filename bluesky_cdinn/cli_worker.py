"""The command line's part of reconstruction on another machine: `cdinn worker` and `cdinn status`."""

import logging
import signal
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from bluesky_cdinn import cli_options as options
from bluesky_cdinn.cli_options import AsJson, Directory, choose, faults, settings
from bluesky_cdinn.errors import InvalidInput, NotFound
from bluesky_cdinn.settings import RemoteSettings, Settings
from bluesky_cdinn.terminal import answering, moment, print_table, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bluesky_cdinn.health import Health

app = typer.Typer()


@app.command()
def worker(
    name: Annotated[
        str | None, typer.Option(help="Tells it from others; by default this machine's and a number.")
    ] = None,
    follow: Annotated[
        str | None,
        typer.Option(help="Where documents come from: tcp://host:port, or kafka://host:port/topic."),
    ] = None,
    allow_network: Annotated[
        bool | None, typer.Option("--allow-network", help="Documents may come from another machine.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics there.")
    ] = None,
    shape: options.Shape = None,
    start: options.StartAt = None,
    weights: options.Weights = None,
    refine: options.Refine = None,
    starts: options.Starts = None,
    seed: options.Seed = None,
    device: options.Device = None,
    threads: options.Threads = None,
    directory: Directory = None,
) -> None:
    """Follow documents, reconstruct rocking scans, write them into Tiled; until interrupted.

    Several workers share the scans. SIGTERM or Ctrl-C ends what has begun first, a second one at once.
    """
    with answering(False):
        chosen = choose(settings(directory), max_shape=shape, start=start, weights=weights, refine=refine,
                        starts=starts, seed=seed, device=device, threads=threads)  # fmt: skip
        chosen = _remote(chosen, follow=follow, allow_network=allow_network, metrics_port=metrics_port)
        work(chosen, name)


@app.command()
def status(
    forget: Annotated[
        str | None, typer.Option(metavar="NAME", help="Forget a worker that won't come back.")
    ] = None,
    retry: Annotated[
        str | None, typer.Option(metavar="UID", help="Have a scan tried again that workers died of.")
    ] = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Say how the workers are, what they do and what waits. Exit code 1: something needs a person."""
    from bluesky_cdinn.health import examine, troubles

    with answering(as_json) as answer:
        chosen = settings(directory)
        if forget is not None:
            _forget(chosen, forget)
        if retry is not None:
            _retry(chosen, retry)
        health = examine(chosen)
        wrong = troubles(health)
        answer |= {"ok": not wrong, "troubles": wrong, **asdict(health), "silent": sorted(health.silent)}
        if not as_json:
            _print(health, wrong)
    if wrong:
        raise typer.Exit(1)


def work(chosen: Settings, name: str | None, entry: str | None = None) -> None:
    """Be a worker until a signal ends it; `entry` as for `bluesky_cdinn.worker.ReconstructionWorker`.

    Raises
    ------
    InvalidInput
        The settings don't let it work.
    """
    from bluesky_cdinn.remote_worker import RemoteWorker
    from bluesky_cdinn.worker import ENTRY

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # It would write a line for each heartbeat.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        remote = RemoteWorker(chosen, name, entry=entry or ENTRY)
        with _stopped_by_signals(remote.stop):
            remote.run()
    except OSError as error:
        raise InvalidInput(f"the worker can't go on: {error}") from error


def _remote(chosen: Settings, **given: Any) -> Settings:
    changed = {key: value for key, value in given.items() if value is not None}
    try:
        remote = RemoteSettings.model_validate(chosen.remote.model_dump() | changed)
    except ValidationError as error:
        raise InvalidInput(f"the options are wrong: {faults(error)}") from error
    return chosen.model_copy(update={"remote": remote})


@contextmanager
def _stopped_by_signals(stop: "Callable[[], None]") -> "Iterator[None]":
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        stop()
        # A second one ends it at once.
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget(chosen: Settings, name: str) -> None:
    from bluesky_cdinn.catalog import connect
    from bluesky_cdinn.heartbeat import withdraw

    with connect(chosen) as catalog:
        workers = catalog.folder(chosen.remote.workers)
        if name not in workers:
            raise NotFound(f"no worker {name!r}, only {', '.join(workers) or 'none at all'}")
        withdraw(workers, name)


def _retry(chosen: Settings, raw_uid: str) -> None:
    from bluesky_cdinn.catalog import connect
    from bluesky_cdinn.claims import pardon
    from bluesky_cdinn.heartbeat import read_all

    with connect(chosen) as catalog:
        workers = read_all(catalog.folder(chosen.remote.workers))
        pardon(catalog.folder(chosen.remote.claims), workers, raw_uid)


def _print(health: "Health", wrong: list[str]) -> None:
    print(
        f"Tiled: {health.tiled or 'away'}; spool: {health.waiting} runs wait, {len(health.put_aside)} aside"
    )
    if health.workers:
        rows = table(
            "worker", "on", "device", "since", "heartbeat", "runs", "waiting", "done", "failed", "error"
        )
        for beat in health.workers:
            age = f"{health.ages_s[beat.name]:.0f} s ago"
            numbers = (str(n) for n in (len(beat.runs), beat.waiting, beat.done, beat.failed))
            where = f"{beat.host}:{beat.pid}"
            rows.add_row(beat.name, where, beat.device, moment(beat.since), age, *numbers, beat.last_error)
        print_table(rows)
    if health.claims:
        rows = table("scan", "worker", "claimed", "turn")
        for claim in health.claims:
            rows.add_row(claim.raw_uid, claim.worker, moment(claim.time), str(claim.turn))
        print_table(rows)
    for line in wrong:
        print(f"WRONG {line}")

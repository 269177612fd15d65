"""The command line's catching up: `cdinn backfill`."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_cdinn import cli_options as options
from bluesky_cdinn.cli_options import AsJson, Directory, choose, settings
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Progress
from bluesky_cdinn.staleness import Stale
from bluesky_cdinn.terminal import answering, moment, print_table, progress_bars, stop_request, table

if TYPE_CHECKING:
    from bluesky_cdinn.backfill import Order
    from bluesky_cdinn.backfill_job import Outcome

app = typer.Typer()


@app.command()
def backfill(
    since: Annotated[datetime | None, typer.Option(help="Only scans that began then or later.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only scans that began before.")] = None,
    sample: Annotated[str | None, typer.Option(help="Only of this sample.")] = None,
    raw: Annotated[
        list[str] | None, typer.Option(help="Only the scan of this uid, or its first characters; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the newest.")] = None,
    stale: Annotated[
        list[Stale] | None,
        typer.Option(help="Also scans reconstructed by another version, or with other ...; repeatable."),
    ] = None,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Leave scans alone whose reconstruction failed.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Of this machine; as many as it has cores by default.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler to use instead, such as tls://host:8786.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and why.")] = False,
    shape: options.Shape = None,
    start: options.StartAt = None,
    weights: options.Weights = None,
    refine: options.Refine = None,
    starts: options.Starts = None,
    seed: options.Seed = None,
    device: options.Device = None,
    threads: options.Threads = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Reconstruct the stored scans that have no reconstruction yet, or none that is current.

    Kill it whenever and run it again: it goes on with what is left. Ctrl-C finishes what is being computed.
    """
    with answering(as_json) as answer:
        if scheduler is not None and processes is not None:
            raise InvalidInput("--scheduler has workers of its own: --processes doesn't go with it")
        chosen = choose(settings(directory), max_shape=shape, start=start, weights=weights, refine=refine,
                        starts=starts, seed=seed, device=device, threads=threads)  # fmt: skip
        from bluesky_cdinn.backfill import Wanted, plan
        from bluesky_cdinn.backfill_campaign import Campaign
        from bluesky_cdinn.backfill_dask import carry_out_all
        from bluesky_cdinn.catalog import connect
        from bluesky_cdinn.staleness import standard_now

        wanted = Wanted(since, until, sample, tuple(raw or ()), limit)
        standard = standard_now(chosen.reconstruction, stale or (), keep_failed=keep_failed)
        with connect(chosen) as catalog:
            todo = plan(catalog, wanted, standard)
            answer |= {"to_do": len(todo.orders), "left_alone": dict(todo.left)}
            left = ", ".join(f"{count} {why}" for why, count in sorted(todo.left.items())) or "none"
            print(f"{len(todo.orders)} scans to reconstruct; left alone: {left}")
            if dry_run:
                answer["orders"] = [asdict(order) for order in todo.orders]
                if todo.orders and not as_json:
                    _print_orders(todo.orders)
                return
            count = min(processes or len(os.sched_getaffinity(0)), len(todo.orders))
            with (
                stop_request() as asked,
                Campaign(catalog, todo.orders, standard, lambda: bool(asked)) as campaign,
            ):
                outcomes = carry_out_all(campaign, processes=count, scheduler=scheduler)
                _tell(outcomes, len(todo.orders), answer)
            print(_summary(answer))
    if answer["failed"] or answer["error"]:
        raise typer.Exit(1)


def _tell(outcomes: Iterator["Outcome"], total: int, answer: dict[str, Any]) -> None:
    """Print a line for each run that ends, and count them into the answer."""
    began = time.monotonic()
    runs = []
    with progress_bars("scans") as (bar,):
        bar(Progress(f"0 of {total}", 0.0))
        for number, outcome in enumerate(outcomes, start=1):
            runs.append(outcome)
            print(f"{number}/{total} {_line(outcome)}", flush=True)
            bar(Progress(f"{number} of {total}", number / total))
    count = Counter(outcome.status for outcome in runs)
    answer |= {status: count[status] for status in ("success", "failed", "skipped", "error")}
    answer |= {"not_begun": total - len(runs), "in_spool": sum(not outcome.delivered for outcome in runs)}
    answer |= {"runs": [asdict(outcome) for outcome in runs], "seconds": time.monotonic() - began}


def _line(outcome: "Outcome") -> str:
    scan = f"scan {outcome.raw_uid[:8]}: {outcome.status}"
    if outcome.status == "success":
        numbers = f"chi2 {outcome.chi2:.5f}, confidence {outcome.confidence:.2f}, {outcome.seconds:.1f} s"
        scan += f" as {outcome.processed_uid[:8]}, {numbers}"
        if outcome.warnings:
            scan += f", warnings: {outcome.warnings}"
    else:
        scan += f": {outcome.reason}"
    return scan if outcome.delivered else f"{scan}; waits in the spool"


def _summary(answer: dict[str, Any]) -> str:
    said = f"{answer['success']} reconstructed, {answer['failed']} failed in {answer['seconds']:.0f} s"
    others = {
        "skipped": "left to others",
        "error": "could not be read or begun",
        "not_begun": "not begun",
        "in_spool": "wait in the spool for Tiled",
    }
    return "; ".join([said, *(f"{answer[name]} {words}" for name, words in others.items() if answer[name])])


def _print_orders(orders: Sequence["Order"]) -> None:
    rows = table("when", "scan", "uid", "sample", "why")
    for order in orders:
        number = "" if order.scan_id is None else str(order.scan_id)
        rows.add_row(moment(order.time), number, order.raw_uid[:8], order.sample, order.why)
    print_table(rows)

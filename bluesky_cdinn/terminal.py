"""What the commands share: answers for people or machines, errors in one line, progress bars."""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import datetime
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from bluesky_cdinn.documents import finite_scalars, plain
from bluesky_cdinn.errors import CdinnError, ReconstructionFailed
from bluesky_cdinn.records import Progress, Reconstruction
from bluesky_cdinn.report import number_rows
from bluesky_cdinn.summary import ReconstructionSummary


@contextmanager
def answering(as_json: bool) -> Iterator[dict[str, Any]]:
    """Give a mapping for a command's answer, and end the command as every command ends.

    With `as_json` the answer becomes one JSON object, the only line on stdout; whatever else is printed
    meanwhile goes to stderr, and numbers that are not finite are left out. A `CdinnError` becomes one line
    on stderr and exit code 1; the JSON object then says ``error`` and ``type`` too.

    Raises
    ------
    typer.Exit
        With code 1, for a `CdinnError`.
    """
    answer: dict[str, Any] = {}
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            yield answer
    except CdinnError as error:
        message = " ".join(str(error).split())
        print(f"cdinn: {message}", file=sys.stderr)
        if as_json:
            told = plain(answer) | {"error": message, "type": type(error).__name__}
            print(json.dumps(told, allow_nan=False))
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(plain(answer), allow_nan=False))


class _Terminal(Console):
    """A console that falls silent when its terminal goes away, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


@contextmanager
def progress_bars(*labels: str, stay: bool = True) -> Iterator[list[Callable[[Progress], None]]]:
    """Show bars on stderr; each function that it gives moves one of them, from any thread.

    Unless they are to stay, nothing is left of them in the end, nor shown where there is no terminal.
    """
    console = _Terminal(stderr=True)
    shown = stay or console.is_terminal or console.is_jupyter
    columns = (
        TextColumn("{task.fields[label]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description} {task.fields[chi2]}"),
    )
    with ProgressBars(*columns, console=console, transient=not stay, disable=not shown) as bars:
        yield [
            _mover(bars, bars.add_task("", start=False, total=1.0, label=label, chi2="")) for label in labels
        ]


def _mover(bars: ProgressBars, task: TaskID) -> Callable[[Progress], None]:
    def move(progress: Progress) -> None:
        bars.start_task(task)
        chi2 = f"chi2 {progress.chi2:.4f}" if math.isfinite(progress.chi2) else ""
        bars.update(task, completed=progress.fraction, description=progress.stage, chi2=chi2)

    return move


@contextmanager
def stop_request() -> Iterator[list[int]]:
    """Give a list that Ctrl-C, or a scheduler's SIGTERM, puts its signal into instead of killing.

    A second one kills as ever.
    """
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def table(*headings: str) -> Table:
    """Return an empty table in the commands' common style."""
    return Table(*headings, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)


def print_table(rows: Table) -> None:
    """Print a table on stdout."""
    Console().print(rows)


def report(summary: ReconstructionSummary, answer: dict[str, Any], as_json: bool) -> None:
    """Tell how a scan's reconstruction ended.

    Raises
    ------
    ReconstructionFailed
        It is no success.
    """
    answer |= told(summary)
    if not summary.success:
        raise ReconstructionFailed(f"scan {summary.raw_uid} was not reconstructed: {summary.reason}")
    if not as_json:
        rows = table("scan", summary.raw_uid)
        rows.add_row("reconstruction", summary.processed_uid)
        for heading, value in number_rows(summary.scalars):
            rows.add_row(heading, value)
        print_table(rows)


def told(summary: ReconstructionSummary) -> dict[str, Any]:
    """Return a summary as a flat mapping, for machines."""
    names = ("raw_uid", "processed_uid", "status", "reason", "sample", "time")
    return {name: getattr(summary, name) for name in names} | dict(summary.scalars)


def number_table(result: Reconstruction) -> Table:
    """Return a result's numbers and the time of each stage, for people."""
    rows = table(result.status, result.reason)
    for heading, value in number_rows(finite_scalars(result)):
        rows.add_row(heading, value)
    for stage, seconds in result.timings_s.items():
        rows.add_row(f"  {stage}", f"{seconds:.2f} s")
    return rows


def moment(seconds: float) -> str:
    """Return a time as people read it, in their own time zone."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"

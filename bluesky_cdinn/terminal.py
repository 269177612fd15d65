"""What the commands share: answers for people or machines, errors in one line, progress bars."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from bluesky_cdinn.documents import plain
from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.records import Progress


@contextmanager
def answering(as_json: bool) -> Iterator[dict[str, Any]]:
    """Give a mapping for a command's answer, and end the command as every command ends.

    With `as_json` the answer becomes one JSON object, the only line on stdout; whatever else is printed
    meanwhile goes to stderr, and numbers that are not finite are left out. A `CdinnError` becomes one line
    on stderr and exit code 1.

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
            print(json.dumps({"error": message, "type": type(error).__name__}))
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(plain(answer), allow_nan=False))


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr; the function that it gives moves it, from any thread."""
    columns = (
        TextColumn(f"{label}: {{task.description}}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[chi2]}"),
    )
    with ProgressBars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("waiting", total=1.0, chi2="")

        def move(progress: Progress) -> None:
            chi2 = f"chi2 {progress.chi2:.4f}" if math.isfinite(progress.chi2) else ""
            bars.update(task, completed=progress.fraction, description=progress.stage, chi2=chi2)

        yield move


def table(*headings: str) -> Table:
    """Return an empty table in the commands' common style."""
    return Table(*headings, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)


def print_table(rows: Table) -> None:
    """Print a table on stdout."""
    Console().print(rows)

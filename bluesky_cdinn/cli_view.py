"""The command line's pictures: `cdinn show` and `cdinn report`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bluesky_cdinn.cli_options import AsJson, Directory, settings
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import require_figure, require_writable
from bluesky_cdinn.terminal import answering, number_table, print_table

app = typer.Typer()

Uid = Annotated[str, typer.Argument(help="Of the reconstruction, or its first characters.")]


@app.command()
def show(
    uid: Uid,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Draw it: png, pdf or svg.")] = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show one stored reconstruction: its numbers and warnings, and with -o a figure."""
    with answering(as_json) as answer:
        if output is not None:
            require_figure(output)
        from bluesky_cdinn.catalog import connect
        from bluesky_cdinn.documents import finite_scalars

        with connect(settings(directory)) as catalog:
            result = catalog.load(uid)
            if output is not None:
                from bluesky_cdinn.session import rocking_totals
                from bluesky_cdinn.view import save

                save(result, output, rocking_totals(catalog, result.raw_uid))
                answer["output"] = str(output)
        answer |= {
            "raw_uid": result.raw_uid,
            "status": result.status,
            "reason": result.reason,
            "shape": result.density.shape,
            **finite_scalars(result),
            "timings_s": dict(result.timings_s),
            "parameters": dict(result.parameters),
            "history": list(result.history),
        }
        if not as_json:
            print_table(number_table(result))
            for line in result.warnings:
                print(f"warning: {line}")


@app.command()
def report(
    uid: Uid,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="One page as pdf, png or svg; or html, to turn it about.")
    ],
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Report one stored reconstruction, whatever became of it, on one page."""
    with answering(as_json) as answer:
        interactive = output.suffix.lower() == ".html"
        if interactive:
            require_writable(output)
        elif output.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise InvalidInput(f"a report's name must end in .pdf, .png, .svg or .html, got {output.name}")
        else:
            require_figure(output)
        from bluesky_cdinn.catalog import connect

        with connect(settings(directory)) as catalog:
            result = catalog.load(uid)
            if interactive:
                from bluesky_cdinn.page3d import save_page

                save_page(result, output)
            else:
                from bluesky_cdinn.report_page import save_report
                from bluesky_cdinn.session import rocking_totals

                save_report(result, output, rocking_totals(catalog, result.raw_uid))
        answer |= {"output": str(output), "raw_uid": result.raw_uid, "status": result.status}
        if not as_json:
            print(f"{output} was written", file=sys.stderr)

"""The command line's look at scans that still run: `cdinn watch`."""

from pathlib import Path
from typing import Annotated

import typer

from bluesky_cdinn.cli_options import AsJson, Directory, settings
from bluesky_cdinn.files import require_figure
from bluesky_cdinn.terminal import answering, told
from bluesky_cdinn.watching import Sight, sights

app = typer.Typer()


@app.command()
def watch(
    run_uid: Annotated[
        str | None, typer.Argument(help="Of the scan; ends with its result. Without it: all, until Ctrl-C.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw the newest each time: png, pdf or svg.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at Tiled.")] = 1.0,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show crystals while their scans run, from anywhere that Tiled can be reached."""
    from bluesky_cdinn.catalog import connect

    with answering(as_json) as answer:
        if output is not None:
            require_figure(output)
        with connect(settings(directory)) as catalog:
            try:
                for sight in sights(catalog, run_uid, interval_s=interval):
                    print(line(sight), flush=True)
                    if output is not None and sight.partials:
                        from bluesky_cdinn.live_view import save_live

                        save_live(sight.partials, output, f"scan {sight.summary.raw_uid[:8]}")
                    if sight.ended:
                        answer |= told(sight.summary) | {"updates": len(sight.partials)}
            except KeyboardInterrupt:
                print("no longer watching; the scans go on", flush=True)


def line(sight: Sight) -> str:
    """Return one line of what is new: the newest partial result, or the end."""
    if sight.ended or not sight.partials:
        return str(sight.summary)
    newest = sight.partials[-1]
    numbers = [f"{newest.points} points"]
    if newest.fraction == newest.fraction:
        numbers.append(f"{newest.fraction:.0%}")
    numbers += [f"chi2 {newest.chi2:.4f}", f"confidence {newest.confidence:.2f}"]
    if "change_rad" in newest.scalars:
        numbers.append(f"changed by {newest.scalars['change_rad']:.3f} rad")
    return f"scan {sight.summary.raw_uid[:8]}: {', '.join(numbers)}"

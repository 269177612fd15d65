"""The command that serves a practice IOC; mounted beside the others (`cli`)."""

from functools import wraps
from typing import Any

import typer

from bluesky_cdinn.sim.ioc import main
from bluesky_cdinn.terminal import answering

app = typer.Typer()


@app.command(name="ioc")
@wraps(main)
def ioc(**options: Any) -> None:
    """Serve what `bluesky_cdinn.sim.ioc` serves, with this program's way of telling errors."""
    with answering(False):
        main(**options)

"""What the commands are told: options that several share, and the settings that come of them."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.settings import ReconstructionOptions, Settings, Start, config_file

DeliveryName = Literal["event", "resource", "stream"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the only line of stdout.")]
StartAt = Annotated[Start | None, typer.Option("--start", help="Where phasing starts from.")]
Refine = Annotated[bool | None, typer.Option("--refine/--no-refine", help="Refine the start, or stop there.")]
Starts = Annotated[int | None, typer.Option(min=1, max=64, help="Independent starts, compared at the end.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same result.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Weights = Annotated[Path | None, typer.Option(help="The network's weights; those that ship by default.")]
Shape = Annotated[
    tuple[int, int, int] | None,
    typer.Option("--shape", metavar="N N N", help="Largest part of the volume to work on, around the peak."),
]


Delivery = Annotated[
    DeliveryName, typer.Option(help="How frames are handed over: in the event, or in an HDF5 file.")
]
Directory = Annotated[
    Path | None,
    typer.Option(help="Use an embedded Tiled server in this directory instead of the settings' catalog."),
]


def settings(directory: Path | None = None) -> Settings:
    """Return the settings in force, or those for a directory of one's own.

    Raises
    ------
    InvalidInput
        The file or the environment holds what the settings don't allow.
    """
    try:
        chosen = Settings()
    except ValidationError as error:
        raise InvalidInput(f"the settings are wrong: {faults(error)}") from error
    except (SettingsError, tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        source = config_file() or "the environment"
        raise InvalidInput(f"the settings can't be read, look at {source}: {error}") from error
    if directory is None:
        return chosen
    own = {
        "uri": None,
        "profile": None,
        "directory": directory / "tiled",
        "readable_storage": ((directory / "frames").resolve(),),
    }
    return chosen.model_copy(
        update={"tiled": chosen.tiled.model_copy(update=own), "spool": directory / "spool"}
    )


def choose(settings: Settings, **given: Any) -> Settings:
    """Return settings with those of the reconstruction replaced that the command line gave.

    Raises
    ------
    InvalidInput
        One of them isn't allowed.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        options = ReconstructionOptions.model_validate(settings.reconstruction.model_dump() | chosen)
    except ValidationError as error:
        raise InvalidInput(f"the options are wrong: {faults(error)}") from error
    return settings.model_copy(update={"reconstruction": options})


def faults(error: ValidationError) -> str:
    """Return what is wrong with settings, in one line and without their values."""
    # Without the values: one of them may be the server's key.
    faults = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)

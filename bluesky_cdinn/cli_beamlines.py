"""The command that lists the beamlines whose geometry ships: `cdinn beamlines`."""

from typing import Annotated, Any

import typer

from bluesky_cdinn.cli_options import AsJson
from bluesky_cdinn.goniometer import Beamline, Circle, beamline_names, load_beamline
from bluesky_cdinn.terminal import answering, print_table, table

app = typer.Typer()


@app.command()
def beamlines(
    name: Annotated[
        str | None, typer.Argument(help="One that ships, or a TOML file of your own: check it, tell all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the beamlines whose circles and detector are known, or tell of one what its file says."""
    with answering(as_json) as answer:
        if name is not None:
            beamline = load_beamline(name)
            answer |= described(beamline)
            if not as_json:
                _tell(beamline)
            return
        rows = table("name", "beamline", "sample's circles, outermost first", "detector's")
        for each in beamline_names():
            beamline = load_beamline(each)
            answer[each] = described(beamline)
            rows.add_row(each, beamline.title, circles(beamline.sample), circles(beamline.arm))
        if not as_json:
            print_table(rows)


def circles(stack: tuple[Circle, ...]) -> str:
    """Return circles with their axes in one line."""
    return ", ".join(f"{circle.name} {direction(circle.axis)}" for circle in stack)


def direction(vector: tuple[float, ...]) -> str:
    """Return ``"y-"`` for a unit vector along an axis, else its numbers."""
    for letter, value in zip("xyz", vector, strict=True):
        if abs(value) == 1:
            return letter + ("+" if value > 0 else "-")
    return "({:.4f}, {:.4f}, {:.4f})".format(*vector)


def described(beamline: Beamline) -> dict[str, Any]:
    """Return all of a file, for machines."""
    return beamline.model_dump(mode="json")


def _tell(beamline: Beamline) -> None:
    rows = table(beamline.title, "")
    rows.columns[1].overflow = "fold"
    for stack, heading in ((beamline.sample, "sample"), (beamline.arm, "arm")):
        for circle in stack:
            also = f", read as {', '.join(circle.motors)}" if circle.motors else ""
            offset = f", {circle.offset_deg:+g} deg" if circle.offset_deg else ""
            default = "" if circle.default_deg is None else f", {circle.default_deg:g} deg unless said"
            rows.add_row(heading, f"{circle.name} about {direction(circle.axis)}{offset}{default}{also}")
    mount = beamline.detector
    rows.add_row("rows rise", direction(mount.rows))
    rows.add_row("columns rise", direction(mount.columns))
    for source in beamline.sources:
        rows.add_row("source", source)
    if beamline.assumed:
        rows.add_row("assumed", " ".join(beamline.assumed.split()))
    print_table(rows)

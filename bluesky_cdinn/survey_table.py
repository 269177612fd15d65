"""A survey's grains as a table, and back from the documents of its run."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.survey_ranking import GrainSeen

GRAIN = "grain"
"""Among a decision's numbers: the grain that it is about, whole."""

STREAM = "steering"
_HEAD = ("grain", "status", "score", "deg", "counts/s", "nm", "strain", "conf.", "why")


class SurveyTable(tuple[GrainSeen, ...]):
    """The grains of a survey, those measured first; it prints as a table."""

    def __str__(self) -> str:
        rows = [_HEAD, *(_cells(grain) for grain in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def __repr__(self) -> str:
        return str(self)


def in_order(grains: Iterable[GrainSeen]) -> SurveyTable:
    """Return grains as a table: measured, seen, skipped, each best first."""
    places = {"measured": 0, "seen": 1, "new": 2, "skipped": 3}

    def place(grain: GrainSeen) -> tuple[int, float]:
        return places[grain.status], -grain.score if math.isfinite(grain.score) else math.inf

    return SurveyTable(sorted(grains, key=place))


def numbers_of(grain: GrainSeen) -> dict[str, Any]:
    """Return what a decision about a grain records: all that is known; what isn't a number is None."""
    said = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(grain).items()
    }
    return {GRAIN: said}


def table_from_documents(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> SurveyTable:
    """Return the table from what the decisions of a survey's own run recorded: of each grain the last.

    Raises
    ------
    NotFound
        The documents hold no decisions about grains.
    """
    streams: set[str] = set()
    grains: dict[str, GrainSeen] = {}
    for name, document in documents:
        if name == "descriptor" and document["name"] == STREAM:
            streams.add(document["uid"])
        elif name == "event" and document["descriptor"] in streams:
            said = json.loads(document["data"][f"{STREAM}_numbers"]).get(GRAIN)
            if isinstance(said, Mapping):
                grains[str(said["name"])] = GrainSeen.of(said)
    if not grains:
        raise NotFound("the run holds no decisions about grains: is it a survey's own, of purpose steering?")
    return in_order(grains.values())


def survey_table(catalog: Catalog, uid: str) -> SurveyTable:
    """Return the table of a survey that is stored, one that was aborted too.

    Parameters
    ----------
    catalog
        That holds its run.
    uid
        Of the survey's own run, or its first characters.

    Raises
    ------
    NotFound
        No such run, or it holds no decisions about grains.
    """
    return table_from_documents(catalog.raw_documents(uid))


def _cells(grain: GrainSeen) -> tuple[str, ...]:
    def number(value: float, form: str) -> str:
        return format(value, form) if math.isfinite(value) else "-"

    return (
        grain.name,
        grain.status,
        number(grain.score, ".2f"),
        number(grain.centre_deg, ".4f"),
        number(grain.counts_s, ".3g"),
        number(grain.size_nm, ".0f"),
        number(grain.strain_rms, ".1e"),
        number(grain.confidence, ".2f"),
        grain.reason,
    )

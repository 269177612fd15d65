"""A `PartialResult` as an event of a processed run's stream "partial", and back."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.documents import PURPOSE, Document
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import PartialResult

logger = logging.getLogger(__name__)

STREAM = "partial"

_OWN = ("fraction", "chi2", "free_llk", "confidence", "seconds")
_PREVIEWS = {"amplitude": "", "phase": "rad"}

# A stream's columns are fixed with its first event, but a first update has nothing to be compared with: what
# an event hasn't got is NaN there.
_SCALARS = (
    "agreement",
    "phase_spread_rad",
    "change",
    "change_rad",
    "change_since_points",
    "size_nm",
    "strain_rms",
    "resolution_voxels",
    "resolution_nm",
    "resolution_limit_nm",
    *(f"{name}_{axis}_nm" for name in ("resolution", "resolution_limit") for axis in "xyzq"),
    "oversampling_rocking",
    "oversampling_row",
    "oversampling_column",
    "d_spacing_nm",
)


def partial_keys(first: PartialResult) -> dict[str, dict[str, Any]]:
    """Return the data keys of a stream that begins with this.

    Raises
    ------
    InvalidInput
        A scalar has the name of something else.
    """
    if clash := set(first.scalars) & {*_OWN, *_PREVIEWS, "points", "time", "seq_num"}:
        raise InvalidInput(f"scalars must have names of their own, got {sorted(clash)}")
    keys: dict[str, dict[str, Any]] = {
        "points": {"source": PURPOSE, "dtype": "integer", "shape": [], "dtype_numpy": "<i8"}
    }
    for name in dict.fromkeys((*_OWN, *_SCALARS, *first.scalars)):
        keys[name] = {"source": PURPOSE, "dtype": "number", "shape": [], "dtype_numpy": "<f8"}
    for name, unit in _PREVIEWS.items():
        shape = list(getattr(first, name).shape)
        keys[name] = {"source": PURPOSE, "dtype": "array", "shape": shape, "dtype_numpy": "<f4"}
        keys[name] |= {"units": unit} if unit else {}
    return keys


def partial_data(result: PartialResult, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return an event's data, for exactly the keys of its stream.

    Raises
    ------
    InvalidInput
        A preview has another shape than the first one had.
    """
    data: dict[str, Any] = {"points": int(result.points)}
    data |= {name: float(getattr(result, name)) for name in _OWN}
    for name in keys.keys() - data.keys() - _PREVIEWS.keys():
        data[name] = float(result.scalars.get(name, math.nan))
    for name in _PREVIEWS:
        preview = np.ascontiguousarray(getattr(result, name), np.float32)
        if list(preview.shape) != list(keys[name]["shape"]):
            raise InvalidInput(
                f"previews of a scan must all have the shape {keys[name]['shape']}, got {preview.shape}"
            )
        data[name] = preview
    if late := result.scalars.keys() - keys.keys():
        logger.debug("scalars that the first update had not are left out: %s", sorted(late))
    return data


def partials_from_documents(documents: Iterable[Document]) -> list[PartialResult]:
    """Return what the events of the stream say, in order."""
    streams: set[str] = set()
    found = []
    for name, document in documents:
        if name == "descriptor" and document["name"] == STREAM:
            streams.add(document["uid"])
        elif name == "event" and document["descriptor"] in streams:
            found.append(_partial(document["data"]))
    return found


def partials_from_run(run: Any) -> list[PartialResult]:
    """Read the stream of a stored processed run, one that still grows too.

    Parameters
    ----------
    run
        The Tiled client of one run.
    """
    streams = plain_client(run)
    if STREAM not in streams:
        return []
    stream = streams[STREAM]
    columns: dict[str, Any] = {name: stream[name].read() for name in _PREVIEWS if name in stream}
    table = stream["internal"].read() if "internal" in stream else {}
    columns |= {name: np.asarray(table[name]) for name in table if not str(name).startswith("ts_")}
    # While it grows, an event's arrays are there before its numbers.
    events = min(map(len, columns.values())) if columns.keys() >= {"points", *_PREVIEWS} else 0
    return [_partial({name: column[row] for name, column in columns.items()}) for row in range(events)]


def _partial(data: Mapping[str, Any]) -> PartialResult:
    named = {"points", "time", "seq_num", *_OWN, *_PREVIEWS}
    return PartialResult(
        points=int(data["points"]),
        amplitude=np.asarray(data["amplitude"], np.float32),
        phase=np.asarray(data["phase"], np.float32),
        **{name: float(data[name]) for name in _OWN},
        scalars={
            name: float(value) for name, value in data.items() if name not in named and math.isfinite(value)
        },
    )

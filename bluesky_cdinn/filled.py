"""A run stored in Tiled -> its documents again, as the assembler of rocking curves takes them.

Unlike ``run.documents()`` this needs nothing registered on the server and fetches arrays as arrays instead of
as JSON. Frames in a file that this machine can open stay there, for the worker to read; other frames come
through Tiled and are put into the events.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

import httpx
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.documents import Document
from bluesky_cdinn.files import located

logger = logging.getLogger(__name__)

_BATCH_BYTES = 64_000_000
_HDF5 = "application/x-hdf5"


def filled_documents(run: Any, paths: Mapping[str, str] | None = None) -> Iterator[Document]:
    """Yield start, then descriptors and data stream by stream, then stop.

    Parameters
    ----------
    run
        The Tiled client of one run. A run without a stop document gets none here either.
    paths
        Where this machine sees files that others wrote, as for `bluesky_cdinn.files.located`.
    """
    start = dict(run.metadata["start"])
    yield "start", start
    for name, stream in plain_client(run).include_data_sources().items():
        yield from _stream_documents(name, stream, start["uid"], paths or {})
    if run.metadata.get("stop"):
        yield "stop", dict(run.metadata["stop"])


def _stream_documents(name: str, stream: Any, run_uid: str, paths: Mapping[str, str]) -> Iterator[Document]:
    described = stream.metadata["data_keys"]
    parts = dict(stream.items())
    table = parts.pop("internal").read() if "internal" in parts else None
    arrays = {key: part for key, part in parts.items() if key in described}
    local = {
        key: source for key, array in arrays.items() if (source := _local_file(array, paths)) is not None
    }
    inline = {key: array for key, array in arrays.items() if key not in local}
    descriptor = _descriptor(name, dict(stream.metadata), run_uid, inline)
    yield "descriptor", descriptor
    for key, source in local.items():
        yield from _file_documents(key, source, paths, arrays[key].shape, descriptor)
    rows = len(table) if table is not None else max((a.shape[0] for a in inline.values()), default=0)
    columns = [] if table is None else [column for column in table.columns if column in described]
    for row, data in enumerate(_rows_of(inline, rows)):
        readings = {} if table is None else table.iloc[row]
        yield "event", _event(row, readings, columns, data, descriptor)


def _local_file(array: Any, paths: Mapping[str, str]) -> Any:
    """Return where an array lies if that is one HDF5 file of this machine, else None."""
    sources = array.data_sources() or []
    if len(sources) != 1 or sources[0].mimetype != _HDF5 or len(sources[0].assets) != 1:
        return None
    parts = urlparse(sources[0].assets[0].data_uri)
    here = located(Path(unquote(parts.path)), paths)
    return sources[0] if parts.scheme == "file" and here.is_file() else None


def _file_documents(
    key: str,
    source: Any,
    paths: Mapping[str, str],
    shape: tuple[int, ...],
    descriptor: Mapping[str, Any],
) -> Iterator[Document]:
    event_shape = descriptor["data_keys"][key]["shape"]
    stacked = len(shape) == len(event_shape) + 1
    count = shape[0] if stacked else shape[0] // event_shape[0]
    resource = f"{descriptor['uid']}-{key}"
    here = located(Path(unquote(urlparse(source.assets[0].data_uri).path)), paths)
    yield (
        "stream_resource",
        {
            "uid": resource,
            "run_start": descriptor["run_start"],
            "data_key": key,
            "mimetype": source.mimetype,
            "uri": f"file://localhost{quote(str(here))}",
            "parameters": {"join_method": "stack" if stacked else "concat", **source.parameters},
        },
    )
    yield (
        "stream_datum",
        {
            "uid": f"{resource}-0",
            "stream_resource": resource,
            "descriptor": descriptor["uid"],
            "indices": {"start": 0, "stop": count},
            "seq_nums": {"start": 1, "stop": count + 1},
        },
    )


def _descriptor(
    name: str, metadata: dict[str, Any], run_uid: str, inline: Mapping[str, Any]
) -> dict[str, Any]:
    keys: dict[str, dict[str, Any]] = {}
    objects: dict[str, list[str]] = {}
    for key, described in metadata["data_keys"].items():
        # Its frames are in the events now, wherever they were.
        keys[key] = {f: v for f, v in described.items() if f != "external" or key not in inline}
        objects.setdefault(described.get("object_name", key), []).append(key)
    return {**metadata, "name": name, "run_start": run_uid, "data_keys": keys, "object_keys": objects}


def _event(
    row: int, readings: Any, columns: list[str], arrays: dict[str, Any], descriptor: Mapping[str, Any]
) -> dict[str, Any]:
    data = {column: _builtin(readings[column]) for column in columns} | arrays
    time = float(readings["time"]) if "time" in readings else descriptor["time"]
    stamps = {key: float(readings[f"ts_{key}"]) if f"ts_{key}" in readings else time for key in data}
    return {
        "uid": f"{descriptor['uid']}-{row}",
        "descriptor": descriptor["uid"],
        "seq_num": int(readings["seq_num"]) if "seq_num" in readings else row + 1,
        "time": time,
        "data": data,
        "timestamps": stamps,
        "filled": {},
    }


def _rows_of(arrays: Mapping[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """Yield each event's arrays, fetched in batches; an array with fewer rows than events ends early."""
    row_bytes = sum(int(np.prod(a.shape[1:])) * np.dtype(a.dtype).itemsize for a in arrays.values())
    batch = max(1, _BATCH_BYTES // max(row_bytes, 1))
    for first in range(0, rows, batch):
        stop = min(first + batch, rows)
        fetched = {key: _fetched(key, array, first, stop) for key, array in arrays.items()}
        for row in range(stop - first):
            yield {key: values[row] for key, values in fetched.items() if row < len(values)}


def _fetched(key: str, array: Any, first: int, stop: int) -> NDArray[Any]:
    try:
        return np.asarray(array[first:stop])
    except httpx.HTTPStatusError as error:
        logger.warning(
            "Tiled can't read the array %r of this run (%s): it is left out; its files must be in a folder "
            "of tiled.readable_storage",
            key,
            error.response.status_code,
        )
        return np.empty(0)


def _builtin(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value

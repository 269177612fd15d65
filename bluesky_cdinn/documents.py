"""A `Reconstruction` as the documents of a Bluesky run of its own, and back.

The start document holds what a search needs (the raw run's uid, sample, status, every finite scalar) and
what a repetition needs (parameters, history); the stream "reconstruction" holds the arrays, in one event. A
failed reconstruction is a run without that stream, whose stop document says why. What was known while the
scan ran is in the stream "partial" (`bluesky_cdinn.partials`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath
from time import time as now
from typing import Any, Literal

import numpy as np
from event_model import ComposeDescriptorBundle, ComposeRunBundle, compose_run
from numpy.typing import NDArray
from pydantic import BaseModel

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Reconstruction, Status

PURPOSE = "reconstruction"
STREAM = "reconstruction"
RUNNING = "running"
"""Status of a processed run whose scan still runs."""

SPEC = "CDIReconstruction"

Document = tuple[str, dict[str, Any]]

# Name, unit; every one that is an attribute of the record is read back into it.
_ARRAYS = {
    "density": "",
    "support": "",
    "displacement": "nm",
    "strain": "",
    "phase_sd": "rad",
    "strain_sd": "",
    "facet_table": "",
    "direct_basis": "nm",
    "reciprocal_basis": "1/nm",
    "q_vector": "1/nm",
    "resolution_curve": "",
    "shell_correlation": "",
    "intensity_slices": "",
    "progress": "",
}
# Many viewers can't show a complex array.
_DERIVED = {"amplitude": "", "phase": "rad"}
_EXIT_STATUS: Mapping[Status, Literal["success", "abort", "fail"]] = {
    "success": "success",
    "cancelled": "abort",
    "failed": "fail",
}
_SCALARS = ("chi2", "free_llk", "confidence", "seconds", "cpu_s")


def reconstruction_documents(
    reconstruction: Reconstruction, *, uid: str | None = None, time: float | None = None
) -> Iterator[Document]:
    """Describe a reconstruction by event-model documents.

    Parameters
    ----------
    reconstruction
        Successful or not.
    uid, time
        Of the processed run; made up and now, by default.

    Yields
    ------
    name, document
        start, and on success descriptor and event, then stop. Arrays in the event are numpy's, everything
        else is plain JSON; numbers that are not finite are absent.

    Raises
    ------
    InvalidInput
        A scalar has the name of an array.
    """
    run = compose_run(uid=uid, time=time, metadata=start_metadata(reconstruction))
    yield "start", dict(run.start_doc)
    yield from compose_end(run, reconstruction)


def compose_end(run: ComposeRunBundle, reconstruction: Reconstruction) -> Iterator[Document]:
    """Yield the last documents of a run: descriptor and event where it is a success, and stop.

    Raises
    ------
    InvalidInput
        A scalar has the name of an array; the run can be ended with another reconstruction.
    """
    if reconstruction.status == "success":
        stream, data = _compose_stream(run.compose_descriptor, reconstruction)
        yield "descriptor", dict(stream.descriptor_doc)
        timestamps = dict.fromkeys(data, now())
        yield "event", dict(stream.compose_event(data=data, timestamps=timestamps, validate=False))
    stop = run.compose_stop(
        exit_status=_EXIT_STATUS[reconstruction.status],
        reason=reconstruction.reason,
    )
    yield "stop", dict(stop)


def reconstruction_from_documents(documents: Iterable[Document]) -> Reconstruction:
    """Return what `reconstruction_documents` described.

    Raises
    ------
    InvalidInput
        The documents are not those of a reconstruction.
    """
    start: Mapping[str, Any] = {}
    data: Mapping[str, Any] = {}
    stream = None
    for name, document in documents:
        if name == "start":
            start = document
        elif name == "descriptor" and document["name"] == STREAM:
            stream = document["uid"]
        elif name == "event" and document["descriptor"] == stream:
            data = document["data"]
    return _reconstruction(start, data)


def reconstruction_from_run(run: Any) -> Reconstruction:
    """Read a stored processed run back.

    Parameters
    ----------
    run
        The Tiled client of one run (`bluesky_tiled_plugins`).

    Raises
    ------
    InvalidInput
        The run is not that of a reconstruction.
    """
    data = {}
    streams = plain_client(run)
    if STREAM in streams:
        stored = streams[STREAM]
        data = {name: client.read()[0] for name, client in stored.items() if name in _ARRAYS}
    return _reconstruction(run.metadata["start"], data)


def finite_scalars(reconstruction: Reconstruction) -> dict[str, float]:
    """Every number of a reconstruction that could be computed, the record's own and the others."""
    own = {name: getattr(reconstruction, name) for name in _SCALARS}
    every = {**reconstruction.scalars, **own}
    return {name: float(value) for name, value in every.items() if math.isfinite(value)}


def plain(value: Any, depth: int = 100) -> Any:
    """Return a value as JSON can hold it; what is not finite is dropped from mappings, None in lists.

    What lies more than ``depth`` levels down is told in words.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping | list | tuple | set | frozenset) and depth == 0:
        return f"a {type(value).__name__} too far down"
    if isinstance(value, Mapping):
        items = ((str(key), item) for key, item in value.items())
        return {key: plain(item, depth - 1) for key, item in items if not _is_not_finite(item)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth - 1) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return None if _is_not_finite(value) else value
    return str(value) if isinstance(value, PurePath) else repr(value)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not math.isfinite(value)


def start_metadata(reconstruction: Reconstruction) -> dict[str, Any]:
    """Return what the start document says.

    Raises
    ------
    InvalidInput
        A scalar has the name of an array.
    """
    if clash := set(reconstruction.scalars) & {*_ARRAYS, *_DERIVED, "time", "seq_num"}:
        raise InvalidInput(f"scalars must have names of their own, got {sorted(clash)}")
    parameters = plain(reconstruction.parameters)
    metadata = plain(reconstruction.metadata)
    cdi = metadata.get("cdi")
    start = {
        "purpose": PURPOSE,
        "plan_name": PURPOSE,
        "raw_uid": reconstruction.raw_uid,
        "status": reconstruction.status,
        "versions": {"bluesky-cdinn": version("bluesky-cdinn")},
        "scalars": finite_scalars(reconstruction),
        "timings_s": plain(reconstruction.timings_s),
        "parameters": parameters,
        "history": plain(list(reconstruction.history)),
        "raw_metadata": metadata,
        "tiled_specs": [SPEC],
    }
    found = {
        "raw_scan_id": reconstruction.scan_id,
        "reason": reconstruction.reason or None,
        "sample": metadata.get("sample") or (cdi.get("sample") if isinstance(cdi, Mapping) else None),
        "weights": parameters.get("weights"),
        "device": parameters.get("device"),
    }
    return start | {key: value for key, value in found.items() if value is not None}


def _compose_stream(
    compose_descriptor: Any, reconstruction: Reconstruction
) -> tuple[ComposeDescriptorBundle, dict[str, Any]]:
    units = _ARRAYS | _DERIVED
    arrays = {name: getattr(reconstruction, name) for name in units}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    scalars = finite_scalars(reconstruction)
    keys = {name: _array_key(value, units[name]) for name, value in arrays.items()}
    keys |= {name: {"source": PURPOSE, "dtype": "number", "shape": []} for name in scalars}
    bundle = compose_descriptor(name=STREAM, data_keys=keys, object_keys={PURPOSE: list(keys)})
    return bundle, {**arrays, **scalars}


def _array_key(array: NDArray[Any], unit: str) -> dict[str, Any]:
    key = {
        "source": PURPOSE,
        "dtype": "array",
        "shape": list(array.shape),
        "dtype_numpy": array.dtype.str,
    }
    return key | ({"units": unit} if unit else {})


def _reconstruction(start: Mapping[str, Any], data: Mapping[str, Any]) -> Reconstruction:
    if start.get("purpose") != PURPOSE:
        raise InvalidInput(
            f"a run with purpose {PURPOSE!r} is needed, got {start.get('purpose')!r} "
            f"(run {start.get('uid', 'without a start document')})"
        )
    if start["status"] == RUNNING:
        raise InvalidInput(
            f"the scan of reconstruction {start['uid']} still runs: only partial results are there so far "
            "(Catalog.partials)"
        )
    if start["status"] == "success" and "density" not in data:
        raise InvalidInput(f"the stored reconstruction {start['uid']} is incomplete: it has no density")
    scalars = dict(start["scalars"])
    own = {name: scalars.pop(name) for name in _SCALARS if name in scalars}
    empty = {"density": np.zeros((0, 0, 0), np.complex64), "support": np.zeros((0, 0, 0), bool)}
    arrays = empty | {name: np.asarray(data[name]) for name in _ARRAYS if name in data}
    history: Sequence[Mapping[str, Any]] = tuple(start["history"])
    return Reconstruction(
        **arrays,
        **own,
        scalars=scalars,
        timings_s=dict(start["timings_s"]),
        raw_uid=start["raw_uid"],
        scan_id=start.get("raw_scan_id"),
        parameters=dict(start["parameters"]),
        history=history,
        metadata=dict(start["raw_metadata"]),
        status=start["status"],
        reason=start.get("reason", ""),
    )

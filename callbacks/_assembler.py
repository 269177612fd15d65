"""Documents of one run -> one `RockingCurve`."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.callbacks._assets import (
    DATUM_READERS,
    DatumReader,
    read_datum,
    stored_numbers,
    stream_frames,
)
from bluesky_cdinn.callbacks._circles import angles_read, circle_readings
from bluesky_cdinn.callbacks._documents import BASELINE, RunDocuments, understood
from bluesky_cdinn.callbacks._frames import frame_array, in_pieces
from bluesky_cdinn.callbacks._keys import (
    COUNT_TIME_NAMES,
    DEGREES,
    ENERGIES,
    SECONDS,
    Stream,
    angle_key,
    count_time_key,
    detector_first,
    frame_key,
    geometry_readings,
    readback_key,
)
from bluesky_cdinn.callbacks._planned import planned_angles
from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.geometry_metadata import CIRCLES, WORDS, geometry_from
from bluesky_cdinn.goniometer import Beamline, load_beamline
from bluesky_cdinn.growing import CurveInPieces
from bluesky_cdinn.records import FrameReference, Geometry, RockingCurve

logger = logging.getLogger(__name__)

MIN_POINTS = 3
"""Fewer points than this are no curve, whatever is made of them."""

PURPOSE = "rocking_curve"


def is_rocking_curve(start: Mapping[str, Any]) -> bool:
    """Whether a run is to be reconstructed.

    ``purpose`` decides where it is given. Without it a ``cdi`` mapping will do, unless it names a rocking
    motor that the plan doesn't move: a session may carry ``cdi`` in all its runs.
    """
    purpose = start.get("purpose")
    if purpose is not None:
        return purpose == PURPOSE
    cdi, motors = start.get("cdi"), start.get("motors")
    if not isinstance(cdi, Mapping):
        return False
    motor = cdi.get("rocking_motor")
    return motor is None or not isinstance(motors, list | tuple) or motor in motors


class RockingCurveAssembler:
    """Collect the documents of one run, and make a `RockingCurve` of them when asked.

    Taking a document neither blocks nor opens a file: frames in events are kept by reference, frames in
    files are noted as `FrameReference`. Making a curve reads a file only where the angles aren't in events.
    Documents of other runs are ignored, so that an assembler may be subscribed to a RunEngine by itself; for
    many runs put it behind a `RunRouter`.

    Parameters
    ----------
    defaults
        The settings file's ``cdi``: what neither the devices nor the start document say.
    readers
        What is understood of Resource and Datum documents, by spec.
    """

    def __init__(
        self,
        defaults: Mapping[str, Any] | None = None,
        *,
        readers: Mapping[str, DatumReader] = DATUM_READERS,
    ) -> None:
        self._defaults = dict(defaults or {})
        self._readers = readers
        self._run = RunDocuments(self._defaults.get("detector"))
        # By stream, detector and number, with the event's data: what was measured again is another one.
        self._frames: dict[tuple[str, str, int], tuple[Mapping[str, Any], NDArray[Any]]] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document; names that aren't known are ignored.

        Raises
        ------
        InvalidInput
            If the document can't be understood. What came before stays as it was.
        """
        self._run(name, doc)

    @property
    def done(self) -> bool:
        """Whether the run has stopped."""
        return self._run.stop is not None

    @property
    def points(self) -> int:
        """How many points have been measured, whole or not."""
        events = max((len(p) for name, p in self._run.points.items() if name != BASELINE), default=0)
        # A fly scan's come without events.
        streamed = (_last_number(doc) for name, doc in self._run.stream_datums if name != BASELINE)
        return max(events, *streamed, 0)

    def curve(self) -> RockingCurve:
        """Return what has been measured, as `pieces` does, with all frames in one array."""
        return self.pieces().joined()

    def pieces(self) -> CurveInPieces:
        """Return what has been measured, in the order of ``seq_num``; before the stop too.

        A frame is the same object each time, unless its point was measured again.

        A point whose frame or angle never came is left out. A point of several frames in a file gives as
        many entries at the same angle, which `volume.assemble` adds up like any repeated point.

        Raises
        ------
        IncompleteScan
            If fewer than three points have a frame and an angle.
        InvalidInput
            If the detector or the rocking motor is ambiguous or absent, or frames can't be understood.
        """
        start = self._run.start
        if start is None:
            raise IncompleteScan("a rocking curve needs a start document, none came")
        with understood(f"the documents of run {start['uid']}"):
            return self._pieces(start)

    def _pieces(self, start: Mapping[str, Any]) -> CurveInPieces:
        streams = {name: stream for name, stream in self._run.streams.items() if name != BASELINE}
        if not self._run.stream_datums and not any(self._run.points.get(name) for name in streams):
            raise IncompleteScan(
                f"run {start['uid']} holds no point, a rocking curve needs {MIN_POINTS} or more"
            )
        name, detector = frame_key(streams, self._cdi("detector"))
        stream = streams[name]
        motor = self._cdi("rocking_motor")
        angle = angle_key(stream, motor, start.get("motors") or ())
        points = list(self._points(name, detector, angle))
        if len(points) < MIN_POINTS:
            raise IncompleteScan(
                f"run {start['uid']} holds {len(points)} points with a frame and an angle, a rocking curve "
                f"needs {MIN_POINTS} or more"
            )
        frames, repeats = in_pieces([frame for _, _, frame in points])
        degrees = np.array([degrees for _, degrees, _ in points])
        readings = [point for point, _, _ in points]
        count_time = self._count_time(stream, detector, readings)
        monitor_key = readback_key(stream, str(self._cdi("monitor")))
        cdi, geometry, missing = self._geometry(start, stream, detector, angle, degrees)
        expected = start.get("num_points")
        rest = {
            "angles_deg": np.repeat(degrees, repeats),
            "count_time_s": None if count_time is None else np.repeat(count_time, repeats),
            "monitor": np.repeat([_number(r.get(monitor_key)) for r in readings], repeats)
            if monitor_key
            else None,
            "geometry": geometry,
            "missing": missing if count_time is not None else (*missing, "count_time"),
            "raw_uid": start["uid"],
            "scan_id": start.get("scan_id"),
            "exit_status": self._exit_status(),
            "expected_points": expected * max(repeats) if isinstance(expected, int) else None,
            "planned_deg": planned_angles(start, motor, self._unit(stream, angle), degrees),
            "metadata": {**{k: v for k, v in start.items() if k not in ("uid", "scan_id")}, "cdi": cdi},
        }
        return CurveInPieces(frames, rest)

    def _cdi(self, name: str) -> Any:
        said = self._run.cdi(name)
        return self._defaults.get(name) if said is None else said

    def _unit(self, stream: Stream, angle: str) -> float:
        """Return the factor from the scanned motor's unit to deg, or in an energy scan to keV."""
        return stream.scale(angle, ENERGIES if self._scans_energy(stream, angle) else DEGREES)

    def _scans_energy(self, stream: Stream, angle: str) -> bool:
        said = self._cdi("scanned")
        return said == "energy" if said is not None else stream.is_energy(angle)

    def _exit_status(self) -> str:
        return "unfinished" if self._run.stop is None else str(self._run.stop.get("exit_status", "success"))

    def _points(self, name: str, detector: str, angle: str) -> Iterator[tuple[Mapping[str, Any], float, Any]]:
        """Yield (readings, angle in deg, frame) of each point that is whole."""
        stream, external = self._run.streams[name], self._external(name, detector)
        unit = self._unit(stream, angle)
        events = self._run.points.get(name, {})
        # A fly scan has its angles, like its frames, in files, and may have no event.
        angles = stored_numbers(self._external(name, angle)) if stream.is_external(angle) else {}
        left_out = []
        for number in sorted(events.keys() | angles.keys()):
            point = events.get(number, {})
            kept = self._frames.get((name, detector, number))
            # An image in the event too was fetched because the file can't be reached from here.
            if number in external and point.get(detector) is None:
                frame = external[number]
            elif kept is not None and kept[0] is point:
                frame = kept[1]
            else:
                frame = self._frame(stream, detector, point)
                if isinstance(frame, np.ndarray):
                    self._frames[name, detector, number] = (point, frame)
            degrees = _number(angles.get(number, point.get(angle))) * unit
            if frame is None or not math.isfinite(degrees):
                left_out.append(number)
            else:
                yield point, degrees, frame
        if left_out:
            logger.warning("points %s have no frame or no angle: left out", left_out)

    def _external(self, name: str, key: str) -> dict[int, tuple[FrameReference, ...]]:
        """Return what StreamDatum documents say of a data key, by event; after a rewind the later holds."""
        stream = self._run.streams[name]
        shape = stream.shape(key) if stream.is_image(key) else (*stream.shape(key), 1, 1)
        frames: dict[int, tuple[FrameReference, ...]] = {}
        for stream_name, datum in self._run.stream_datums:
            resource = self._run.resources.get(datum["stream_resource"])
            if resource is None:
                logger.warning("stream_datum %s has no stream_resource: left out", datum.get("uid"))
            elif stream_name == name and resource.get("data_key") == key:
                frames.update(stream_frames(resource, datum, shape))
        return frames

    def _frame(self, stream: Stream, detector: str, point: Mapping[str, Any]) -> Any:
        """Return the array or the references that an event holds, None where there are none."""
        value = point.get(detector)
        if value is None:
            return None
        if not isinstance(value, str):
            return frame_array(value, stream.shape(detector))
        datum = self._run.datums.get(value)
        resource = self._run.resources.get(datum["resource"]) if datum else None
        return read_datum(resource, datum, self._readers) if datum and resource else None

    def _geometry(
        self, start: Mapping[str, Any], stream: Stream, detector: str, angle: str, degrees: NDArray[Any]
    ) -> tuple[dict[str, Any], Geometry | None, tuple[str, ...]]:
        baseline = next(iter(self._run.points.get(BASELINE, {}).values()), {})
        devices = [*detector_first(stream, detector), (BASELINE, baseline)]
        values = {key: value for _, readings in devices for key, value in readings.items()}
        read = geometry_readings(devices)
        # A cdi entry may name a device's key instead of a value: {"energy_keV": "mono_energy"}.
        angles = self._angles(stream, devices)
        there = {key: value for values in reversed(angles) for key, value in values.items()}
        said, filled = (_looked_up(layer, values, there) for layer in (start.get("cdi", {}), self._defaults))
        scan: dict[str, Any] = {}
        if self._scans_energy(stream, angle):
            scan = {"scanned": "energy", "energy_keV": float(np.median(degrees))}
        try:
            name = self._cdi("beamline")
            if name is not None:
                read |= self._circles(load_beamline(name), angles, angle)
            cdi = {**filled, **read, **said, **scan}
            return cdi, *geometry_from(scan, said, read, filled)
        except InvalidInput as error:
            # The crystal can still be reconstructed in voxel units.
            logger.warning("the geometry can't be used: %s", error)
            return {**filled, **read, **said, **scan}, None, (str(error),)

    def _angles(
        self, stream: Stream, devices: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> list[dict[str, float]]:
        """Return the angles, deg, by key, that were read with the points, before them, or are set."""
        name = next(name for name, known in self._run.streams.items() if known is stream)
        first = next(iter(self._run.points.get(name, {}).values()), {})
        before = [(self._run.streams.get(name, stream), readings) for name, readings in devices[::-1]]
        return [angles_read(*read) for read in ((stream, first), *before)]

    def _circles(
        self, beamline: Beamline, angles: Sequence[Mapping[str, float]], angle: str
    ) -> dict[str, Any]:
        """Return which circle is rocked, and where all stood."""
        read: dict[str, Any] = {"rocking_motor": angle, CIRCLES: circle_readings(beamline, angles)}
        motors = (angle, str(self._cdi("rocking_motor")))
        rocked = next((circle for motor in motors if (circle := beamline.rocked_by(motor))), None)
        return read if rocked is None else read | {"rocking_circle": rocked.name}

    def _count_time(
        self, stream: Stream, detector: str, readings: Sequence[Mapping[str, Any]]
    ) -> list[float] | None:
        owner = stream.owner(detector) or ""
        key = count_time_key(stream.data_keys, stream.object_keys.get(owner, ()))
        if key is not None:
            return [_number(point.get(key)) * stream.scale(key, SECONDS) for point in readings]
        configured = stream.configuration.get(owner, {})
        key = count_time_key(configured)
        if key is not None:
            return [_number(configured[key]) * stream.scale(key, SECONDS)] * len(readings)
        said = next((v for name in COUNT_TIME_NAMES if (v := self._said(name)) is not None), None)
        return None if said is None else [_number(said)] * len(readings)

    def _said(self, name: str) -> Any:
        value = self._cdi(name)
        return (self._run.start or {}).get(name) if value is None else value


def _looked_up(
    layer: Mapping[str, Any], values: Mapping[str, Any], angles: Mapping[str, float]
) -> dict[str, Any]:
    """Return an entry's layer with the values of the devices' keys that it names; names stay names.

    Circles are looked up among the ``angles``, deg.
    """
    found = {k: values.get(v, v) if isinstance(v, str) and k not in WORDS else v for k, v in layer.items()}
    circles = found.get(CIRCLES)
    if isinstance(circles, Mapping):
        found[CIRCLES] = _looked_up(circles, angles, angles)
    return found


def _last_number(datum: Mapping[str, Any]) -> int:
    """Return the last ``seq_num`` that a StreamDatum covers, 0 where it says none."""
    numbers = datum.get("seq_nums")
    stop = numbers.get("stop") if isinstance(numbers, Mapping) else None
    return stop - 1 if isinstance(stop, int) else 0


def _number(value: Any) -> float:
    """Return a reading as a float, NaN where there is none; an array of one element counts as a number."""
    if value is None or isinstance(value, str):
        return math.nan
    array = np.asarray(value)
    return float(array.reshape(-1)[0]) if array.size == 1 else math.nan

"""What assembling a rocking curve costs the RunEngine's thread, a point.

    python benchmarks/callback_overhead.py [--points 200] [--size 512] [--limit-ms 1.0]

Frames are uint16 of size x size. Documents go through the same `RunRouter` and `RockingCurveAssembler` as at
a beamline, once for each way of delivering frames; a point's time is that of all its documents. A second
table is a real RunEngine's time a point with and without the callback. Exits with 1 if the median of any
way is over the limit.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import bluesky.plans as bp
import event_model
import numpy as np
from bluesky import RunEngine
from ophyd.sim import SynAxis, SynSignal

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler
from bluesky_cdinn.callbacks._router import RunRouter

Documents = list[tuple[str, Any]]


def run_documents(kind: str, points: int, size: int) -> Iterator[Documents]:
    """Yield the documents of the start, of each point, and of the stop."""
    image = {"source": "x", "dtype": "array", "shape": [1, size, size], "dtype_numpy": "<u2"}
    if kind != "event":
        image["external"] = "STREAM:" if kind == "stream_datum" else "FILESTORE:"
    number = {"source": "x", "dtype": "number", "shape": []}
    keys = {"det_image": image, "det_total": number, "theta": number, "theta_setpoint": number}
    run = event_model.compose_run(
        metadata={"purpose": "rocking_curve", "motors": ["theta"], "cdi": {"detector": "det"}}, validate=False
    )
    stream = run.compose_descriptor(
        name="primary",
        data_keys=keys,
        object_keys={"det": ["det_image", "det_total"], "theta": ["theta", "theta_setpoint"]},
        validate=False,
    )
    first: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    resource = run.compose_resource(
        spec="AD_HDF5", root="/data", resource_path="a.h5", resource_kwargs={}, validate=False
    )
    stream_resource = {
        "uid": "r",
        "run_start": run.start_doc["uid"],
        "data_key": "det_image",
        "mimetype": "application/x-hdf5",
        "uri": "file://localhost/data/a.h5",
        "parameters": {"dataset": "/entry/data/data"},
    }
    first += {
        "event": [],
        "datum": [("resource", resource.resource_doc)],
        "stream_datum": [("stream_resource", stream_resource)],
    }[kind]
    yield first
    frames = np.random.default_rng(0).poisson(1.0, (8, size, size)).astype(np.uint16)
    for i in range(points):
        data: dict[str, Any] = {"det_total": 1.0, "theta": 0.01 * i, "theta_setpoint": 0.01 * i}
        docs: Documents = []
        if kind == "event":
            data["det_image"] = frames[i % len(frames)]
        elif kind == "datum":
            datum = resource.compose_datum(datum_kwargs={"point_number": i}, validate=False)
            docs.append(("datum", datum))
            data["det_image"] = datum["datum_id"]
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
        if kind == "stream_datum":
            docs.append(
                (
                    "stream_datum",
                    {
                        "uid": f"r/{i}",
                        "stream_resource": "r",
                        "descriptor": stream.descriptor_doc["uid"],
                        "indices": {"start": i, "stop": i + 1},
                        "seq_nums": {"start": i + 1, "stop": i + 2},
                    },
                )
            )
        yield [*docs, ("event", event)]
    yield [("stop", run.compose_stop(validate=False))]


def point_times_ms(kind: str, points: int, size: int) -> tuple[np.ndarray, float]:
    """Return the time of each point, ms, and the time to get the curve after the stop."""
    assemblers: list[RockingCurveAssembler] = []

    def factory(start: Any) -> RockingCurveAssembler:
        assemblers.append(RockingCurveAssembler())
        return assemblers[-1]

    router = RunRouter(factory)
    times = []
    for docs in run_documents(kind, points, size):
        begun = time.perf_counter()
        for name, doc in docs:
            router(name, doc)
        times.append(1e3 * (time.perf_counter() - begun))
    begun = time.perf_counter()
    curve = assemblers[0].curve()
    took = 1e3 * (time.perf_counter() - begun)
    assert len(curve.frames) == points
    return np.array(times[1:-1]), took


def engine_ms_a_point(callback: Callable[[str, Any], object] | None, points: int, size: int) -> float:
    """Return a real RunEngine's wall time a point of a simulated scan, ms, with frames in its events."""
    frame = np.ones((size, size), np.uint16)
    detector, motor = SynSignal(name="det", func=lambda: frame), SynAxis(name="theta")
    engine = RunEngine({})
    if callback is not None:
        engine.subscribe(callback)
    begun = time.perf_counter()
    engine(bp.scan([detector], motor, 0, 1, points))
    return 1e3 * (time.perf_counter() - begun) / points


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--limit-ms", type=float, default=1.0)
    args = parser.parse_args()
    print(f"{args.points} points of {args.size} x {args.size} uint16, ms a point on the RunEngine's thread")
    print(f"{'frames come by':<16}{'median':>10}{'99 %':>10}{'worst':>10}{'curve()':>10}")
    slowest = 0.0
    for kind in ("event", "datum", "stream_datum"):
        times, curve_ms = point_times_ms(kind, args.points, args.size)
        slowest = max(slowest, float(np.median(times)))
        numbers = (np.median(times), np.quantile(times, 0.99), times.max(), curve_ms)
        print(f"{kind:<16}" + "".join(f"{number:>10.4f}" for number in numbers))
    engine_ms_a_point(None, 20, args.size)
    without, with_callback = (
        min(engine_ms_a_point(callback, args.points, args.size) for _ in range(3))
        for callback in (None, RunRouter(lambda start: RockingCurveAssembler()))
    )
    print(f"a real scan, ms a point: {without:.3f} without the callback, {with_callback:.3f} with it")
    return int(slowest > args.limit_ms)


if __name__ == "__main__":
    sys.exit(main())

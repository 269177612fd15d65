"""Rocking scans that do something unheard-of half-way."""

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from ophyd import Component, Device, Signal
from ophyd.sim import SynAxis

from bluesky_cdinn.clients import plain_client

POINTS = 8
SHAPE = (16, 12)


class Camera(Device):
    """A camera whose every frame is different."""

    image = Component(Signal, value=np.zeros(SHAPE, np.uint16))


def frame(point):
    """Return what the camera sees at a point."""
    return np.random.default_rng(point).poisson(50.0, SHAPE).astype(np.uint16)


def rocking(at_half=lambda: None, *, then=None, frames=None, points=POINTS, motor_name="motor", **md):
    """A rocking scan.

    `at_half` is called before the point in its middle is measured, the plan `then` done after it.
    """
    camera, motor = Camera(name="camera"), SynAxis(name=motor_name)
    cdi = {"detector": "camera_image", "rocking_motor": motor_name}
    points = points if frames is None else len(frames)

    @bpp.run_decorator(md={"purpose": "rocking_curve", "motors": [motor_name], "cdi": cdi, **md})
    def plan():
        for point in range(points):
            if point == points // 2:
                at_half()
            yield from bps.checkpoint()
            camera.image.put(frame(point) if frames is None else frames[point])
            yield from bps.mv(motor, 0.01 * point)
            yield from bps.trigger_and_read([camera, motor])
            if then is not None and point == points // 2:
                yield from then()

    return (yield from plan())


def assert_whole(catalog, raw_uid):
    """Check that Tiled holds a scan with every frame."""
    run = catalog.raw[raw_uid]
    assert run.metadata["stop"]["exit_status"] == "success"
    stored = plain_client(run)["primary/camera_image"].read()
    np.testing.assert_array_equal(stored, [frame(point) for point in range(POINTS)])


def watch(RE, live):
    """Have a RunEngine's scans recorded and reconstructed."""
    RE.subscribe(live.catalog.raw_writer())
    RE.subscribe(live)

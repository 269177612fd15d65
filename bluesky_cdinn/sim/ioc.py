"""A soft IOC with a rocking motor and an area detector that looks at a simulated crystal.

``python -m bluesky_cdinn.sim.ioc --prefix CDI:`` serves the motor record ``CDI:theta`` and the areaDetector
``CDI:det:`` over Channel Access, on loopback and nowhere else, until it is interrupted. Once it serves, it
prints one line of JSON: prefix, port, and the environment that clients need.
`bluesky_cdinn.epics` holds the ophyd devices for it. It needs the ``epics`` extra.
"""

import asyncio
import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bluesky_cdinn.errors import InvalidInput

if TYPE_CHECKING:
    from bluesky_cdinn.sim.area_detector import FrameSource

LOOPBACK = "127.0.0.1"
MAX_ARRAY_BYTES = 100_000_000
LIMITS_DEG = (-5.0, 5.0)


def client_environment(port: int, address: str = LOOPBACK) -> dict[str, str]:
    """Return what a Channel Access client's environment must hold to find an IOC at one address."""
    return {
        "EPICS_CA_ADDR_LIST": address,
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_SERVER_PORT": str(port),
        "EPICS_CA_MAX_ARRAY_BYTES": str(MAX_ARRAY_BYTES),
    }


def free_port() -> int:
    """Return a port that nobody on this machine serves, by TCP or UDP."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind((LOOPBACK, 0))
        port = tcp.getsockname()[1]
        udp.bind((LOOPBACK, port))
        return port


async def serve(
    prefix: str, source: "FrameSource", *, velocity_deg_s: float = 0.5, centre_deg: float = 0.0, port: int = 0
) -> None:
    """Serve a motor and a detector until cancelled.

    Parameters
    ----------
    prefix
        Of all records.
    source
        What the detector sees.
    velocity_deg_s
        The motor's speed at first.
    centre_deg
        Where the motor stands at first; its limits lie 5 deg to either side.
    port
        For Channel Access; 0 takes a free one.

    Raises
    ------
    InvalidInput
        The ``epics`` extra isn't installed.
    """
    port = port or free_port()
    # caproto reads these when its parts are made.
    os.environ.update(
        EPICS_CA_SERVER_PORT=str(port),
        EPICS_CAS_SERVER_PORT=str(port),
        EPICS_CAS_AUTO_BEACON_ADDR_LIST="NO",
        EPICS_CAS_BEACON_ADDR_LIST=LOOPBACK,
    )
    try:
        from caproto.asyncio.server import Context
    except ImportError as error:
        raise InvalidInput("an IOC needs caproto: pip install 'bluesky-cdinn[epics]'") from error
    from bluesky_cdinn.sim.ioc_detector import AreaDetector
    from bluesky_cdinn.sim.ioc_motor import MotorRecord

    class QuietServer(Context):
        async def broadcast_beacon_loop(self) -> NoReturn:
            """Send no beacons: nobody waits for them."""
            await asyncio.Future()
            raise AssertionError("nothing ends it")

    limits = (centre_deg + LIMITS_DEG[0], centre_deg + LIMITS_DEG[1])
    motor = MotorRecord(
        f"{prefix}theta", limits_deg=limits, velocity_deg_s=velocity_deg_s, initial_deg=centre_deg
    )
    detector = AreaDetector(f"{prefix}det:", source, lambda: motor.position_deg)

    async def announce(_: Any) -> None:
        await motor.set_up()
        print(
            json.dumps({"prefix": prefix, "port": port, "environment": client_environment(port)}), flush=True
        )
        await motor.run()

    server = QuietServer({**motor.pvdb, **detector.pvdb}, [LOOPBACK])
    try:
        await server.run(startup_hook=announce)
    finally:
        detector.close()


def main(
    prefix: Annotated[str, typer.Option(help="Of all records.")] = "CDI:",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of Channel Access; 0 takes a free one.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of crystal, detector and photons.")] = 0,
    size_nm: Annotated[float, typer.Option(help="Of the crystal.")] = 400.0,
    phase_range: Annotated[float, typer.Option(help="Of its strain field, rad.")] = 3.0,
    pixels: Annotated[int, typer.Option(min=16, help="Of a side of the detector.")] = 128,
    peak_rate: Annotated[float, typer.Option(help="Counts a second on the peak.")] = 1e7,
    velocity: Annotated[float, typer.Option(help="Of the motor at first, deg/s.")] = 0.5,
    recorded: Annotated[Path | None, typer.Option("--replay", help="Show a recorded scan instead.")] = None,
) -> None:
    """Serve a rocking motor and an area detector over EPICS Channel Access on loopback, for practice."""
    import numpy as np

    from bluesky_cdinn.sim.detector_effects import random_detector
    from bluesky_cdinn.sim.devices import simulated_beamline
    from bluesky_cdinn.sim.recording import load_recording
    from bluesky_cdinn.sim.replay import RecordedFrames

    centre = 0.0
    if recorded is not None:
        recording = load_recording(recorded)
        source: FrameSource = RecordedFrames(recording, outside="empty")
        centre = float(recording.angles_deg[0])
    else:
        detector, _ = simulated_beamline(
            detector=random_detector(np.random.default_rng([seed, 1]), (pixels, pixels), gap=False),
            size_nm=size_nm,
            phase_range_rad=phase_range,
            peak_rate=peak_rate,
            seed=seed,
        )
        source = detector.source
    # A terminate is an interrupt: the file is closed on both.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(prefix, source, velocity_deg_s=velocity, centre_deg=centre, port=port))


if __name__ == "__main__":
    typer.run(main)

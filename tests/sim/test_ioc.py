"""What the IOC's records do when clients put to them; over the wire it is tested with the ophyd devices."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager, suppress

import numpy as np
import psutil
import pytest
from caproto import CaprotoValueError
from soft_ioc import soft_ioc
from typer.testing import CliRunner

from bluesky_cdinn.cli import app
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.frame_files import open_frames
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.frame_file import DATASET
from bluesky_cdinn.sim.ioc import LOOPBACK, client_environment, free_port
from bluesky_cdinn.sim.ioc_detector import AreaDetector
from bluesky_cdinn.sim.ioc_motor import MotorRecord
from bluesky_cdinn.sim.ioc_records import Records

DONE, MOVING = 1, 0


class Ramp:
    """Frames that say at which angle and how long they were taken."""

    geometry = gold_geometry((4, 6))
    shape = (4, 6)
    dtype = np.dtype(np.int32)

    def frame(self, angle_deg, count_time_s):
        if angle_deg > 4:
            raise InvalidInput("there is nothing at 4 deg and beyond")
        return np.full(self.shape, round(1000 * angle_deg) + 1, np.int32)


class Client:
    """Puts, gets and watches as a client does, without the wire."""

    def __init__(self, pvdb):
        self.pvdb = pvdb

    async def put(self, name, value):
        await self.pvdb[name].write(value)

    def get(self, name):
        value = self.pvdb[name].value
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    async def until(self, name, value):
        await until(lambda: self.get(name) == value)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def motor(**kwargs):
    record = MotorRecord("m", limits_deg=(-2.0, 2.0), **kwargs)
    await record.set_up()
    task = asyncio.create_task(record.run())
    try:
        yield Client(record.pvdb | {f"m.{name}": field for name, field in record.record.fields.items()})
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def detector():
    detector = AreaDetector("d:", Ramp(), lambda: 0.5)
    yield Client(detector.pvdb)
    detector.close()


async def acquire(client, seconds=0.001):
    await client.put("d:cam1:AcquireTime", seconds)
    await client.put("d:cam1:Acquire", 1)
    await client.until("d:cam1:Acquire_RBV", "Done")


def test_a_move_takes_its_time_and_ends_where_it_was_sent():
    async def check():
        async with motor(velocity_deg_s=2.0) as client:
            began = time.monotonic()
            await client.put("m", 0.2)
            await client.until("m.DMOV", MOVING)
            assert client.get("m.MOVN") == 1
            await client.until("m.DMOV", DONE)
            assert time.monotonic() - began >= 0.1
            assert client.get("m.RBV") == 0.2
            assert client.get("m.MOVN") == 0

    asyncio.run(check())


def test_the_readback_is_posted_before_the_move_is_done():
    async def check():
        async with motor(velocity_deg_s=100.0) as client:
            seen = []
            done = client.pvdb["m.DMOV"]
            write = done.write

            async def watched(value, **kwargs):
                await write(value, **kwargs)
                seen.append((value, client.get("m.RBV")))

            done.write = watched
            for moves, target in enumerate((0.1, 0.1, -0.3), start=1):
                await client.put("m", target)
                await until(lambda writes=2 * moves: len(seen) == writes)
            assert seen == [(0, 0.0), (1, 0.1), (0, 0.1), (1, 0.1), (0, 0.1), (1, -0.3)]

    asyncio.run(check())


def test_a_target_beyond_the_limits_moves_nothing():
    async def check():
        async with motor() as client:
            assert client.pvdb["m"].lower_ctrl_limit == -2.0
            assert client.pvdb["m"].upper_ctrl_limit == 2.0
            with pytest.raises(CaprotoValueError, match="Limits"):
                await client.put("m", 2.5)
            assert client.get("m.DMOV") == DONE
            assert client.get("m") == 0.0
            await client.put("m.HLM", 3.0)
            assert client.pvdb["m"].upper_ctrl_limit == 3.0

    asyncio.run(check())


def test_a_stopped_motor_stands_where_it_was():
    async def check():
        async with motor(velocity_deg_s=0.5) as client:
            await client.put("m", 2.0)
            await client.until("m.DMOV", MOVING)
            await asyncio.sleep(0.1)
            await client.put("m.STOP", 1)
            await client.until("m.DMOV", DONE)
            assert 0.0 < client.get("m.RBV") < 1.0
            assert client.get("m") == client.get("m.RBV")
            assert client.get("m.STOP") == 0

    asyncio.run(check())


def test_a_new_target_takes_over():
    async def check():
        async with motor(velocity_deg_s=5.0) as client:
            await client.put("m", 2.0)
            await client.until("m.DMOV", MOVING)
            await client.put("m", -0.1)
            await client.until("m.DMOV", DONE)
            assert client.get("m.RBV") == -0.1

    asyncio.run(check())


def test_an_acquisition_shows_the_frame_of_the_motor_s_angle(detector):
    asyncio.run(acquire(detector))
    assert detector.get("d:image1:ArrayData") == [501] * 24
    assert detector.get("d:Stats1:Total_RBV") == 24 * 501
    assert detector.get("d:Stats1:MaxValue_RBV") == 501
    assert detector.get("d:cam1:ArrayCounter_RBV") == 1
    assert (detector.get("d:cam1:ArraySizeX_RBV"), detector.get("d:cam1:ArraySizeY_RBV")) == (6, 4)
    assert detector.get("d:cam1:DataType_RBV") == "Int32"


def test_several_images_are_taken_one_after_another(detector):
    async def check():
        await detector.put("d:cam1:NumImages", 3)
        await acquire(detector)
        assert detector.get("d:cam1:NumImagesCounter_RBV") == 3
        await detector.put("d:cam1:ImageMode", "Single")
        await acquire(detector)
        assert detector.get("d:cam1:ArrayCounter_RBV") == 4

    asyncio.run(check())


def test_an_acquisition_without_end_is_stopped(detector):
    async def check():
        await detector.put("d:cam1:ImageMode", "Continuous")
        await detector.put("d:cam1:AcquireTime", 0.001)
        await detector.put("d:cam1:Acquire", 1)
        await until(lambda: detector.get("d:cam1:ArrayCounter_RBV") >= 3)
        await detector.put("d:cam1:Acquire", 0)
        await detector.until("d:cam1:Acquire_RBV", "Done")

    asyncio.run(check())


def test_an_exposure_that_fails_ends_and_says_why():
    detector = Client(AreaDetector("d:", Ramp(), lambda: 4.5).pvdb)
    asyncio.run(acquire(detector))
    assert "nothing at 4 deg" in detector.get("d:cam1:StatusMessage_RBV")
    assert detector.get("d:cam1:ArrayCounter_RBV") == 0


def test_frames_go_to_a_file_that_can_be_read_while_it_grows(detector, tmp_path):
    async def check():
        await detector.put("d:HDF1:FilePath", str(tmp_path))
        assert detector.get("d:HDF1:FilePath_RBV") == f"{tmp_path}/"
        assert detector.get("d:HDF1:FilePathExists_RBV") == "Yes"
        await detector.put("d:HDF1:FileName", "rock")
        await detector.put("d:HDF1:FileNumber", 7)
        await detector.put("d:HDF1:SWMRMode", 1)
        await detector.put("d:HDF1:Capture", 1)
        path = tmp_path / "rock_000007.h5"
        assert detector.get("d:HDF1:FullFileName_RBV") == str(path)
        assert detector.get("d:HDF1:FileNumber_RBV") == 8
        for frames in (1, 2):
            await acquire(detector)
            with open_frames(path, DATASET) as stack:
                assert stack.shape == (frames, 4, 6)
                assert (stack[-1] == 501).all()
        await detector.put("d:HDF1:Capture", 0)
        await acquire(detector)
        assert detector.get("d:HDF1:NumCaptured_RBV") == 2

    asyncio.run(check())


def test_a_file_is_closed_after_the_frames_that_were_asked_for(detector, tmp_path):
    async def check():
        await detector.put("d:HDF1:FilePath", str(tmp_path))
        await detector.put("d:HDF1:NumCapture", 2)
        await detector.put("d:HDF1:Capture", 1)
        await detector.put("d:cam1:NumImages", 3)
        await acquire(detector)
        assert detector.get("d:HDF1:Capture_RBV") == "Done"
        with open_frames(tmp_path / "_000000.h5", DATASET) as stack:
            assert len(stack) == 2

    asyncio.run(check())


def test_folders_are_made_as_deep_as_asked(detector, tmp_path):
    async def check():
        deep = tmp_path / "2026" / "11" / "22"
        await detector.put("d:HDF1:FilePath", str(deep))
        assert detector.get("d:HDF1:FilePathExists_RBV") == "No"
        await detector.put("d:HDF1:Capture", 1)
        assert detector.get("d:HDF1:Capture_RBV") == "Done"
        assert detector.get("d:HDF1:WriteStatus") == "Write error"
        await detector.put("d:HDF1:CreateDirectory", -3)
        await detector.put("d:HDF1:FilePath", str(deep))
        assert deep.is_dir()

    asyncio.run(check())


def test_the_geometry_is_served_by_its_names(detector):
    assert detector.get("d:cdi:energy_keV") == 9.0
    assert detector.get("d:cdi:pixel_size_um") == [55.0, 55.0]
    assert detector.get("d:cdi:reflection") == [1.0, 1.0, 1.0]


def test_a_put_stores_what_its_hook_returns():
    async def double(value):
        return 2 * value

    async def check():
        records = Records("r:")
        records.pair("Rate", 1.0, on_put=double)
        records.pair("Mode", 0, choices=("Off", "On"))
        client = Client(records.pvdb)
        await client.put("r:Rate", 3.0)
        await client.put("r:Mode", "On")
        assert client.get("r:Rate") == client.get("r:Rate_RBV") == 6.0
        assert records.get("Mode") == records.get("Mode_RBV") == 1

    asyncio.run(check())


def test_the_process_says_when_it_serves_and_ends_when_told():
    port = free_port()
    with soft_ioc("--prefix", "X:", "--port", port, "--pixels", 32) as ioc:
        assert (ioc.prefix, ioc.port) == ("X:", port)
        assert client_environment(port).items() <= ioc.environment.items()
        sockets = psutil.Process(ioc.process.pid).net_connections("inet")
        serving = [socket for socket in sockets if socket.laddr.port == port]
        assert len(serving) == 2
        assert {socket.laddr.ip for socket in serving} == {LOOPBACK}
        assert {socket.raddr.ip for socket in sockets if socket.raddr} <= {LOOPBACK}
        os.kill(ioc.process.pid, signal.SIGTERM)
        assert ioc.process.wait(20) == 0


def test_the_command_has_the_same_options_and_tells_errors_in_one_line(tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["ioc", "--help"], env={"COLUMNS": "200"})
    assert all(option in shown.output for option in ("--prefix", "--seed", "--replay", "--velocity"))
    refused = runner.invoke(app, ["ioc", "--replay", str(tmp_path / "none.h5")])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("cdinn: a recording must be a file")

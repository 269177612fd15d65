"""A proxy in its own process, and one who follows: what the tests of remote reconstruction have in common."""

import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

from bluesky_cdinn.settings import RemoteSettings
from bluesky_cdinn.transport import open_feed

PATIENCE_S = 60.0


def free_port():
    """Return a port that nobody uses, and that nobody's outgoing connection is given by chance.

    Who tries again and again to connect to a port of that other kind, on this machine, in the end gets
    connected to itself.
    """
    for port in random.SystemRandom().sample(range(15_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


@contextmanager
def proxy(remote=None):
    """Run bluesky's proxy in a process; gives the settings to reach it."""
    if remote is None:
        remote = RemoteSettings(
            publish=f"tcp://127.0.0.1:{free_port()}", follow=f"tcp://127.0.0.1:{free_port()}"
        )
    command = [sys.executable, "-c", "from bluesky.commandline.zmq_proxy import main; main()"]
    command += ["--in-address", remote.publish, "--out-address", remote.follow]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield remote
    finally:
        process.kill()
        process.wait()


class Following:
    """Collects documents in a thread."""

    def __init__(self, remote):
        self.came = []
        self._stopping = threading.Event()
        feed = open_feed(remote)
        self._thread = threading.Thread(target=feed.follow, args=(self._take, self._stopping), daemon=True)

    def _take(self, name, doc):
        self.came.append((name, doc))

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not (self.came and condition(self.came)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.came

    def wait(self, number):
        return self.until(lambda came: len(came) >= number)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

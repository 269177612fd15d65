"""A proxy in its own process, and one who follows: what the tests of remote reconstruction have in common."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

from bluesky_cdinn.settings import RemoteSettings
from bluesky_cdinn.transport import open_feed

PATIENCE_S = 200.0


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


class Proxy:
    """Bluesky's proxy in a process of its own."""

    def __init__(self, remote=None):
        self.remote = remote or RemoteSettings(
            publish=f"tcp://127.0.0.1:{free_port()}", follow=f"tcp://127.0.0.1:{free_port()}"
        )

    def __enter__(self):
        command = [sys.executable, "-c", "from bluesky.commandline.zmq_proxy import main; main()"]
        command += ["--in-address", self.remote.publish, "--out-address", self.remote.follow]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *exc_info):
        self._process.kill()
        self._process.wait()

    def stall(self):
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    def restart(self):
        self.__exit__()
        self.__enter__()


@contextmanager
def proxy(remote=None):
    """Run a proxy; gives the settings to reach it."""
    with Proxy(remote) as running:
        yield running.remote


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


def environment(settings):
    """Return what a process needs in its environment to come to the same settings."""
    tiled, remote = settings.tiled, settings.remote
    here = os.path.dirname(__file__)
    given = {
        "CDINN_CONFIG": "",
        "CDINN_TILED__URI": tiled.uri,
        "CDINN_TILED__API_KEY": tiled.api_key.get_secret_value(),
        "CDINN_TILED__RAW": tiled.raw,
        "CDINN_TILED__PROCESSED": tiled.processed,
        "CDINN_SPOOL": str(settings.spool),
        "CDINN_REMOTE": remote.model_dump_json(),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }
    return {**os.environ, **given}


class WorkerProcess:
    """A worker in a process of its own, whose job is `remote_jobs.job`."""

    def __init__(self, settings, name, entry="remote_jobs:job"):
        code = "import sys; from bluesky_cdinn import cli_worker as c; c.work(c.settings(), *sys.argv[1:])"
        own = settings.model_copy(update={"spool": settings.spool.with_name(f"spool-{name}")})
        self.name = name
        self._log = settings.spool.with_name(f"{name}.log")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, name, entry], env=environment(own), stdout=log, stderr=log
            )

    @property
    def log(self):
        return self._log.read_text()

    def wait_ready(self, catalog):
        eventually(
            lambda: self.name in catalog.folder(catalog.settings.remote.workers) and "follows" in self.log,
            lambda: self.log,
        )
        return self

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)

    def close(self):
        self.process.kill()
        self.process.wait()


def eventually(condition, say=lambda: ""):
    """Wait for a condition that another process brings about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, say()
        # Asking costs the processes that are waited for.
        time.sleep(0.3)

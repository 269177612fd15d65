"""The startup files in the two kinds of process that they are for: a prompt, and a queueserver."""

import codecs
import contextlib
import os
import pty
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

PROFILE = Path(__file__).parents[1] / "profile_collection"
START_S, PLAN_S, END_S = 240.0, 240.0, 90.0


def copied_profile(folder):
    """Copy the profile: IPython and queueserver write into theirs."""
    return Path(shutil.copytree(PROFILE, folder / "profile_collection"))


def environment(folder, **settings):
    """Return an environment with settings that keep everything in a folder, as ``CDINN_...`` names them."""
    ours = {"spool": folder / "spool", "tiled__directory": folder / "tiled"}
    ours |= {"session__metadata": folder / "metadata.json", "reconstruction__starts": 2, **settings}
    bare = {name: value for name, value in os.environ.items() if not name.startswith("CDINN_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    named = {f"CDINN_{name.upper()}": str(value) for name, value in ours.items() if value is not None}
    return {**bare, **named, "PATH": path, "MPLBACKEND": "agg"}


class Prompt:
    """IPython at a terminal."""

    def __init__(self, folder, env):
        ours, theirs = pty.openpty()
        self._terminal = ours
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        profile = copied_profile(folder)
        self.process = subprocess.Popen(
            ["ipython", f"--profile-dir={profile}", "--simple-prompt", "--no-banner", "--no-confirm-exit"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={
                **env,
                "TERM": "xterm",
                "COLUMNS": "120",
                "LINES": "40",
                "IPYTHONDIR": str(folder / "ipython"),
            },
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, line):
        """Type a line; what was on the screen before is forgotten."""
        self._text = ""
        os.write(self._terminal, f"{line}\n".encode())

    def read(self, pattern, timeout_s):
        """Return what came up to a pattern."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self._text)) is None:
            if not self._wait(deadline):
                raise AssertionError(f"{pattern!r} didn't come; on the screen was:\n{self._text}")
        return self._text[: found.end()]

    def end(self):
        """Return what came to the end, and the exit code."""
        deadline = time.monotonic() + END_S
        while self._wait(deadline):
            pass
        return self._text, self.process.wait(max(1.0, deadline - time.monotonic()))

    def interrupt(self):
        """Do what Ctrl-C does at a terminal that is the process's own."""
        self.process.send_signal(signal.SIGINT)

    def close(self):
        kill_with_children(self.process)
        os.close(self._terminal)

    def _wait(self, deadline):
        """Take what comes next; False at the deadline and at the end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._terminal, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return False
        try:
            came = os.read(self._terminal, 65536)
        except OSError:  # nobody has the other side any more
            came = b""
        self._text += self._decoder.decode(came)
        return bool(came)


class Manager:
    """An RE Manager with a Redis of its own, on loopback."""

    def __init__(self, folder, env):
        from fakeredis import TcpFakeServer

        self._redis = TcpFakeServer(("127.0.0.1", 0))
        self._redis.daemon_threads = True
        threading.Thread(target=self._redis.serve_forever, daemon=True).start()
        control, info = free_port(), free_port()
        self.address = f"tcp://127.0.0.1:{control}"
        self.log = folder / "manager.log"
        profile = copied_profile(folder)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "start-re-manager",
                    f"--config={profile / 'queueserver.yml'}",
                    f"--startup-dir={profile / 'startup'}",
                    f"--redis-addr=127.0.0.1:{self._redis.server_address[1]}",
                    f"--zmq-control-addr={self.address}",
                    f"--zmq-info-addr=tcp://127.0.0.1:{info}",
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=env,
                start_new_session=True,
            )

    def ask(self, method, **params):
        """Send a request; return the answer, which must be a success."""
        answer = self.request(method, **params)
        assert answer["success"], f"{method}: {answer['msg']}"
        return answer

    def request(self, method, **params):
        """Send a request; return the answer."""
        answer, error = self._request(method, params)
        assert not error, f"{method}: {error}\n{self.told()}"
        return answer

    def _request(self, method, params=None, timeout_s=30.0):
        from bluesky_queueserver.manager.comms import zmq_single_request

        return zmq_single_request(
            method, params, timeout=int(1000 * timeout_s), zmq_server_address=self.address
        )

    def open(self):
        """Open the environment, which takes a while; see `wait`."""
        deadline = time.monotonic() + START_S
        while self._request("status", timeout_s=2.0)[0] is None:
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < deadline, self.told()
        self.ask("environment_open")

    def add(self, plan, *args, **kwargs):
        """Put a plan into the queue; return its uid there."""
        item = {"item_type": "plan", "name": plan, "args": args, "kwargs": kwargs}
        added = self.ask("queue_item_add", item=item, user="test", user_group="primary")
        return added["item"]["item_uid"]

    def wait(self, timeout_s, **wanted):
        """Wait for a status."""
        deadline = time.monotonic() + timeout_s
        while (status := self.request("status")) and any(status[k] != v for k, v in wanted.items()):
            assert time.monotonic() < deadline, f"{wanted} didn't come: {status}\n{self.told()}"
            time.sleep(0.1)

    def history(self):
        """Return the results of plans that have run, by their uids."""
        return {item["item_uid"]: item["result"] for item in self.ask("history_get")["items"]}

    def told(self):
        """Return all that it printed."""
        return self.log.read_text(errors="replace")

    def close(self):
        kill_with_children(self.process)
        self._redis.shutdown()
        self._redis.server_close()


def descendants(pid):
    """Return the processes that a process and its children have started."""
    return psutil.Process(pid).children(recursive=True)


def kill_with_children(process):
    """End a process, whatever it is doing, and what it left."""
    left = []
    with contextlib.suppress(psutil.NoSuchProcess):
        left = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def free_port():
    """Return a port that nobody on this machine serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

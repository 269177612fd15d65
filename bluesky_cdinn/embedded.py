"""A Tiled server of one's own for a directory: found if a process serves it already, started if not.

The server is a child process, so that its work never holds the interpreter of a RunEngine up.
"""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from bluesky_cdinn.errors import StoreUnavailable

logger = logging.getLogger(__name__)

SERVER_FILE = "server.json"
ALREADY_SERVED = 75
"""Exit code of a server that found another one on its directory."""

# The first start on a directory makes its databases.
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Address:
    """Where a Tiled server listens.

    Parameters
    ----------
    uri
        Without the key.
    api_key
        Never shown.
    """

    uri: str
    api_key: str | None = field(default=None, repr=False)

    def answers(self, timeout_s: float = 2.0) -> bool:
        """Whether a Tiled server is there now."""
        return "api_version" in self._ask("/", timeout_s)

    def lets_in(self, timeout_s: float = 2.0) -> bool:
        """Whether the server that is there now is the one that the key is for."""
        return "data" in self._ask("/metadata/", timeout_s)

    def listens(self, timeout_s: float = 2.0) -> bool:
        """Whether anybody takes connections there now, without a word to whom; False if only a proxy does."""
        url = httpx.URL(self.uri)
        proxies = {} if self.is_local or proxy_bypass(url.host) else getproxies()
        if proxies.keys() & {url.scheme, "all"}:
            return False
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            socket.create_connection((url.host, port), timeout_s).close()
        except OSError:
            return False
        return True

    def _ask(self, path: str, timeout_s: float) -> Mapping[str, Any]:
        """Return what the server says; nothing where it is down, refuses, or is no Tiled server."""
        headers = {"Authorization": f"Apikey {self.api_key}"} if self.api_key else {}
        with contextlib.suppress(httpx.HTTPError, ValueError):
            # Setting up TLS takes longer than asking.
            secure = self.uri.startswith("https:")
            with httpx.Client(trust_env=not self.is_local, timeout=timeout_s, verify=secure) as client:
                root = self.uri.split("/api/v1")[0].rstrip("/")
                said = client.get(f"{root}/api/v1{path}", headers=headers)
                if said.is_success and isinstance(content := said.json(), Mapping):
                    return content
        return {}

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where no proxy stands between."""
        return httpx.URL(self.uri).host in ("127.0.0.1", "localhost", "::1")


class EmbeddedServer:
    """The server of one directory.

    Parameters
    ----------
    directory
        Where data, databases and logs persist.
    readable_storage
        Folders of detector files that may be served.
    port
        0 takes any free one.
    """

    def __init__(self, directory: Path, readable_storage: Sequence[Path] = (), port: int = 0) -> None:
        self.directory = directory.resolve()
        self._readable = readable_storage
        self._port = port
        self._lock = threading.Lock()
        self._owned: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _stop, self._owned)

    def address(self) -> Address:
        """Return where the directory is served, starting a server when nobody serves it.

        Raises
        ------
        StoreUnavailable
            The server doesn't come up.
        """
        with self._lock:
            deadline = time.monotonic() + _START_TIMEOUT_S
            started = False
            while time.monotonic() < deadline:
                found = self._published()
                # What a dead server left may lead to a stranger who was given its port.
                if found is not None and found.lets_in():
                    return found
                if not self._is_running():
                    code = self._owned.pop().returncode if self._owned else None
                    if started and code not in (0, ALREADY_SERVED):
                        raise StoreUnavailable(f"{self._name} ended with code {code}; its log is {self.log}")
                    self._owned.append(self._start())
                    started = True
                time.sleep(0.1)
        raise StoreUnavailable(
            f"{self._name} didn't answer within {_START_TIMEOUT_S:g} s; its log is {self.log}"
        )

    @property
    def pid(self) -> int | None:
        """Of the server, where this object started it."""
        return self._owned[0].pid if self._is_running() else None

    def close(self) -> None:
        """Stop the server if this object started it; a later `address` starts it again."""
        _stop(self._owned)

    def _published(self) -> Address | None:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            said = json.loads((self.directory / SERVER_FILE).read_text())
            return Address(said["uri"], said["api_key"])
        return None

    @property
    def _name(self) -> str:
        return f"the embedded Tiled server on {self.directory}"

    @property
    def log(self) -> Path:
        """File with all that servers of this directory printed."""
        return self.directory / "server.log"

    def _is_running(self) -> bool:
        return bool(self._owned) and self._owned[0].poll() is None

    def _start(self) -> subprocess.Popen[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "bluesky_cdinn.tiled_main", str(self.directory)]
        command += ["--port", str(self._port)]
        for folder in self._readable:
            command += ["--readable", str(folder)]
        logger.info("starting %s", self._name)
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the prompt must not stop the server.
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )


def _stop(owned: list[subprocess.Popen[bytes]]) -> None:
    while owned:
        process = owned.pop()
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

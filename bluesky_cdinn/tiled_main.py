"""The embedded Tiled server's process: `python -m bluesky_cdinn.tiled_main`, started by `embedded`.

It serves one directory until its standard input ends, which is when the process that started it ends, or
until SIGTERM. While it serves, ``server.json`` in the directory says to every process of the same user where.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import sys
from pathlib import Path
from typing import Any

from bluesky_tiled_plugins.exporters import json_seq_exporter
from tiled.media_type_registration import default_serialization_registry
from tiled.server import SimpleTiledServer

from bluesky_cdinn.embedded import ALREADY_SERVED, SERVER_FILE
from bluesky_cdinn.tiled_speed import hasten

_ORPHAN_CHECK_S = 2.0


def main() -> None:
    """Serve the directory given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--readable", type=Path, action="append", default=[], help="folder of detector files")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(ALREADY_SERVED)
        _serve(directory, arguments.readable, arguments.port)


def _serve(directory: Path, readable: list[Path], port: int) -> None:
    # Without it run.documents() answers 406.
    default_serialization_registry.register("BlueskyRun", "application/json-seq", json_seq_exporter)
    hasten()
    server = SimpleTiledServer(
        directory,
        api_key=secrets.token_hex(16),
        port=port,
        readable_storage=[str(path.resolve()) for path in readable],
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        where = {"uri": f"http://127.0.0.1:{server.port}", "api_key": server.api_key, "pid": os.getpid()}
        _publish(directory / SERVER_FILE, where)
        _wait_for_parent()
    finally:
        with contextlib.suppress(FileNotFoundError):
            (directory / SERVER_FILE).unlink()
        server.close()


def _publish(path: Path, where: dict[str, Any]) -> None:
    provisional = path.with_suffix(".tmp")
    provisional.unlink(missing_ok=True)
    # The key opens the whole catalog: nobody else may read it, at no moment.
    descriptor = os.open(provisional, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(where, file)
    provisional.rename(path)


def _wait_for_parent() -> None:
    parent, leash = os.getppid(), sys.stdin.fileno()
    while os.getppid() == parent:
        readable, _, _ = select.select([leash], [], [], _ORPHAN_CHECK_S)
        if readable and not os.read(leash, 4096):
            return


if __name__ == "__main__":
    main()

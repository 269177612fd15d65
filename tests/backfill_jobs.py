"""What the tests have a Dask worker do instead of a reconstruction."""

import os
import signal


def die(settings: str, order: str) -> None:
    """End the process as the kernel does when memory is out."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_environment(name: str) -> str | None:
    return os.environ.get(name)

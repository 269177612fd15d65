"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bluesky_cdinn.errors import InvalidInput


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of `path` when all of it was written, and not before."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Refuse a path that could not be written to, before hours of work end in its error.

    Raises
    ------
    InvalidInput
        The directory is absent or closed to this user, or the path is a directory itself.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InvalidInput(f"the directory of {path} must exist, {folder} does not: make it first")
    if path.is_dir():
        raise InvalidInput(f"a file's name is required, {path} is a directory")
    if not os.access(folder, os.W_OK):
        raise InvalidInput(f"the directory of {path} must be writable, {folder} is not")

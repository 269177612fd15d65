"""Files that are written whole or not at all, and files that lie elsewhere on another machine."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bluesky_cdinn.errors import InvalidInput


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of `path` when all of it was written, and not before."""
    with replacing_file(path) as part, part.open("r+b") as stream:
        yield stream


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path`, for what writes files by name; it takes its place as `replacing`."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    part.touch(exist_ok=False)
    try:
        yield part
        with part.open("rb") as stream:
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


def located(path: Path, paths: Mapping[str, str]) -> Path:
    """Return where this machine sees a file that another one names.

    Parameters
    ----------
    path
        As the other machine sees it.
    paths
        Folders as it sees them -> the same as this machine does; the longest that fits counts.
    """
    known = [folder for folder in paths if path.is_relative_to(folder)]
    if not known:
        return path
    folder = max(known, key=len)
    return Path(paths[folder]) / path.relative_to(folder)


def require_figure(path: Path) -> None:
    """Raise unless a figure can be written there: png, pdf or svg.

    Raises
    ------
    InvalidInput
        It can't be written, or its name says no such format.
    """
    require_writable(path)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InvalidInput(f"a figure's name must end in .png, .pdf or .svg, got {path.name}")

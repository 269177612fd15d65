"""A run's state on disk: whole or absent, the last few kept, the last whole one found again."""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bluesky_cdinn.errors import CdinnWarning, TrainingFailed
from bluesky_cdinn.files import replacing

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
KEPT = 2
# What a file that was cut short or changed may lead to on its way through zip archive and unpickler.
_DAMAGE = (
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    ValueError,
)
_NAME = re.compile(r"checkpoint-(\d{9})\.pt")


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after a step, and drop all but the last few.

    Parameters
    ----------
    folder
        Of the run; made where absent.
    step
        Steps taken.
    state
        Tensors, numbers, strings, and lists and mappings of them.

    Raises
    ------
    TrainingFailed
        It can't be written; earlier ones stay.
    """
    path = folder / f"checkpoint-{step:09d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            torch.save({"format_version": FORMAT_VERSION, "state": dict(state)}, stream)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in the latter
        raise TrainingFailed(
            f"a checkpoint must be written to {folder}, it can't be ({error}): make room, then resume"
        ) from error
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the last state that is whole; a damaged one is passed over with a warning.

    Only what `save_checkpoint` writes is unpickled: tensors and plain values, no code.

    Raises
    ------
    TrainingFailed
        There is none.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            _check(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["format_version"] == FORMAT_VERSION:
                return content["state"]
            reason = f"it has format version {content['format_version']}, not {FORMAT_VERSION}"
        except _DAMAGE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{path} can't be used, the one before it is: {reason}", CdinnWarning, stacklevel=2)
    held = f"none of its {len(paths)} can be read" if paths else "it holds none"
    raise TrainingFailed(f"a folder with a checkpoint is required to resume, {folder}: {held}")


def _check(path: Path) -> None:
    # torch writes each entry's checksum and doesn't look at it when it reads.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the last one last."""
    return sorted(path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name))


def sweep(folder: Path) -> None:
    """Remove what a kill in the middle of writing left behind."""
    for part in folder.glob(".checkpoint-*.part"):
        log.info("removing %s, which was never finished", part)
        part.unlink(missing_ok=True)

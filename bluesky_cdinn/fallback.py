"""A computation that runs out of memory -> the same one with less, and a note of what was given up.

Fewer starts first, since the batch of them is what fills a device; then the CPU, whose memory is larger.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from bluesky_cdinn.device import choose_device
from bluesky_cdinn.errors import ReconstructionFailed
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.settings import ReconstructionOptions

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# Two starts can still be compared, which is what the confidence rests on; one can't.
COMPARED = 2

# torch has a type of its own for a full GPU only; CPU allocations, FFTs and BLAS say it in words.
_WORDS = ("can't allocate memory", "out of memory", "alloc_failed", "memory allocation", "not enough memory")


def within_memory(
    compute: Callable[[ReconstructionOptions], _Result], options: ReconstructionOptions
) -> _Result:
    """Return what a computation gives with the options, or with as much of them as memory allows.

    Parameters
    ----------
    compute
        Called with options until it doesn't run out of memory. It must not keep anything between calls.
    options
        What is asked for.

    Returns
    -------
    _Result
        Where it is a `Reconstruction` that had to do with less, ``parameters["fallback"]`` lists every
        attempt that failed: ``device``, ``starts`` and the ``reason``.

    Raises
    ------
    ReconstructionFailed
        A single start on the CPU is too much too.
    """
    failed: list[dict[str, str | int]] = []
    for less in lesser(options):
        reason = ""
        try:
            result = compute(less)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if failed and isinstance(result, Reconstruction):
                return replace(result, parameters={**result.parameters, "fallback": failed})
            return result
        # Only here: while it was handled, the error held the frames that hold the memory.
        _release()
        failed.append({"device": less.device, "starts": less.starts, "reason": reason})
        logger.warning("%d starts on %s ran out of memory (%s)", less.starts, less.device, reason)
    raise ReconstructionFailed(
        f"memory ran out {len(failed)} times, the last time with {failed[-1]['starts']} start on "
        f"{failed[-1]['device']} ({failed[-1]['reason']}); set a smaller reconstruction.max_shape, or free "
        "memory"
    )


def lesser(options: ReconstructionOptions) -> Iterator[ReconstructionOptions]:
    """Yield options that need less and less memory, the given ones first, with the device's own name."""
    device = choose_device(options.device)
    if device.type != "cpu":
        for starts in _halved(options.starts, min(COMPARED, options.starts)):
            yield options.model_copy(update={"device": str(device), "starts": starts})
    for starts in _halved(options.starts, 1):
        yield options.model_copy(update={"device": "cpu", "starts": starts})


def _halved(number: int, least: int) -> Iterator[int]:
    while number > least:
        yield number
        number //= 2
    yield least


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

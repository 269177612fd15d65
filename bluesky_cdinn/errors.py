"""What can go wrong, under one base class.

Every message says what was required, what came instead, and what to do about it.
"""


class CdinnError(Exception):
    """Anything that this package raises on purpose."""


class InvalidInput(CdinnError, ValueError):
    """An argument, file or document doesn't hold what is needed."""


class MissingMetadata(CdinnError):
    """The geometry or another piece of metadata that physics needs was not given anywhere."""


class IncompleteScan(CdinnError):
    """A rocking curve holds too little to be reconstructed."""


class ReconstructionFailed(CdinnError):
    """The reconstruction itself failed; the message carries the worker's reason."""


class Cancelled(ReconstructionFailed):
    """The reconstruction was stopped on request before it was done."""


class WorkerDied(ReconstructionFailed):
    """The worker process ended, or was killed, more often than a job is tried again."""


class StoreUnavailable(CdinnError):
    """Tiled can't be reached, or refuses; what was to be stored lies in the spool directory."""


class DeviceUnavailable(CdinnError):
    """A device can't be reached: its IOC is down, elsewhere, or serves other records."""


class WeightsError(CdinnError):
    """A file of network weights is damaged, or doesn't fit what it is asked to do."""


class TrainingFailed(CdinnError):
    """Training can't go on: it diverged, its data stopped coming, or nothing in its folder can be resumed."""


class NotFound(CdinnError, KeyError):
    """No stored run fits the query."""

    # KeyError would show the repr of its message, quotes and escapes included.
    __str__ = Exception.__str__


class CdinnWarning(UserWarning):
    """Something that a scientist should look at, though the work goes on."""

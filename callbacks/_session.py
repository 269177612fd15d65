"""The live reconstruction that a session shares unless it is told otherwise."""

import threading

from bluesky_cdinn.callbacks._live import LiveReconstruction
from bluesky_cdinn.settings import Settings

_lock = threading.Lock()
_default: LiveReconstruction | None = None


def default_live(settings: Settings | None = None) -> LiveReconstruction:
    """Return the session's live reconstruction, made at the first call.

    Parameters
    ----------
    settings
        Only looked at by the call that makes it; None reads the settings file and the environment.
    """
    global _default
    with _lock:
        if _default is None:
            _default = LiveReconstruction(settings=settings)
        return _default


def set_default_live(live: LiveReconstruction | None) -> None:
    """Make another one the session's; None has the next `default_live` make a new one.

    The one before is not closed.
    """
    global _default
    with _lock:
        _default = live

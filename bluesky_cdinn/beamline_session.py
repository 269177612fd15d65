"""The session that a prompt or a queueserver works in, for as long as its process lives."""

import atexit
import sys
from contextlib import ExitStack
from multiprocessing.util import Finalize

import matplotlib
from bluesky.callbacks.best_effort import BestEffortCallback

from bluesky_cdinn.callbacks import set_default_live
from bluesky_cdinn.saved_metadata import SavedMetadata
from bluesky_cdinn.scan_display import ScanDisplay
from bluesky_cdinn.session import Session, open_session
from bluesky_cdinn.settings import Settings

QUIT_S = 30.0
"""A session that ends waits so long for crystals, and so long for Tiled."""

_open = ExitStack()


def start_session(settings: Settings | None = None) -> Session:
    """Open this process's session; it is closed when the process ends, or another one is started.

    Its RunEngine has metadata that outlive it (`SavedMetadata`). Raw runs go to Tiled by the spool, which is
    what keeps them while Tiled is away; rocking scans are reconstructed, and plans find that live
    reconstruction by themselves. What is shown: bluesky's tables, its plots where matplotlib is interactive,
    how far scan and crystal are, and one line on each crystal.

    Parameters
    ----------
    settings
        None reads the settings file and the environment.

    Raises
    ------
    InvalidInput
        The file of metadata is damaged.
    """
    settings = settings or Settings()
    close_session()
    metadata = SavedMetadata(settings.session.metadata)
    display = ScanDisplay()
    session = _open.enter_context(
        open_session(
            settings,
            display.progress,
            metadata=metadata,
            # A queueserver sends what comes back to another process, where not every plan's result can go.
            returns_result=not in_queueserver(),
        )
    )
    _open.callback(_settle, session, display, metadata)
    _open.callback(set_default_live, None)
    set_default_live(session.live)
    session.RE.subscribe(_best_effort())
    display.follow(session.RE, session.live)
    # The former for a process of multiprocessing's, which queueserver's is; they run no exit handlers.
    Finalize(None, close_session, exitpriority=100)
    atexit.register(close_session)
    return session


def close_session() -> None:
    """Close this process's session, if there is one: worker, store, and the Tiled server that it started."""
    _open.close()


def in_queueserver() -> bool:
    """Whether this process is a queueserver's, without importing it where it isn't."""
    queueserver = sys.modules.get("bluesky_queueserver")
    return queueserver is not None and queueserver.is_re_worker_active()


def _best_effort() -> BestEffortCallback:
    shown = BestEffortCallback()
    if not matplotlib.is_interactive():
        shown.disable_plots()
    return shown


def _settle(session: Session, display: ScanDisplay, metadata: SavedMetadata) -> None:
    """Wait for what is still computed, and leave nothing half told."""
    display.hide()
    metadata.save()
    if not session.live.wait(1.0):
        print(f"waiting up to {QUIT_S:g} s for a crystal ...", flush=True)
    session.live.close(timeout=QUIT_S)
    if not session.catalog.flush(QUIT_S):
        print(f"Tiled hasn't taken all yet; the rest waits in {session.catalog.settings.spool}", flush=True)

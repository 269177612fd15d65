"""What a plan needs to wait for a reconstruction as it waits for a motor."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, cast

from bluesky import protocols
from ophyd.status import Status
from ophyd.utils import InvalidState

from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.plans._protocols import LiveCallback

logger = logging.getLogger(__name__)


class OneSubscription:
    """Passes documents on to a live callback, unless it gets them already.

    A callback that gets each document twice would see every point measured twice. Subscriptions are
    served in their order, so one made before the plan has seen the start document before this has.

    Attributes
    ----------
    raw_uid
        Of the run that was opened last.
    """

    def __init__(self, live: LiveCallback) -> None:
        self.raw_uid = ""
        self._live = live
        self._passes_on = False

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        if name == "start":
            self.raw_uid = doc["uid"]
            self._passes_on = pending_result(self._live, doc["uid"]) is None
        if self._passes_on:
            self._live(name, doc)


class ResultWaiter:
    """A result to come, as something that the RunEngine can trigger and wait for.

    Its status is finished once there is a result, good or bad; it fails only if there is none in time.
    """

    name = "reconstruction"
    parent = None

    def __init__(self, future: Future[Any], timeout: float) -> None:
        self._future = future
        self._timeout = timeout

    def trigger(self) -> protocols.Status:
        """Return a status that is done when the result is there."""
        status = Status(obj=self, timeout=self._timeout)
        self._future.add_done_callback(lambda _: _finish(status))
        return cast(protocols.Status, status)


def _finish(status: Status) -> None:
    try:
        status.set_finished()
    except InvalidState:
        logger.info("a result came after the plan had stopped to wait for it")


def pending_result(live: LiveCallback, raw_uid: str) -> Future[Any] | None:
    """Return the result to come of a run, None if the callback hasn't seen its start document."""
    try:
        return live.result(raw_uid)
    except CdinnError:
        return None

"""A scan that a worker has claimed, between its start document and its result."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from bluesky_cdinn.callbacks import ReceivedRun
from bluesky_cdinn.summary import ReconstructionSummary


class ClaimedRun(ReceivedRun):
    """A scan that is this worker's.

    Attributes
    ----------
    heard
        When its last document came; `time.monotonic`, as all times here.
    handed_over
        Whether the live callback has had its stop document.
    result
        None until there is one.
    seen_stored
        Whether an earlier sweep found it whole in Tiled.
    patient_until
        When what came has to do; None while nothing is waited for, or Tiled is away.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        super().__init__(start)
        self.heard = time.monotonic()
        self.handed_over = False
        self.result: ReconstructionSummary | None = None
        self.seen_stored = False
        self.patient_until: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it is over and handed over, and its reconstruction isn't."""
        return self.handed_over and self.result is None

    def stop_in_its_place(self) -> dict[str, Any]:
        """Return the stop document for whoever didn't send one."""
        return {
            "uid": str(uuid4()),
            "time": time.time(),
            "run_start": self.uid,
            "exit_status": "fail",
            "reason": "its end didn't reach the worker",
            "num_events": {},
        }

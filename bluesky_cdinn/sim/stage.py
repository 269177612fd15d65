"""A simulated rocking stage: limits, finite speed, settling, and a readback that isn't quite the setpoint."""

# ophyd annotates its readings with a class of its own that a plain dict does not fit.
# pyright: reportIncompatibleMethodOverride=false

import threading
import time
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from bluesky.protocols import Location, Status
from ophyd import Component, Device, Kind, Signal
from ophyd.signal import InternalSignal
from ophyd.status import MoveStatus
from ophyd.utils import LimitError

from bluesky_cdinn.errors import InvalidInput

REFRESH_S = 0.02
"""How often the readback is refreshed while the stage moves, s of real time."""


@dataclass(eq=False)
class _Move:
    """One move under way. Its own thread is the only one that finishes its status."""

    start: float
    target: float
    duration_s: float
    status: MoveStatus
    halted: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    halted_with_success: bool = False


class RockingStage(Device):
    """Turns the crystal through its Bragg angle.

    Reads as ``{name}`` (where it is) and ``{name}_setpoint`` (where it was sent), both in deg. Its
    velocity (deg/s) and settle time (s, from arriving to being done) are configuration.

    Parameters
    ----------
    limits_deg
        (low, high); a target outside raises `ophyd.utils.LimitError` before anything moves.
    velocity_deg_s, settle_time_s
        What the signals ``velocity`` and ``settle_time`` hold at first.
    jitter_deg
        Standard deviation of where the stage stops about where it was sent.
    time_scale
        Real seconds for each simulated second; 0 moves at once.
    initial_deg
        Where it stands at first.
    seed
        Of the jitter.
    egu
        Unit of everything above that is in deg: "keV" makes it a monochromator.
    """

    SUB_READBACK = "readback"

    readback = Component(InternalSignal, value=0.0, kind=Kind.hinted)
    setpoint = Component(InternalSignal, value=0.0, kind=Kind.normal)
    velocity = Component(Signal, value=0.5, kind=Kind.config)
    settle_time = Component(Signal, value=0.0, kind=Kind.config)

    precision = 5

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str,
        limits_deg: tuple[float, float] = (-5.0, 5.0),
        velocity_deg_s: float = 0.5,
        settle_time_s: float = 0.05,
        jitter_deg: float = 0.0,
        time_scale: float = 1.0,
        initial_deg: float = 0.0,
        seed: int = 0,
        egu: str = "deg",
        **kwargs: Any,
    ) -> None:
        if not limits_deg[0] < limits_deg[1]:
            raise InvalidInput(f"limits_deg must be (low, high) with low < high, got {limits_deg}")
        if time_scale < 0:
            raise InvalidInput(f"time_scale must not be negative, got {time_scale}")
        super().__init__(prefix, name=name, **kwargs)
        self.limits = (float(limits_deg[0]), float(limits_deg[1]))
        self.egu = egu
        self._jitter_deg = jitter_deg
        self._time_scale = time_scale
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._move: _Move | None = None
        self._position = float(initial_deg)
        self.readback.name = self.name
        self.readback.put(self._position, internal=True)
        self.setpoint.put(self._position, internal=True)
        self.velocity.put(float(velocity_deg_s))
        self.settle_time.put(float(settle_time_s))

    @property
    def position(self) -> float:
        """Where the stage is, deg."""
        return self._position

    @property
    def moving(self) -> bool:
        """Whether a move is under way."""
        return self._move is not None

    def describe(self) -> dict[str, Any]:
        """Describe the readings, with their unit."""
        described = cast(dict[str, Any], super().describe())
        for data_key in described.values():
            data_key["units"] = self.egu
        return described

    def check_value(self, value: float, **kwargs: Any) -> None:
        """Raise `LimitError` for a target that isn't within the limits, or isn't a number."""
        low, high = self.limits
        if not low <= value <= high:
            raise LimitError(f"{self.name} must stay between {low} and {high} {self.egu}, got {value}")

    def locate(self) -> Location[float]:
        """Return where the stage was sent and where it is, deg."""
        return Location(setpoint=cast(float, self.setpoint.get()), readback=self._position)

    def set(self, position: float, *, timeout: float | None = None) -> Status:
        """Start to move; the status is done when the stage has arrived and settled.

        Parameters
        ----------
        position
            Target, deg.
        timeout
            Of the move, s.

        Raises
        ------
        LimitError
            If the target is outside the limits.
        RuntimeError
            If a move is under way.
        InvalidInput
            If ``velocity`` isn't positive.
        """
        self.check_value(position)
        speed = cast(float, self.velocity.get())
        settle = cast(float, self.settle_time.get())
        if not speed > 0:
            raise InvalidInput(f"{self.name}.velocity must be positive, got {speed} deg/s")
        with self._lock:
            if self._move is not None:
                raise RuntimeError(
                    f"{self.name} is moving to {self._move.target} deg: wait for that, or stop() it first"
                )
            # Were a failure of this status to stop the device, it could stop the next move instead.
            status = MoveStatus(
                self,
                position,
                timeout=timeout,
                settle_time=settle * self._time_scale,
                call_stop_on_failure=False,
            )
            duration = abs(position - self._position) / speed * self._time_scale
            self._move = _Move(self._position, float(position), duration, status)
        self.setpoint.put(self._move.target, internal=True)
        threading.Thread(
            target=self._travel, args=(self._move,), name=f"{self.name}-move", daemon=True
        ).start()
        # ophyd annotates its statuses a little wider than bluesky's protocol, which plans ask for.
        return cast(Status, status)

    def stop(self, *, success: bool = False) -> None:
        """Stop where the stage is; the move under way then counts as `success` says."""
        with self._lock:
            move = self._move
            if move is None:
                return
            move.halted_with_success = success
            move.halted.set()
        move.over.wait(timeout=10 * REFRESH_S)

    def _travel(self, move: _Move) -> None:
        """Carry out one move, in its own thread."""
        began = time.monotonic()
        while (left := began + move.duration_s - time.monotonic()) > 0:
            if move.halted.wait(min(REFRESH_S, left)):
                break
            travelled = min((time.monotonic() - began) / move.duration_s, 1.0)
            self._show(move.start + travelled * (move.target - move.start))
        else:
            self._show(move.target + self._jitter_deg * self._rng.standard_normal())
        with self._lock:
            self._move = None
        move.over.set()
        self._finish(move)

    def _show(self, position: float) -> None:
        self._position = float(position)
        self.readback.put(self._position, internal=True)
        self._run_subs(sub_type=self.SUB_READBACK, timestamp=time.time(), value=self._position)

    def _finish(self, move: _Move) -> None:
        if move.status.done:  # it timed out
            return
        if move.halted.is_set() and not move.halted_with_success:
            stopped = f"{self.name} was stopped at {self._position:.5f} on its way to {move.target:.5f} deg"
            move.status.set_exception(RuntimeError(stopped))
        else:
            move.status.set_finished()

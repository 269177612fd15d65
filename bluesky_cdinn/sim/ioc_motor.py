"""An EPICS motor record that turns the simulated crystal: what clients see of one, over Channel Access."""

import asyncio
import time
from functools import partial
from typing import Any

from caproto.server import PVGroup, pvproperty

REFRESH_S = 0.02
"""How often the readback is posted while the motor moves."""

LEAST_SPEED_DEG_S = 1e-4


class MotorRecord(PVGroup):
    """A motor record: limits, finite speed, stop, and a done-moving flag for every move.

    A put outside ``.LLM`` to ``.HLM`` is refused; a new ``.VAL`` while it moves takes over. Homing, offsets,
    backlash and retries are not played.

    Parameters
    ----------
    limits_deg
        (low, high).
    velocity_deg_s
        What ``.VELO`` holds at first.
    initial_deg
        Where it stands at first.
    """

    record = pvproperty(value=0.0, name="", record="motor", precision=5, units="deg")

    def __init__(
        self,
        prefix: str,
        *,
        limits_deg: tuple[float, float],
        velocity_deg_s: float = 0.5,
        initial_deg: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.position_deg = float(initial_deg)
        self._limits = limits_deg
        self._velocity = velocity_deg_s
        self._target = self.position_deg
        self._asked = asyncio.Event()
        self.record.putter = self._go
        fields = self.record.field_inst
        fields.stop.putter = self._stop
        fields.user_low_limit.putter = partial(self._set_limit, "lower_ctrl_limit")
        fields.user_high_limit.putter = partial(self._set_limit, "upper_ctrl_limit")

    async def set_up(self) -> None:
        """Give the record's fields what they hold at first."""
        fields, (low, high) = self.record.field_inst, self._limits
        for position in (self.record, fields.user_readback_value):
            await position.write_metadata(precision=5, units="deg")
            await position.write(self.position_deg, verify_value=False)
        await fields.engineering_units.write("deg")
        await fields.limit_violation.write(0)
        await fields.velocity.write(self._velocity)
        await fields.user_low_limit.write(low)
        await fields.user_high_limit.write(high)

    async def run(self) -> None:
        """Move whenever asked, until cancelled."""
        while True:
            await self._asked.wait()
            await self._move()

    async def _go(self, _: Any, value: Any) -> None:
        """Take a new target; the channel has refused one beyond its control limits already."""
        self._target = float(value)
        self._asked.set()

    async def _set_limit(self, name: str, _: Any, value: Any) -> None:
        """Refuse puts beyond it, and tell clients, who do so themselves."""
        await self.record.write_metadata(**{name: float(value)})

    async def _stop(self, _: Any, value: Any) -> int:
        """Stop where it is; the target is then there."""
        if value and self._asked.is_set():
            self._target = self.position_deg
            await self.record.write(self.position_deg, verify_value=False)
        return 0

    async def _move(self) -> None:
        fields = self.record.field_inst
        await fields.direction_of_travel.write(int(self._target >= self.position_deg))
        await fields.done_moving_to_value.write(0)
        await fields.motor_is_moving.write(1)
        last = time.monotonic()
        while (left := self._target - self.position_deg) != 0:
            speed = max(fields.velocity.value, LEAST_SPEED_DEG_S)
            await asyncio.sleep(min(REFRESH_S, abs(left) / speed))
            now = time.monotonic()
            step, last = speed * (now - last), now
            left = self._target - self.position_deg
            await self._show(self.position_deg + max(-step, min(step, left)))
        # The readback stands before the move is done: clients read it then.
        self._asked.clear()
        await fields.motor_is_moving.write(0)
        await fields.done_moving_to_value.write(1)

    async def _show(self, position: float) -> None:
        self.position_deg = position
        await self.record.field_inst.user_readback_value.write(position)

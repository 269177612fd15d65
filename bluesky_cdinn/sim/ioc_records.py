"""A table of process variables: plain values, some of which set something off when a client puts them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from caproto import ChannelChar, ChannelData, ChannelDouble, ChannelEnum, ChannelInteger, ChannelString

OnPut = Callable[[Any], Awaitable[Any]]
"""Given what a client writes; returns what is to be stored."""

TEXT_LENGTH = 256


class Records:
    """Process variables under one prefix.

    Parameters
    ----------
    prefix
        Of all names.

    Attributes
    ----------
    pvdb
        The channels by their full name, as caproto's server takes them.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.pvdb: dict[str, ChannelData] = {}

    def add(
        self,
        name: str,
        value: Any,
        *,
        on_put: OnPut | None = None,
        choices: Sequence[str] | None = None,
        long: bool = False,
        **more: Any,
    ) -> None:
        """Add one process variable, whose type is its value's.

        Parameters
        ----------
        name
            After the prefix.
        value
            At first: a float, an int, a text, or the place of one of `choices`.
        on_put
            What a client's put sets off.
        choices
            Make it an enumeration.
        long
            Whether a text may be longer than 40 characters; it is an array of characters then.
        **more
            For the channel: ``units``, ``precision``, ``max_length``, ...
        """
        more = {"value": value, **more}
        if choices is not None:
            kind, more = ChannelEnum, {**more, "enum_strings": choices, "value": choices[value]}
        elif isinstance(value, str):
            kind, more = (ChannelChar, {"max_length": TEXT_LENGTH, **more}) if long else (ChannelString, more)
        else:
            first = value[0] if isinstance(value, Sequence) else value
            kind = ChannelDouble if isinstance(first, float) else ChannelInteger
        self.pvdb[self.prefix + name] = _watched(kind, on_put)(**more)

    def pair(self, name: str, value: Any, *, on_put: OnPut | None = None, **more: Any) -> None:
        """Add a setpoint and the readback that follows it, ``name`` and ``name_RBV``, as areaDetector has."""

        async def follow(written: Any) -> Any:
            stored = written if on_put is None else await on_put(written)
            await self.set(f"{name}_RBV", stored)
            return stored

        self.add(name, value, on_put=follow, **more)
        self.add(f"{name}_RBV", value, **more)

    def get(self, name: str) -> Any:
        """Return a value; of a choice its place among the choices."""
        channel = self.pvdb[self.prefix + name]
        if isinstance(channel, ChannelEnum):
            return channel.raw_value
        value = channel.value
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    async def set(self, name: str, value: Any) -> None:
        """Set a value, of a choice its place, and tell the clients that watch it."""
        channel = self.pvdb[self.prefix + name]
        stored = channel.enum_strings[value] if isinstance(channel, ChannelEnum) else value
        await channel.write(stored, verify_value=False)

    async def set_pair(self, name: str, value: Any) -> None:
        """Set a setpoint and its readback without what a put sets off."""
        await self.set(name, value)
        await self.set(f"{name}_RBV", value)


def _watched(kind: type[ChannelData], on_put: OnPut | None) -> type[ChannelData]:
    """Return a kind of channel that calls `on_put` with what clients write."""
    if on_put is None:
        return kind

    class Watched(kind):
        async def verify_value(self, data: Any) -> Any:
            # caproto hands over what a client wrote in an array of one.
            value: Any = data[0] if isinstance(data, list) and len(data) == 1 else data
            if not isinstance(self, ChannelEnum):
                return await on_put(value)
            place = self.enum_strings.index(value) if isinstance(value, str) else int(value)
            return self.enum_strings[await on_put(place)]

    return cast(type[ChannelData], Watched)

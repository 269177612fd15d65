"""The way to Tiled that the settings name."""

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
from tiled.client import from_profile, from_uri
from tiled.client.context import CannotPrompt
from tiled.client.utils import ClientError
from tiled.profiles import ProfileNotFound
from tiled.structures.core import Spec

from bluesky_cdinn.embedded import Address, EmbeddedServer
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.settings import TiledSettings
from bluesky_cdinn.spool import Kind

TRUST_S = 3.0
"""What Tiled has just said is believed for so long, while something listens at its address."""


class Connection:
    """The client of the server that the settings name, made when first needed and again when it was lost."""

    def __init__(self, settings: TiledSettings) -> None:
        self._settings = settings
        embedded = settings.uri is None and settings.profile is None
        self._embedded = EmbeddedServer(settings.directory, settings.readable_storage) if embedded else None
        self._root: Any = None
        self._address: Address | None = None
        self._trusted_until = 0.0
        self._found: dict[str, Any] = {}
        self._lock = threading.RLock()

    def address(self) -> Address:
        """Connect if that is not done, and return where to."""
        with self._lock:
            self._connect()
            assert self._address is not None
            return self._address

    def answers(self, *, sure: bool = False) -> bool:
        """Whether the server is there, asked anew to be ``sure``; False before the first connection."""
        address = self._address
        if address is None:
            return False
        believed = time.monotonic() < self._trusted_until
        # To ask takes a hundred times what it takes to knock, and for a scan it is done a dozen times.
        if believed and not sure and address.listens():
            return True
        there = address.lets_in() if self._embedded is not None else address.answers()
        # Belief isn't prolonged, or containers that are gone were never looked for again.
        if not (there and believed):
            self._found = {}
            self._trusted_until = time.monotonic() + TRUST_S if there else 0.0
        return there

    def container(self, kind: Kind, *, sure: bool = False) -> Any:
        """Return the client of one kind of runs, its container made if there is none.

        Parameters
        ----------
        kind
            Of runs.
        sure
            Ask the server first, whatever it has just said: for who can't try again.

        Raises
        ------
        StoreUnavailable
            Tiled can't be reached, or doesn't give the container.
        """
        return self.folder(getattr(self._settings, kind), Spec("CatalogOfBlueskyRuns", "3.0"), sure=sure)

    def folder(self, path: str, *specs: Spec, sure: bool = False) -> Any:
        """Return the client of any container, made with these specs if there is none; ``sure`` as above.

        Raises
        ------
        StoreUnavailable
            Tiled can't be reached, or doesn't give the container.
        """
        with self._lock:
            node = self._connect(sure=sure)
            if (found := self._found.get(path)) is not None:
                return found.new_variation()
            try:
                found = self._found[path] = _made(node, path.split("/"), specs)
                # A copy each: what a client remembers of its container is of the moment.
                return found.new_variation()
            except (httpx.HTTPError, LookupError, ValueError) as error:
                raise StoreUnavailable(
                    f"Tiled at {self._name()} doesn't give the container {path!r}: {error}"
                ) from error

    def close(self) -> None:
        """Forget the client, and stop the embedded server if this process started it."""
        with self._lock:
            self._root, self._found, self._trusted_until = None, {}, 0.0
            if self._embedded is not None:
                self._embedded.close()

    def _connect(self, *, sure: bool = False) -> Any:
        if self._root is not None and self.answers(sure=sure):
            return self._root
        self._root, self._found = None, {}
        try:
            self._root, self._address = self._open()
        except (httpx.HTTPError, OSError, ProfileNotFound) as error:
            raise StoreUnavailable(f"Tiled at {self._name()} can't be reached: {error}") from error
        except (RuntimeError, CannotPrompt) as error:
            # What Tiled's client raises where a key is missing, in several lines of its own idiom.
            raise StoreUnavailable(
                f"Tiled at {self._name()} doesn't let this session in: give a key in CDINN_TILED__API_KEY "
                f"({str(error).strip().partition(chr(10))[0]})"
            ) from error
        self._trusted_until = time.monotonic() + TRUST_S
        return self._root

    def _open(self) -> tuple[Any, Address]:
        settings = self._settings
        key = settings.api_key.get_secret_value() if settings.api_key else None
        if settings.profile is not None and settings.uri is None:
            root = from_profile(settings.profile, **({"api_key": key} if key else {}))
            return root, Address(str(root.context.api_uri), key or root.context.api_key)
        address = self._embedded.address() if self._embedded is not None else Address(str(settings.uri), key)
        # Tiled's own client asks again and again for most of a minute.
        if not address.answers():
            raise StoreUnavailable(f"Tiled at {self._name()} doesn't answer; start it, or set tiled.uri")
        root = from_uri(address.uri, api_key=address.api_key, trust_env=not address.is_local)
        return root, Address(address.uri, address.api_key or root.context.api_key)

    def _name(self) -> str:
        return str(self._settings.uri or self._settings.profile or self._settings.directory)


def _made(node: Any, parts: Sequence[str], specs: Sequence[Spec]) -> Any:
    for depth, part in enumerate(parts, start=1):
        if part not in node:
            # Another process may just have made it.
            with contextlib.suppress(ClientError):
                node.create_container(part, specs=list(specs) if depth == len(parts) else [])
        node = node[part]
    return node

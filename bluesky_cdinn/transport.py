"""Documents between processes: who sends and who follows says where by an address, and needn't know by what.

``tcp://host:port`` is a 0MQ proxy of bluesky's (``bluesky-0MQ-proxy``), ``kafka://host:port,host:port/topic``
a Kafka broker. What travels is what `bluesky_cdinn.wire` makes of documents.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.settings import RemoteSettings
from bluesky_cdinn.transport_kafka import KafkaFeed, KafkaSender
from bluesky_cdinn.transport_zmq import ProxyFeed, ProxySender

Take = Callable[[str, Mapping[str, Any]], object]


class Sender(Protocol):
    """The way out; used by one thread."""

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until somebody is there to send to; False when nobody is within the time."""
        ...

    def send(self, name: str, doc: Mapping[str, Any]) -> None:
        """Send one document.

        Raises
        ------
        InvalidInput
            It can't travel.
        OSError
            It was not taken.
        """
        ...

    def close(self) -> None:
        """Send what is under way, for a moment, and let go."""
        ...


class Feed(Protocol):
    """The way in."""

    def follow(self, take: Take, stopping: threading.Event) -> None:
        """Call `take` with each document that comes, in this thread, until `stopping` is set.

        What is no document is logged and left out. Connections that break are made again.
        """
        ...


@dataclass(frozen=True)
class Address:
    """Where documents are sent to, or come from.

    Parameters
    ----------
    scheme
        "tcp" or "kafka".
    hosts
        "host:port", several with commas.
    topic
        Of the broker; empty for a proxy.
    """

    scheme: str
    hosts: str
    topic: str = ""

    @classmethod
    def parse(cls, address: str, *, allow_network: bool) -> "Address":
        """Read an address as the settings write it.

        Raises
        ------
        InvalidInput
            It is none, or leads to another machine though `allow_network` is False.
        """
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        topic = parts.path.strip("/")
        hosts = [host.rpartition(":") for host in parts.netloc.split(",")]
        if (
            parts.scheme not in ("tcp", "kafka")
            or not all(host and port.isdecimal() for host, _, port in hosts)
            or bool(topic) != (parts.scheme == "kafka")
            or "@" in parts.netloc
        ):
            raise InvalidInput(
                "an address must be tcp://host:port of a 0MQ proxy or kafka://host:port/topic, "
                f"got {address!r}"
            )
        require_loopback(*(host for host, _, _ in hosts), allow_network=allow_network)
        return cls(parts.scheme, parts.netloc, topic)


def require_loopback(*hosts: str, allow_network: bool) -> None:
    """Refuse hosts that are not this machine, unless that is wanted.

    Raises
    ------
    InvalidInput
        One of them isn't.
    """
    elsewhere = [host for host in hosts if not _is_loopback(host)]
    if elsewhere and not allow_network:
        raise InvalidInput(
            f"documents stay on this machine unless told otherwise, {elsewhere[0]} is not it: they travel "
            "unencrypted and anyone who reaches the port may send them; where the network is your own, "
            "set remote.allow_network = true"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def open_sender(settings: RemoteSettings) -> Sender:
    """Return the way out that the settings name; it connects in the background.

    Raises
    ------
    InvalidInput
        The address is wrong.
    """
    address = Address.parse(settings.publish, allow_network=settings.allow_network)
    if address.scheme == "kafka":
        return KafkaSender(address.hosts, address.topic, settings.kafka)
    return ProxySender(address.hosts)


def open_feed(settings: RemoteSettings) -> Feed:
    """Return the way in that the settings name.

    Raises
    ------
    InvalidInput
        The address is wrong.
    """
    address = Address.parse(settings.follow, allow_network=settings.allow_network)
    if address.scheme == "kafka":
        return KafkaFeed(address.hosts, address.topic, settings.kafka)
    return ProxyFeed(address.hosts)

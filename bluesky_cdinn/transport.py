"""Documents between processes: who sends and who follows says where by an address, and needn't know by what.

``tcp://host:port`` is a 0MQ proxy of bluesky's (``bluesky-0MQ-proxy``), ``kafka://host:port,host:port/topic``
a Kafka broker. What travels is what `bluesky_cdinn.wire` makes of documents.
"""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.settings import RemoteSettings
from bluesky_cdinn.transport_kafka import KafkaFeed, KafkaSender
from bluesky_cdinn.transport_zmq import ProxyFeed, ProxySender

Take = Callable[[str, Mapping[str, Any]], object]

# "name:port", "10.0.0.1:port" or "[IPv6]:port".
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")


class Sender(Protocol):
    """The way out; used by one thread."""

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until somebody is there to send to; False when nobody is within the time."""
        ...

    def send(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Send one document; False when it is to be tried again, since too much is under way.

        Raises
        ------
        InvalidInput
            It can't travel.
        OSError
            It is lost.
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
        "host:port", of brokers several with commas.
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
        scheme, _, rest = (address if "://" in address else f"tcp://{address}").partition("://")
        netloc, _, topic = rest.rstrip("/").partition("/")
        hosts = [_host(host) for host in netloc.split(",")]
        known = [host for host in hosts if host is not None]
        one_proxy = scheme == "tcp" and len(hosts) == 1 and not topic
        if len(known) < len(hosts) or not (one_proxy or (scheme == "kafka" and topic)):
            raise InvalidInput(
                "an address must be tcp://host:port of one 0MQ proxy or kafka://host:port,host:port/topic, "
                f"ports from 1 to 65535, IPv6 in brackets, got {address!r}"
            )
        require_loopback(*known, allow_network=allow_network)
        return cls(scheme, netloc, topic)


def _host(host_and_port: str) -> str | None:
    """Return the host, or None where the text is no "host:port"."""
    match = _HOST.fullmatch(host_and_port)
    return match[1] if match is not None and 1 <= int(match[2]) <= 65535 else None


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

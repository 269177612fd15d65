"""Documents by a Kafka broker, through bluesky-kafka (extra ``kafka``)."""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import msgpack

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.wire import MAX_BYTES, pack, unpack

logger = logging.getLogger(__name__)

_FLUSH_S = 2.0
_POLL_S = 0.1
_FULL_S = 1.0
# Documents of one publisher stay in order, in one partition.
_KEY = "cdinn"


class KafkaSender:
    """Sends documents to one topic.

    Parameters
    ----------
    hosts
        The brokers, "host:port" with commas.
    topic
        Where to.
    options
        More for librdkafka: ``security.protocol``, ``sasl.username``, ...
    """

    def __init__(self, hosts: str, topic: str, options: Mapping[str, Any]) -> None:
        ours = {"enable.idempotence": True, "message.max.bytes": MAX_BYTES, "linger.ms": 5}
        self._producer = _bluesky_kafka().BasicProducer(
            topic, hosts.split(","), _KEY, {**ours, **options}, on_delivery=_report, serializer=pack
        )

    def wait_ready(self, timeout_s: float) -> bool:
        """Return True at once: librdkafka keeps what it is given until a broker is there."""
        return True

    def send(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Send one document; False when librdkafka's queue is full, `InvalidInput` if it can't travel."""
        from confluent_kafka import KafkaException

        try:
            self._producer.produce([name, doc])
        except BufferError:
            self._producer._producer.poll(_FULL_S)
            return False
        except KafkaException as error:
            raise OSError(f"Kafka doesn't take it: {error}") from error
        return True

    def close(self) -> None:
        """Send what is under way, for two seconds at most."""
        self._producer._producer.flush(_FLUSH_S)


class KafkaFeed:
    """Follows one topic from now on; everyone who follows gets every document.

    Parameters
    ----------
    hosts
        The brokers, "host:port" with commas.
    topic
        Where from.
    options
        More for librdkafka.
    """

    def __init__(self, hosts: str, topic: str, options: Mapping[str, Any]) -> None:
        self._hosts = hosts
        self._topic = topic
        self._options = options

    def follow(self, take: Callable[[str, Mapping[str, Any]], object], stopping: threading.Event) -> None:
        """Call `take` with each document until `stopping` is set."""
        ours = {
            "auto.offset.reset": "latest",
            "fetch.message.max.bytes": MAX_BYTES,
            "enable.auto.commit": False,
        }
        consumer = _bluesky_kafka().BasicConsumer(
            [self._topic],
            self._hosts.split(","),
            # A group of one's own: those of one group would share the documents out among them.
            f"cdinn-{uuid.uuid4()}",
            {**ours, **self._options},
            _POLL_S,
            deserializer=unpack,
            process_message=lambda _, __, message: _hand_on(message, take),
        )
        consumer.start_polling(continue_polling=lambda: not stopping.is_set())


def _hand_on(message: Any, take: Callable[[str, Mapping[str, Any]], object]) -> None:
    match message:
        case [str() as name, dict() as doc]:
            take(name, doc)
        case _:
            raise InvalidInput(f"a message must be a name and a document, got {str(message)[:100]}")


def _report(error: Any, message: Any) -> None:
    if error is not None:
        logger.error("Kafka has lost a document of %d bytes: %s", len(message), error)


def _not_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def _bluesky_kafka() -> Any:
    """Import it, and undo what its import does to msgpack: to unpickle whatever calls itself an array."""
    kept = {name: value for name, value in vars(msgpack).items() if not name.startswith("_")}
    try:
        from bluesky_kafka import consume, produce
    except ImportError as error:
        raise InvalidInput(
            f"an address kafka://... needs the extra kafka: pip install 'bluesky-cdinn[kafka]' ({error})"
        ) from error
    finally:
        for name, value in kept.items():
            setattr(msgpack, name, value)
    # At DEBUG it logs its whole configuration, passwords too.
    logging.getLogger("bluesky_kafka").addFilter(_not_debug)
    return SimpleNamespace(BasicProducer=produce.BasicProducer, BasicConsumer=consume.BasicConsumer)

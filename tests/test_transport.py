"""Documents between processes, by a real proxy and a real (mock) broker."""

import threading
import time

import numpy as np
import pytest
import zmq
from bluesky.callbacks.zmq import Publisher, RemoteDispatcher
from remote_helpers import Following, Proxy, free_port, proxy

from bluesky_cdinn.callbacks import DocumentBroadcast
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.settings import RemoteSettings, Settings
from bluesky_cdinn.transport import Address, open_feed, open_sender
from bluesky_cdinn.wire import pack, unpack

DOCUMENTS = [
    ("start", {"uid": "x", "time": 1.0}),
    ("event", {"data": {"frame": np.arange(6, dtype="<u2").reshape(2, 3)}}),
    ("stop", {"run_start": "x"}),
]


def assert_came(came, sent=DOCUMENTS):
    assert [name for name, _ in came] == [name for name, _ in sent]
    for (_, one), (_, other) in zip(came, sent, strict=True):
        assert one.keys() == other.keys()
    np.testing.assert_array_equal(came[1][1]["data"]["frame"], sent[1][1]["data"]["frame"])


@pytest.mark.parametrize(
    ("address", "scheme", "hosts", "topic"),
    [
        ("tcp://127.0.0.1:5577", "tcp", "127.0.0.1:5577", ""),
        ("localhost:5577", "tcp", "localhost:5577", ""),
        ("tcp://[::1]:5577", "tcp", "[::1]:5577", ""),
        (
            "kafka://127.0.0.1:9092,localhost:9093/bluesky",
            "kafka",
            "127.0.0.1:9092,localhost:9093",
            "bluesky",
        ),
    ],
)
def test_addresses(address, scheme, hosts, topic):
    assert Address.parse(address, allow_network=False) == Address(scheme, hosts, topic)


@pytest.mark.parametrize(
    "address",
    ["", "5577", "tcp://127.0.0.1", "udp://127.0.0.1:1", "kafka://127.0.0.1:9092", "tcp://127.0.0.1:1/x",
     "tcp://user:secret@127.0.0.1:1", "tcp://127.0.0.1:1,127.0.0.1:2", "tcp://127.0.0.1:0", "tcp://127.0.0.1:65536",
     "tcp://::1:5577", "tcp://[::1:5577", "tcp://*:5577", "tcp://a b:1", "tcp://127.0.0.1:1?x=1",
     "kafka://127.0.0.1:99999/t"],
)  # fmt: skip
def test_what_is_no_address(address):
    with pytest.raises(InvalidInput, match="must be tcp://host:port"):
        Address.parse(address, allow_network=True)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://10.0.0.1:5577",
        "tcp://0.0.0.0:5577",
        "tcp://127.0.0.1.evil.org:1",
        "kafka://127.0.0.1:1,broker:2/t",
    ],
)
def test_another_machine_must_be_wanted(address):
    for open_it, name in ((open_sender, "publish"), (open_feed, "follow")):
        with pytest.raises(InvalidInput, match="allow_network"):
            open_it(RemoteSettings(**{name: address}))
    assert Address.parse(address, allow_network=True)


def test_documents_go_by_a_proxy():
    with (
        proxy() as remote,
        Following(remote) as following,
        DocumentBroadcast(Settings(remote=remote)) as send,
    ):
        for name, doc in DOCUMENTS:
            send(name, doc)
        assert_came(following.wait(3))
        assert send.dropped == 0


def test_bluesky_s_own_classes_understand_ours_and_we_theirs():
    with proxy() as remote, Following(remote) as following:
        came, done = [], threading.Event()
        dispatcher = RemoteDispatcher(remote.follow, deserializer=unpack)

        def take(name, doc):
            came.append((name, doc))
            if name == "stop":
                done.set()

        dispatcher.subscribe(take)
        thread = threading.Thread(target=lambda: _until_stopped(dispatcher), daemon=True)
        thread.start()
        theirs = Publisher(remote.publish, serializer=pack)
        deadline = time.monotonic() + 30
        # Theirs can't tell when the proxy has found it.
        while not following.came and time.monotonic() < deadline:
            theirs("datum", {})
            time.sleep(0.05)
        assert following.came[0][0] == "datum"
        theirs.close()
        came.clear()
        with DocumentBroadcast(Settings(remote=remote)) as send:
            for name, doc in DOCUMENTS:
                send(name, doc)
            assert done.wait(30)
        assert_came([item for item in came if item[0] != "datum"])
        dispatcher.loop.call_soon_threadsafe(dispatcher._task.cancel)
        thread.join(10)


def _until_stopped(dispatcher):
    try:
        dispatcher.start()
    except BaseException as error:
        assert type(error).__name__ == "CancelledError"  # noqa: PT017


def test_noise_on_the_socket_is_left_out(caplog):
    with (
        proxy() as remote,
        Following(remote) as following,
        DocumentBroadcast(Settings(remote=remote)) as send,
    ):
        send(*DOCUMENTS[0])
        following.wait(1)
        theirs = Publisher(remote.publish, serializer=lambda doc: doc["noise"])
        deadline = time.monotonic() + 30
        while "no document" not in caplog.text and time.monotonic() < deadline:
            for noise in (b"\x80\x04}.", b"", pack([1, 2]), b"\xc1"):
                theirs("start", {"noise": noise})
            time.sleep(0.05)
        theirs.close()
        send(*DOCUMENTS[2])
        assert [name for name, _ in following.wait(2)] == ["start", "stop"]


def test_what_is_sent_while_the_proxy_is_away_comes_later():
    remote = RemoteSettings(publish=f"tcp://127.0.0.1:{free_port()}", follow=f"tcp://127.0.0.1:{free_port()}")
    with Following(remote) as following, DocumentBroadcast(Settings(remote=remote)) as send:
        with proxy(remote):
            send(*DOCUMENTS[0])
            following.wait(1)
        # What is on its way in the moment of the proxy's death is lost.
        time.sleep(0.5)
        began = time.perf_counter()
        send(*DOCUMENTS[1])
        assert time.perf_counter() - began < 0.1
        with proxy(remote):
            send(*DOCUMENTS[2])
            assert_came(following.wait(3))


def test_what_waits_is_bounded(monkeypatch, caplog):
    monkeypatch.setattr("bluesky_cdinn.callbacks._broadcast.MAX_WAITING_BYTES", 100_000)
    nowhere = RemoteSettings(publish=f"tcp://127.0.0.1:{free_port()}")
    with DocumentBroadcast(Settings(remote=nowhere)) as send:
        for _ in range(20):
            send("event", {"data": {"frame": np.zeros(1000)}})
        assert (send.waiting, send.dropped) == (10, 10)
    send("event", {})
    assert send.dropped == 11
    assert caplog.text.count("aren't sent any more") == 1


def test_what_waits_is_bounded_too_while_the_proxy_is_there_but_takes_nothing(monkeypatch):
    monkeypatch.setattr("bluesky_cdinn.callbacks._broadcast.MAX_WAITING_BYTES", 20_000_000)
    frame = np.zeros(1_000_000, np.uint8)
    with Proxy() as proxy, Following(proxy.remote) as following:
        with DocumentBroadcast(Settings(remote=proxy.remote)) as send:
            send(*DOCUMENTS[0])
            following.wait(1)
            proxy.stall()
            taken = []
            for number in range(100):
                dropped = send.dropped
                send("event", {"seq_num": number, "data": {"frame": frame}})
                # One that the sockets take in between makes room for a later one.
                taken += [number] if send.dropped == dropped else []
            # Beyond the limit: what the sockets and the system hold of 100 MB.
            assert send.dropped > 50
            proxy.go_on()
            following.until(lambda came: came[-1][1].get("seq_num") == taken[-1])
        assert [doc["seq_num"] for name, doc in following.came if name == "event"] == taken


def test_a_proxy_may_have_an_address_of_the_new_kind():
    with zmq.Context() as context, context.socket(zmq.SUB) as listener:
        listener.setsockopt(zmq.IPV6, 1)
        listener.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            port = listener.bind_to_random_port("tcp://[::1]")
        except zmq.ZMQError:
            pytest.skip("this machine has no IPv6")
        with DocumentBroadcast(Settings(remote=RemoteSettings(publish=f"tcp://[::1]:{port}"))) as send:
            send(*DOCUMENTS[0])
            assert listener.poll(30_000)
        listener.setsockopt(zmq.LINGER, 0)


def test_a_document_that_cannot_travel_is_told_and_the_next_goes(caplog):
    with (
        proxy() as remote,
        Following(remote) as following,
        DocumentBroadcast(Settings(remote=remote)) as send,
    ):
        send("event", {"data": {"frame": np.array([{}])}})
        send(*DOCUMENTS[0])
        assert [name for name, _ in following.wait(1)] == ["start"]
    assert "could not be sent" in caplog.text


def test_a_document_costs_the_run_engine_microseconds():
    doc = {"data": {"frame": np.zeros((1024, 1024), np.uint16)}}
    with proxy() as remote, DocumentBroadcast(Settings(remote=remote)) as send:
        times = []
        for _ in range(50):
            began = time.perf_counter()
            send("event", doc)
            times.append(time.perf_counter() - began)
            time.sleep(0.005)
    assert np.median(times) < 1e-3


def test_kafka_s_passwords_are_not_logged(caplog):
    pytest.importorskip("confluent_kafka")
    caplog.set_level("DEBUG", logger="")
    caplog.set_level("DEBUG", logger="bluesky_kafka")
    address = f"kafka://127.0.0.1:{free_port()}/bluesky"
    options = {"sasl.username": "u", "sasl.password": "a secret", "log_level": 0}
    remote = RemoteSettings(publish=address, follow=address, kafka=options)
    with Following(remote):
        open_sender(remote).close()
    assert "a secret" not in caplog.text


def test_documents_go_by_kafka():
    confluent = pytest.importorskip("confluent_kafka")
    # librdkafka's own mock of a cluster: real sockets, real protocol.
    cluster = confluent.Producer({"bootstrap.servers": "-", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = cluster.list_topics(timeout=30).brokers.values()
    address = f"kafka://{broker.host}:{broker.port}/bluesky"
    remote = RemoteSettings(publish=address, follow=address, kafka={"log_level": 0})
    large = ("event", {"data": {"frame": np.zeros((1200, 1200), np.uint16)}})
    with DocumentBroadcast(Settings(remote=remote)) as send, Following(remote) as following:
        deadline = time.monotonic() + 60
        # Who follows from now on doesn't get what was sent before it had its place.
        while not following.came and time.monotonic() < deadline:
            send("datum", {})
            time.sleep(0.1)
        for name, doc in [*DOCUMENTS[:2], large, DOCUMENTS[2]]:
            send(name, doc)
        following.until(lambda came: came[-1][0] == "stop")
        came = [item for item in following.came if item[0] != "datum"]
        assert_came([*came[:2], came[3]])
        assert came[2][1]["data"]["frame"].shape == (1200, 1200)

"""The real brokerd on loopback: the main ways through it, and bytes compared."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.errors import Status
from gcbpatch.wire.messages import Endpoint, PathKind

from .broker_client import HANG_S, Broker, Client, Refused, read_all

LISTENER = b"listener number1"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path, "--log", "INFO")
    yield broker
    broker.kill()


@pytest.fixture
def alice(broker: Broker) -> Iterator[Client]:
    with Client(broker.address) as client:
        client.hello()
        yield client


@pytest.fixture
def bob(broker: Broker) -> Iterator[Client]:
    with Client(broker.address) as client:
        client.hello()
        yield client


def ordinary_pair(listening: Client, proxy: Endpoint) -> tuple[socket.socket, socket.socket]:
    """Return an ordinary connection to a proxy address, and the listener's end of it."""
    connector = socket.create_connection(proxy.address, HANG_S)
    call = listening.next_call()
    assert call.peer.address == connector.getsockname()
    assert not call.commit
    return connector, listening.join(call)


def brokered_pair(
    connecting: Client, listening: Client, proxy: Endpoint
) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a relayed connection between two clients."""
    meeting = connecting.connect(proxy)
    half = connecting.start_join(meeting)
    other = listening.join(listening.next_call())
    return connecting.finish_join(half), other


def transfer(source: socket.socket, sink: socket.socket, data: bytes) -> None:
    """Send ``data`` and the end of stream, and see that they arrive."""

    def send() -> None:
        source.sendall(data)
        source.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = read_all(sink)
    sender.join(HANG_S)
    assert len(received) == len(data)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("size", [0, 1, 100_000, 50_000_000])
@pytest.mark.parametrize("way", ["ordinary", "brokered"])
def test_bytes_and_half_close_arrive_both_ways(
    alice: Client, bob: Client, size: int, way: str
) -> None:
    proxy = alice.register(LISTENER).proxy
    if way == "ordinary":
        connector, listener = ordinary_pair(alice, proxy)
    else:
        connector, listener = brokered_pair(bob, alice, proxy)
    with connector, listener:
        transfer(connector, listener, random.Random(size).randbytes(size))
        transfer(listener, connector, random.Random(size + 1).randbytes(size))


def test_both_directions_at_once(alice: Client) -> None:
    connector, listener = ordinary_pair(alice, alice.register(LISTENER).proxy)
    one, other = os.urandom(8_000_000), os.urandom(8_000_000)
    with connector, listener:
        thread = threading.Thread(target=transfer, args=(connector, listener, one))
        thread.start()
        transfer(listener, connector, other)
        thread.join(HANG_S)


def test_what_an_ordinary_connector_sends_early_is_kept(alice: Client) -> None:
    proxy = alice.register(LISTENER).proxy
    with socket.create_connection(proxy.address, HANG_S) as connector:
        connector.sendall(b"early")
        connector.shutdown(socket.SHUT_WR)
        with alice.join(alice.next_call()) as listener:
            assert read_all(listener) == b"early"
            listener.sendall(b"late")
            listener.shutdown(socket.SHUT_WR)
            assert read_all(connector) == b"late"


def test_bytes_right_behind_join_belong_to_the_stream(alice: Client, bob: Client) -> None:
    meeting = bob.connect(alice.register(LISTENER).proxy)
    with (
        bob.start_join(meeting, behind=b"go") as connector,
        alice.join(alice.next_call(), behind=b"welcome") as listener,
    ):
        bob.finish_join(connector)
        connector.shutdown(socket.SHUT_WR)
        listener.shutdown(socket.SHUT_WR)
        assert read_all(listener) == b"go"
        assert read_all(connector) == b"welcome"


def test_connect_answers_with_paths_and_calls_the_listener(alice: Client, bob: Client) -> None:
    door = Endpoint("127.0.0.1", 4711)
    proxy = alice.register(LISTENER, local=(door,)).proxy
    meeting = bob.connect(proxy)
    call = alice.next_call()
    assert (call.listener, call.nonce, call.commit) == (LISTENER, b"nonce...", True)
    assert (call.rendezvous, call.secret) == (meeting.rendezvous, meeting.secret)
    assert call.paths == meeting.paths
    assert [(p.kind, p.addresses) for p in meeting.paths] == [
        (PathKind.LOCAL, [door]),
        (PathKind.RELAYED, []),
    ]
    assert call.peer.address == bob.sock.getsockname()


def test_a_reset_is_passed_on_as_a_reset(alice: Client) -> None:
    connector, listener = ordinary_pair(alice, alice.register(LISTENER).proxy)
    with connector, listener:
        connector.sendall(b"last words")
        assert listener.recv(10, socket.MSG_WAITALL) == b"last words"
        connector.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connector.close()
        with pytest.raises(ConnectionResetError):
            listener.recv(1)


def test_the_answer_before_a_reset_arrives_before_the_reset(alice: Client) -> None:
    connector, listener = ordinary_pair(alice, alice.register(LISTENER).proxy)
    with connector, listener:
        connector.sendall(b"never read")
        listener.sendall(b"answer" * 100_000)
        # Closing with unread bytes resets the connection.
        listener.close()
        received = b""
        with pytest.raises(ConnectionResetError):
            while True:
                chunk = connector.recv(65536)
                assert chunk, "an end of stream where a reset was"
                received += chunk
        assert received == (b"answer" * 100_000)[: len(received)]


def test_a_writer_that_is_stopped_sees_the_answer_and_then_the_reset(alice: Client) -> None:
    connector, listener = ordinary_pair(alice, alice.register(LISTENER).proxy)
    with connector, listener:
        connector.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                connector.send(bytes(65536))
        connector.settimeout(HANG_S)
        listener.sendall(b"enough")
        assert connector.recv(6, socket.MSG_WAITALL) == b"enough"
        # Closing with unread bytes resets the connection.
        listener.close()
        with pytest.raises(ConnectionResetError):
            connector.recv(1)


def test_a_slow_reader_slows_its_writer(alice: Client) -> None:
    connector, listener = ordinary_pair(alice, alice.register(LISTENER).proxy)
    data = os.urandom(64_000_000)
    with connector, listener:
        # Without anybody reading, the writer must be stopped by full buffers.
        connector.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < len(data):
                sent += connector.send(data[sent : sent + 65536])
        connector.settimeout(HANG_S)
        rest = threading.Thread(
            target=lambda: (connector.sendall(data[sent:]), connector.shutdown(socket.SHUT_WR))
        )
        rest.start()
        assert hashlib.sha256(read_all(listener)).digest() == hashlib.sha256(data).digest()
        rest.join(HANG_S)


def test_many_connections_at_once(alice: Client) -> None:
    proxy = alice.register(LISTENER).proxy
    connectors = [socket.create_connection(proxy.address, HANG_S) for _ in range(200)]
    for number, connector in enumerate(connectors):
        connector.sendall(struct.pack(">I", number))
    listeners = {}
    for _ in connectors:
        call = alice.next_call()
        listeners[call.peer.address] = alice.join(call)
    for number, connector in enumerate(connectors):
        with connector, listeners[connector.getsockname()] as listener:
            assert struct.unpack(">I", listener.recv(4, socket.MSG_WAITALL)) == (number,)


def test_established_relays_outlive_their_listener(alice: Client) -> None:
    proxy = alice.register(LISTENER).proxy
    connector, listener = ordinary_pair(alice, proxy)
    alice.unregister(LISTENER)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address, HANG_S)
    with connector, listener:
        transfer(connector, listener, b"still here")


def test_unknown_targets_and_listeners_are_unknown(alice: Client, bob: Client) -> None:
    proxy = alice.register(LISTENER).proxy
    with pytest.raises(Refused) as refused:
        bob.connect(Endpoint(proxy.host, proxy.port ^ 1))
    assert refused.value.status is Status.UNKNOWN
    with pytest.raises(Refused) as refused:
        bob.unregister(LISTENER)
    assert refused.value.status is Status.UNKNOWN
    assert bob.refresh(LISTENER).lost == [LISTENER]


def test_registering_again_gives_the_same_address(alice: Client) -> None:
    first = alice.register(LISTENER)
    assert alice.register(LISTENER).proxy == first.proxy
    assert alice.register(b"another listener").proxy != first.proxy
    assert alice.refresh(LISTENER).lost == []


def test_a_wish_is_granted_where_free(broker: Broker, alice: Client, bob: Client) -> None:
    wish = random.randint(40000, 60000)
    assert alice.register(LISTENER, wished=wish).proxy.address == (broker.host, wish)
    assert bob.register(LISTENER, wished=wish).proxy.port != wish
    assert bob.register(b"another listener", wished=80).proxy.port >= 10000


def test_what_is_neither_tcp_nor_udp_is_not_brokered(alice: Client) -> None:
    with pytest.raises(Refused) as refused:
        alice.register(LISTENER, protocol=7)
    assert refused.value.status is Status.UNSUPPORTED


def test_calls_follow_a_client_to_its_new_address(broker: Broker, alice: Client) -> None:
    proxy = alice.register(LISTENER).proxy
    with Client(broker.address, client=alice.client) as moved:
        moved.hello()
        assert moved.refresh(LISTENER).lost == []
        with socket.create_connection(proxy.address, HANG_S):
            moved.join(moved.next_call()).close()
    assert not alice.called


def test_it_ends_cleanly_and_at_once_with_connections_open(broker: Broker, alice: Client) -> None:
    assert broker.ready_line == f"brokerd ready on {broker.host}:{broker.address[1]}"
    connector, listener = ordinary_pair(alice, alice.register(LISTENER).proxy)
    with connector, listener:
        assert broker.stop() == 0
        with pytest.raises(ConnectionResetError):
            connector.recv(1)
        with pytest.raises(ConnectionResetError):
            listener.recv(1)
    assert "Traceback" not in broker.log()

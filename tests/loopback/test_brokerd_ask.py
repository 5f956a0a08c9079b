"""Who asks brokerd whether it is one, while connecting: answered bare, and held for a moment."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gcbpatch.errors import Status
from gcbpatch.wire.codec import HEADER_SIZE, Kind, build, parse
from gcbpatch.wire.messages import TCP, Ask, Command, RegisterReply

from .broker_client import HANG_S, Broker, Client
from .broker_ground import LISTENER, greeted, udp_to


def ask(broker: Broker, port: int) -> Status:
    """Ask as a stranger does; the answer is never larger than the question."""
    question = build(Kind.REQUEST, Command.ASK, 99, Ask(TCP, port))
    with udp_to(broker.address) as sock:
        sock.send(question)
        data = sock.recv(2048)
    assert len(data) == HEADER_SIZE < len(question)
    frame = parse(data)
    assert (frame.kind, frame.transaction) == (Kind.REPLY, 99)
    return Status(frame.status)


def registered(client: Client) -> RegisterReply:
    """Register a listener."""
    return client.register(LISTENER)


def test_who_asks_learns_whether_there_is_a_proxy(broker: Broker) -> None:
    with greeted(broker) as client:
        proxy = registered(client).proxy
        assert ask(broker, proxy.port) is Status.SUCCESS
        assert ask(broker, proxy.port + 1) is Status.UNKNOWN


def test_a_broker_with_tokens_refuses_strangers(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("site correct-horse-battery\n")
    broker = Broker(tmp_path, "--token-file", str(tokens))
    try:
        assert ask(broker, 10000) is Status.NOT_AUTHORIZED
    finally:
        broker.kill()


def test_a_connection_that_is_given_up_is_never_called_for(broker: Broker) -> None:
    with greeted(broker) as client:
        proxy = registered(client).proxy.address
        assert ask(broker, proxy[1]) is Status.SUCCESS
        with socket.create_connection(proxy, HANG_S) as given_up:
            given_up.shutdown(socket.SHUT_WR)
            assert given_up.recv(1) == b"", "it is ended when it is forgotten"
        with socket.create_connection(proxy, HANG_S) as ordinary:
            call = client.next_call()
            assert call.peer.port == ordinary.getsockname()[1], "the only one that was called for"
        assert client.calls.empty()


@pytest.mark.parametrize("speaks", [True, False], ids=["speaks", "is silent"])
def test_a_connection_that_stays_becomes_an_ordinary_one(broker: Broker, speaks: bool) -> None:
    with greeted(broker) as client:
        proxy = registered(client).proxy.address
        assert ask(broker, proxy[1]) is Status.SUCCESS
        with socket.create_connection(proxy, HANG_S) as sock:
            if speaks:
                sock.sendall(b"hello")
            call = client.next_call()
            assert call.peer.port == sock.getsockname()[1]
            with client.join(call) as half:
                half.sendall(b"well")
                assert sock.recv(4) == b"well"
                assert not speaks or half.recv(5) == b"hello"

"""The real brokerd on loopback: commands that were recorded, forged, or far too large."""

from __future__ import annotations

import os
import socket

import pytest

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.codec import HEADER, HEADER_SIZE, Frame, Kind, build, message_of, parse
from gcbpatch.wire.messages import (
    TCP,
    UDP,
    Command,
    Connect,
    Flow,
    Hello,
    Message,
    Refresh,
    RegisterReply,
    Unregister,
)

from .broker_client import HANG_S, Broker, Client, read_all
from .broker_ground import ALICE, BOB, LISTENER, greeted, is_closed, parse_connect, refusal, udp_to

MOST_UDP = 65507
MAGIC = b"\x11" * 8
"""Of a program's own port."""


def from_elsewhere(broker: Broker, data: bytes) -> Frame:
    """Send a recorded datagram from another address; what comes back is as short as can be."""
    with udp_to(broker.address) as sock:
        sock.send(data)
        answer = sock.recv(2048)
    assert len(answer) == HEADER_SIZE <= len(data)
    return parse(answer)


def recorded(client: Client, command: Command, message: Message) -> tuple[bytes, bytes]:
    """Let a client ask; return what went over the network both ways."""
    asked = client.request(command, message)
    answer = client.exchange(asked)
    assert parse(answer).status == Status.SUCCESS
    return asked, answer


def proxy_of(answer: bytes) -> Address:
    message = message_of(parse(answer))
    assert isinstance(message, RegisterReply)
    return message.proxy.address


def refuses(address: Address) -> bool:
    with socket.socket() as sock:
        sock.settimeout(HANG_S)
        return sock.connect_ex(address) != 0


@pytest.mark.parametrize("key", [None, ALICE])
def test_a_register_played_back_brings_no_listener_back(
    request: pytest.FixtureRequest, key: object
) -> None:
    broker = request.getfixturevalue("guarded" if key else "broker")
    with greeted(broker, ALICE if key else None) as alice:
        asked, answer = recorded(alice, Command.REGISTER, alice.register_request(LISTENER))
        alice.unregister(LISTENER)
        assert from_elsewhere(broker, asked).status == Status.STALE_EPOCH
        assert alice.exchange(asked) == answer
        assert refuses(proxy_of(answer))
        assert alice.refresh(LISTENER).lost == [LISTENER]


def test_an_unregister_played_back_closes_no_later_listener(broker: Broker) -> None:
    with greeted(broker) as alice:
        alice.register(LISTENER)
        asked, answer = recorded(
            alice, Command.UNREGISTER, Unregister(alice.client, alice.cookie, LISTENER)
        )
        proxy = alice.register(LISTENER).proxy
        assert from_elsewhere(broker, asked).status == Status.STALE_EPOCH
        assert alice.exchange(asked) == answer
        assert alice.refresh(LISTENER).lost == []
        with socket.create_connection(proxy.address, HANG_S):
            alice.next_call()


def test_a_connect_played_back_calls_nobody_and_tells_nobody_its_secret(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        target = alice.register(LISTENER).proxy
        asked, answer = recorded(
            bob, Command.CONNECT, Connect(bob.client, bob.cookie, target, TCP, [], "")
        )
        assert from_elsewhere(broker, asked).status == Status.STALE_EPOCH
        assert bob.exchange(asked) == answer
        # Of the calls that come, the next is of the next command.
        meetings = [parse_connect(answer), bob.connect(target).rendezvous]
        assert [alice.next_call().rendezvous for _ in meetings] == meetings


def test_nothing_that_was_recorded_is_good_for_the_next_broker(tmp_path: object) -> None:
    first = Broker(tmp_path)  # type: ignore[arg-type]
    try:
        with greeted(first) as alice:
            asked, answer = recorded(alice, Command.REGISTER, alice.register_request(LISTENER))
            first.kill()
            second = Broker(tmp_path, host=first.host, port=first.address[1])  # type: ignore[arg-type]
            try:
                assert parse(alice.exchange(asked)).status == Status.STALE_EPOCH
                assert refuses(proxy_of(answer))
            finally:
                second.kill()
    finally:
        first.kill()


def test_a_transaction_that_was_learnt_does_not_get_its_answer(guarded: Broker) -> None:
    """The same address and another token: what was told to alice is for alice."""
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB) as bob:
        target = bob.register(LISTENER).proxy
        asked, answer = recorded(
            alice, Command.CONNECT, Connect(alice.client, alice.cookie, target, TCP, [], "")
        )
        transaction = parse(asked).transaction
        forged = auth.sealed(BOB, Kind.REQUEST, Command.CONNECT, transaction)
        reply = parse(alice.exchange(forged))
        assert (reply.status, reply.body) == (Status.MALFORMED, b"")
        assert alice.exchange(asked) == answer


def test_a_cookie_is_good_for_its_address_alone(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker, client=alice.client) as mallory:
        proxy = alice.register(LISTENER).proxy
        for cookie in (alice.cookie, os.urandom(8), bytes(8)):
            mallory.cookie = cookie
            assert refusal(mallory.register, LISTENER) is Status.STALE_EPOCH
            assert refusal(mallory.refresh, LISTENER) is Status.STALE_EPOCH
            assert refusal(mallory.unregister, LISTENER) is Status.STALE_EPOCH
            assert refusal(mallory.connect, proxy) is Status.STALE_EPOCH
        with socket.create_connection(proxy.address, HANG_S):
            alice.next_call()
        assert mallory.calls.empty()


@pytest.mark.parametrize("whose_name", ["her own", "the other's"])
def test_a_refresh_of_the_listeners_of_another_takes_no_calls(
    guarded: Broker, whose_name: str
) -> None:
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB) as mallory:
        proxy = alice.register(LISTENER).proxy
        if whose_name == "her own":
            # Of another client's listeners she is told no more than that they are not hers.
            assert mallory.refresh(LISTENER).lost == [LISTENER]
        else:
            message = Refresh(alice.client, mallory.cookie, [LISTENER])
            frame = parse(mallory.exchange(mallory.request(Command.REFRESH, message)))
            assert (frame.status, frame.body) == (Status.NOT_AUTHORIZED, b"")
        with socket.create_connection(proxy.address, HANG_S):
            alice.next_call()
        assert mallory.calls.empty()


def huge(size: int, announced: int) -> bytes:
    head = HEADER.pack(b"GB", 1, Kind.REQUEST, Command.HELLO, 0, announced, 9, 0)
    return head + bytes(size - HEADER_SIZE)


@pytest.mark.parametrize("announced", [0, MOST_UDP - HEADER_SIZE, 65535])
def test_a_datagram_of_64_kib_gets_a_bare_status(broker: Broker, announced: int) -> None:
    with udp_to(broker.address) as sock:
        for before in (b"", MAGIC):
            data = before + huge(MOST_UDP - len(before), announced)
            sock.send(data)
            answer = sock.recv(65535)
            assert len(answer) == len(before) + HEADER_SIZE and answer.startswith(before)
            assert parse(answer[len(before) :]).status == Status.MALFORMED
        sock.send(build(Kind.REQUEST, Command.HELLO, 7, Hello(bytes(16))))
        assert parse(sock.recv(2048)).transaction == 7


@pytest.mark.parametrize("line", [False, True], ids=["the first frame", "a frame on a line"])
def test_a_frame_of_64_kib_by_tcp_gets_a_bare_status_and_no_line(
    broker: Broker, line: bool
) -> None:
    with socket.create_connection(broker.address, HANG_S) as sock:
        if line:
            sock.sendall(build(Kind.REQUEST, Command.HELLO, 7, Hello(bytes(16))))
            assert parse(sock.recv(2048)).transaction == 7
        sock.sendall(huge(HEADER_SIZE, 65535))
        if line:
            assert is_closed(sock)
        else:
            answer = read_all(sock)
            assert (len(answer), parse(answer).status) == (HEADER_SIZE, Status.MALFORMED)


def test_from_a_programs_port_an_unproved_address_gets_no_more_than_it_sent(
    broker: Broker,
) -> None:
    with greeted(broker) as alice, udp_to(broker.address) as stranger:
        alice.register(LISTENER, protocol=UDP)
        for message, command in (
            (Flow(alice.client, alice.cookie, LISTENER), Command.FLOW),
            (Flow(alice.client, bytes(8), LISTENER), Command.FLOW),
            (Refresh(alice.client, alice.cookie, [LISTENER]), Command.REFRESH),
            (Hello(alice.client), Command.HELLO),
            (Hello(alice.client, b""), Command.HELLO),
        ):
            data = MAGIC + build(Kind.REQUEST, command, 7, message)
            stranger.send(data)
            answer = stranger.recv(2048)
            assert answer.startswith(MAGIC) and len(answer) <= len(data)
            status = parse(answer[len(MAGIC) :]).status
            assert (status == Status.SUCCESS) is (message == Hello(alice.client))

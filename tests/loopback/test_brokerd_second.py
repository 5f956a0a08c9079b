"""The second port of a broker: HELLO is answered there, so that NATs show how they map ports."""

from __future__ import annotations

import asyncio
import socket

from gcbpatch.addresses import Address
from gcbpatch.agent.mapping import observed_at
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import HEADER_SIZE, Kind, build, parse
from gcbpatch.wire.messages import Command, Hello, HelloReply, Refresh

from .broker_client import Broker
from .broker_ground import ALICE, greeted

CLIENT = bytes(16)


def second_of(broker: Broker, key: Key | None = None) -> int:
    """The second port, as HELLO at the first tells it."""
    with greeted(broker, key) as client:
        reply = client.ask(Command.HELLO, Hello(CLIENT))
        assert isinstance(reply, HelloReply)
        return reply.second


def observed(broker: Broker, *ports: int, key: Key | None = None) -> dict[int, Address]:
    return asyncio.run(observed_at(broker.host, ports, CLIENT, key))


def test_both_ports_see_one_port_of_ours_where_no_nat_is_between(broker: Broker) -> None:
    second = second_of(broker)
    seen = observed(broker, broker.address[1], second)
    assert seen.keys() == {broker.address[1], second}
    assert len(set(seen.values())) == 1


def test_who_has_no_token_is_not_told_where_he_is_seen(guarded: Broker) -> None:
    ports = guarded.address[1], second_of(guarded, ALICE)
    assert observed(guarded, *ports, key=ALICE).keys() == set(ports)
    assert observed(guarded, *ports) == {}


def test_a_silent_port_is_left_out(broker: Broker) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((broker.host, 0))
        seen = observed(broker, broker.address[1], silent.getsockname()[1])
    assert seen.keys() == {broker.address[1]}


def test_nothing_but_hello_is_taken_there(broker: Broker) -> None:
    second = second_of(broker)
    with greeted(broker) as client:
        request = build(Kind.REQUEST, Command.REFRESH, 7, Refresh(CLIENT, client.cookie, []))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            sock.sendto(request, (broker.host, second))
            reply = sock.recv(2048)
    assert parse(reply).status == Status.UNSUPPORTED
    assert len(reply) == HEADER_SIZE

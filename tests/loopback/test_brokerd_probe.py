"""Dialling back: brokerd sends a first packet, and the listener it goes to never notices."""

from __future__ import annotations

import os
import select
import socket

import pytest

from gcbpatch.agent import sockdiag
from gcbpatch.errors import Status
from gcbpatch.wire.codec import Kind, build, parse
from gcbpatch.wire.messages import TCP, UDP, Command, Probe, ProbeReply

from .broker_client import HANG_S, Broker, Client, Refused
from .broker_ground import greeted


def probe(client: Client, port: int, protocol: int = TCP, magic: bytes = b"") -> ProbeReply:
    """Have the broker dial back."""
    asked = Probe(client.client, client.cookie, protocol, port, magic)
    reply = client.ask(Command.PROBE, asked)
    assert isinstance(reply, ProbeReply)
    return reply


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "dual stack"])
def test_a_probe_is_half_a_connection_that_no_program_ever_sees(
    broker: Broker, family: socket.AddressFamily
) -> None:
    dual = family == socket.AF_INET6
    with (
        greeted(broker) as client,
        socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as listener,
    ):
        reply = probe(client, listener.getsockname()[1])
        assert reply.target.address == ("127.0.0.1", listener.getsockname()[1])
        assert reply.source.host == broker.host
        assert sockdiag.is_half_open(reply.target.address, reply.source.address)
        # A connection of somebody else's comes first, though it came later.
        with socket.create_connection(reply.target.address) as stranger:
            accepted, peer = listener.accept()
            accepted.close()
            assert peer[1] == stranger.getsockname()[1]
        while sockdiag.is_half_open(reply.target.address, reply.source.address):
            assert select.select([listener], [], [], 0.05)[0] == []
        assert select.select([listener], [], [], 0.05)[0] == []


def test_where_nobody_listens_nothing_is_half_open(broker: Broker) -> None:
    with greeted(broker) as client, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        reply = probe(client, bound.getsockname()[1])
        assert not sockdiag.is_half_open(reply.target.address, reply.source.address)


def test_a_probe_of_udp_is_the_magic_from_a_port_that_nobody_knows(broker: Broker) -> None:
    sources = set()
    with greeted(broker) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(HANG_S)
        for _ in range(3):
            reply = probe(client, sock.getsockname()[1], UDP, b"8 octets")
            assert reply.target.address == sock.getsockname()
            assert sock.recvfrom(100) == (b"8 octets", reply.source.address)
            assert reply.source.address != broker.address
            sources.add(reply.source.port)
    assert len(sources) > 1


@pytest.mark.parametrize(
    ("protocol", "magic", "status"),
    [
        (UDP, b"", Status.MALFORMED),
        (UDP, b"more than 8", Status.MALFORMED),
        (7, b"", Status.UNSUPPORTED),
    ],
)
def test_nothing_else_is_sent_to_anybody(
    broker: Broker, protocol: int, magic: bytes, status: Status
) -> None:
    with greeted(broker) as client:
        with pytest.raises(Refused) as refused:
            probe(client, 1, protocol, magic)
        assert refused.value.status is status


def test_no_port_is_malformed(broker: Broker) -> None:
    with greeted(broker) as client:
        request = build(
            Kind.REQUEST, Command.PROBE, 7, Probe(client.client, client.cookie, TCP, 0)
        )
        assert parse(client.exchange(request)).status == Status.MALFORMED


def test_who_has_not_proved_his_address_has_nobody_dialled(broker: Broker) -> None:
    with greeted(broker) as client, socket.create_server(("127.0.0.1", 0)) as listener:
        client.cookie = os.urandom(8)
        with pytest.raises(Refused) as refused:
            probe(client, listener.getsockname()[1])
        assert refused.value.status is Status.STALE_EPOCH

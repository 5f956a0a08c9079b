"""What two sides are told of each other before both halves are there."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from brokerd.introductions import Foretold, foretold
from gcbpatch.addresses import Address
from gcbpatch.wire.messages import TCP, Connect, Endpoint, JoinReply, Park

CONNECTOR, LISTENER = "203.0.113.9", "203.0.113.1"
OURS, THEIRS = b"the connector's.", b"the listener's.."


class Seen:
    """What the kernel tells of a waiting connection: where it is seen, and its round trip."""

    def __init__(self, peer: Address, milliseconds: int = 40) -> None:
        self._peer, self._milliseconds = peer, milliseconds

    def getpeername(self) -> Address:
        return self._peer

    def getsockopt(self, *_: int) -> bytes:
        return bytes(68) + struct.pack("=I", self._milliseconds * 1000)


def asked(nonce: bytes = OURS, half: int = 42200, round_trip: int = 60) -> Connect:
    target = Endpoint("198.51.100.1", 20001)
    return Connect(bytes(16), bytes(8), target, TCP, [], "", 0, nonce, half, round_trip)


def told(
    host: str = CONNECTOR,
    connect: Connect | None = None,
    peer: Address = (LISTENER, 42100),
    park: Park | None = None,
) -> Foretold:
    waits: Any = Seen(peer)
    return foretold(host, connect or asked(), (waits, park or Park(b"", b"", THEIRS, 42100)))


def test_both_are_told_where_the_other_will_be_and_when_to_begin() -> None:
    assert told() == Foretold(
        JoinReply(Endpoint(LISTENER, 42100), THEIRS, 0, 100),
        JoinReply(Endpoint(CONNECTOR, 42200), OURS, 10, 100),
        THEIRS,
    )


def test_a_round_trip_that_is_not_known_is_taken_for_the_other() -> None:
    found = told(connect=asked(round_trip=0))
    assert found.connector is not None and found.listener is not None
    assert (found.connector.wait, found.listener.wait, found.listener.round_trip) == (0, 0, 80)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(told(peer=(LISTENER, 42101)), id="its NAT has shifted the port"),
        pytest.param(told(peer=("10.0.0.5", 42100)), id="it is seen under a private address"),
        pytest.param(told(park=Park(b"", b"", b"", 42100)), id="it does not punch"),
        pytest.param(told(connect=asked(nonce=b"")), id="the connector does not punch"),
        pytest.param(told(connect=asked(half=0)), id="the connector has no half"),
        pytest.param(told(host="10.0.0.7"), id="the connector's address is private"),
        pytest.param(told(host=LISTENER), id="both are behind one NAT"),
        pytest.param(told(host="2001:db8::9"), id="they are of different families"),
    ],
)
def test_nobody_is_told_anything_in_vain(found: Foretold) -> None:
    assert found == Foretold(None, None, b"")

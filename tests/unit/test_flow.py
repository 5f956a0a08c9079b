"""Who is reached through the relay, and for how long that is remembered."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gcbpatch.errors import RemoteProtocolError
from gcbpatch.sockets.demux import Label
from gcbpatch.sockets.flow import Flow, Recent
from gcbpatch.wire.datagrams import whole

PROXY = ("198.51.100.1", 20001)
RELAY = ("198.51.100.1", 65433)
PEER = ("192.0.2.7", 40000)


@pytest.fixture
def flow() -> Flow:
    label = Label(bytes(8), bytes(16), PROXY, RELAY)
    return Flow(label, frozenset({"203.0.113.9"}), frozenset({65432}))


@pytest.mark.parametrize(
    "address", [PROXY, ("198.51.100.1", 1), ("203.0.113.9", 65535), ("203.0.113.9", 9)]
)
def test_addresses_on_brokers_hosts_are_proxy_addresses(
    flow: Flow, address: tuple[str, int]
) -> None:
    assert flow.header_for(address) == whole(address)


@pytest.mark.parametrize(
    "address", [PEER, RELAY, ("198.51.100.1", 65432), ("198.51.100.1", 0), ("198.51.100.1", 70000)]
)
def test_everything_else_is_the_kernels(flow: Flow, address: tuple[str, int]) -> None:
    assert flow.header_for(address) == b""


@pytest.mark.parametrize(
    "address", [None, "x", 5, (), ("a",), ("a", 1, 2), [*PROXY], (1, 1), ([], 9), ("name", 9)]
)
def test_what_is_no_address_in_numbers_is_nothing(flow: Flow, address: Any) -> None:
    assert flow.header_for(address) is None


def test_a_peer_is_answered_the_way_it_was_heard_last(flow: Flow) -> None:
    assert flow.heard(whole(PEER)) == PEER
    assert flow.header_for(PEER) == whole(PEER)
    flow.heard_plainly(PEER)
    assert flow.header_for(PEER) == b""
    flow.heard(whole(PEER))
    assert flow.header_for(PEER) == whole(PEER)


def test_garbage_is_no_peer(flow: Flow) -> None:
    with pytest.raises(RemoteProtocolError):
        flow.heard(bytes(8))
    assert flow.join(b"", False) is None
    assert flow.join(whole(("2001:db8::7", 9)) + b"x", False) is None


def test_what_is_used_stays_and_the_rest_goes_when_there_is_too_much() -> None:
    some: Recent[int, int] = Recent(most=4, seconds=3600.0)
    for number in range(100):
        some.put(number, number)
        assert some.get(0) == 0
        assert len(some) <= 8
    assert some.get(99) == 99
    assert some.get(50) is None


def test_what_is_not_used_goes_with_time() -> None:
    some: Recent[int, int] = Recent(most=100, seconds=0.0)
    for number in range(3):
        some.put(number, number)
        time.monotonic()
    assert some.get(0) is None

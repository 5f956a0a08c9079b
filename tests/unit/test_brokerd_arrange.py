"""Which paths are offered to which pair of sides."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from brokerd.arrange import MOST_ADDRESSES, Side, arrange
from gcbpatch.wire.codec import MAX_DATAGRAM, Kind, build
from gcbpatch.wire.messages import Call, Command, Endpoint, PathKind

LOCAL, DIRECT, REVERSE, PUNCHED, RELAYED = (
    PathKind.LOCAL, PathKind.DIRECT, PathKind.REVERSE, PathKind.PUNCHED, PathKind.RELAYED
)
NAT_A, NAT_B, PUBLIC = "203.0.113.1", "203.0.113.2", "198.51.100.7"


def side(observed: str, *local: str, network: str = "") -> Side:
    return Side((observed, 40000), tuple(Endpoint(host, 5000) for host in local), network)


def ways(connector: Side, listener: Side) -> list[tuple[PathKind, list[str]]]:
    return [(p.kind, [e.host for e in p.addresses]) for p in arrange(connector, listener)]


CASES = {
    "behind two NATs": (
        side(NAT_A, "10.1.0.2"), side(NAT_B, "10.2.0.2"), [(PUNCHED, []), (RELAYED, [])]
    ),
    "behind the same NAT": (
        side(NAT_A, "10.1.0.2"), side(NAT_A, "10.1.0.3"),
        [(LOCAL, ["10.1.0.3"]), (RELAYED, [])],
    ),
    "behind the same carrier's NAT, in networks of different names": (
        side(NAT_A, "10.1.0.2", network="a"), side(NAT_A, "10.1.0.3", network="b"),
        [(RELAYED, [])],
    ),
    "behind the same NAT, one without a name": (
        side(NAT_A, "10.1.0.2"), side(NAT_A, "10.1.0.3", network="b"),
        [(LOCAL, ["10.1.0.3"]), (RELAYED, [])],
    ),
    "of the same name, behind different NATs": (
        side(NAT_A, "10.1.0.2", network="x"), side(NAT_B, "10.1.0.3", network="x"),
        [(PUNCHED, []), (RELAYED, [])],
    ),
    "with the broker on their gateway": (
        side("10.1.0.2", "10.1.0.2"), side("10.1.0.3", "10.1.0.3"),
        [(LOCAL, ["10.1.0.3"]), (RELAYED, [])],
    ),
    "with the broker on the listener's gateway only": (
        side(NAT_B, "10.2.0.2"), side("10.1.0.3", "10.1.0.3"), [(RELAYED, [])]
    ),
    "from a private network to a public host": (
        side(NAT_A, "10.1.0.2"), side(PUBLIC, PUBLIC),
        [(DIRECT, [PUBLIC]), (PUNCHED, []), (RELAYED, [])],
    ),
    "from a public host to a private network": (
        side(PUBLIC, PUBLIC), side(NAT_A, "10.1.0.2"),
        [(REVERSE, [PUBLIC]), (PUNCHED, []), (RELAYED, [])],
    ),
    "between public hosts": (
        side(PUBLIC, PUBLIC), side("198.51.100.8", "198.51.100.8"),
        [(DIRECT, ["198.51.100.8"]), (REVERSE, [PUBLIC]), (PUNCHED, []), (RELAYED, [])],
    ),
    "to a public host with a private leg, seen from elsewhere": (
        side(NAT_A, "10.1.0.2"), side(PUBLIC, "10.9.0.1", PUBLIC),
        [(DIRECT, [PUBLIC]), (PUNCHED, []), (RELAYED, [])],
    ),
    "to an agent without a port to dial": (
        side(NAT_A), side(NAT_A), [(RELAYED, [])]
    ),
    "of different families": (
        side(NAT_A), side("2001:db8::7"), [(RELAYED, [])]
    ),
    "on one host": (
        side("127.0.0.1", "127.0.0.1"), side("127.0.0.1", "127.0.0.1"),
        [(LOCAL, ["127.0.0.1"]), (RELAYED, [])],
    ),
    "with loopback among the addresses of another host": (
        side("10.1.0.2"), side("10.1.0.3", "127.0.0.1", "10.1.0.3"),
        [(LOCAL, ["10.1.0.3"]), (RELAYED, [])],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_paths(case: str) -> None:
    connector, listener, expected = CASES[case]
    assert ways(connector, listener) == expected


def test_a_port_of_zero_cannot_be_dialled() -> None:
    nowhere = Side((PUBLIC, 1), (Endpoint(PUBLIC, 0),))
    assert ways(nowhere, nowhere) == [(RELAYED, [])]


hosts = st.sampled_from(
    [NAT_A, PUBLIC, "10.1.0.2", "192.168.1.9", "127.0.0.1", "2001:db8::1", "fd00::1"]
)
endpoints = st.builds(Endpoint, hosts, st.integers(0, 65535))
sides = st.builds(
    Side,
    st.tuples(hosts, st.integers(1, 65535)),
    st.lists(endpoints, max_size=8).map(tuple),
    st.sampled_from(["", "a", "b"]),
)


@given(sides, sides)
def test_every_pair_gets_the_relay_last_and_addresses_that_somebody_named(
    connector: Side, listener: Side
) -> None:
    paths = arrange(connector, listener)
    kinds = [path.kind for path in paths]
    assert kinds == sorted(set(kinds))
    assert paths[-1].kind is RELAYED
    for path in paths:
        named = connector.local if path.kind is REVERSE else listener.local
        assert set(path.addresses) <= set(named)
        assert len(path.addresses) <= MOST_ADDRESSES


def test_a_call_with_all_that_can_be_in_it_is_one_datagram() -> None:
    long = tuple(
        Endpoint(f"2001:db8:ffff:ffff:ffff:ffff:ffff:fff{n}", 65535) for n in range(8)
    )
    everything = Side((long[0].host, 1), tuple(Endpoint(long[0].host, 60000 + n) for n in range(8)))
    call = Call(
        bytes(16), bytes(8), bytes(8), bytes(16), long[0], True, arrange(everything, everything)
    )
    sealed = 32
    assert len(build(Kind.REQUEST, Command.CALL, 1, call)) + sealed <= MAX_DATAGRAM

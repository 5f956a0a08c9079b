"""Which paths are offered to which pair of sides: what docs/paths.md says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from brokerd.arrange import MOST_ADDRESSES, Side, arrange, network_of
from gcbpatch.wire.codec import MAX_DATAGRAM, Kind, build
from gcbpatch.wire.messages import Call, Command, Endpoint, JoinReply, PathKind

RELAYED = PathKind.RELAYED
PUBLIC, NAT_A = "198.51.100.7", "203.0.113.1"
TABLE = Path(__file__).resolve().parents[2] / "docs" / "paths.md"
HEADER = ["case", "connector", "listener", "paths"]


def rows(text: str) -> Iterator[list[str]]:
    """The rows of the table whose head is HEADER."""
    lines = iter(text.splitlines())
    for line in lines:
        if cells(line) == HEADER:
            break
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield cells(line)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def side(words: str) -> Side:
    """What a cell like `seen 203.0.113.1; agent at 10.1.0.2; network a` says."""
    said = dict(part.rsplit(" at ", 1) if " at " in part else part.split(" ", 1)
                for part in words.split("; "))
    local = tuple(Endpoint(host, 5000) for host in said.pop("agent", "").split())
    made = Side((said.pop("seen"), 40000), local, said.pop("network", ""))
    assert not said, f"nobody knows what {said} means"
    return made


def ways(connector: Side, listener: Side) -> str:
    """The paths, as a cell has them."""
    paths = arrange(connector, listener)
    return ", ".join(" ".join([p.kind.name.lower(), *(e.host for e in p.addresses)]) for p in paths)


ROWS = list(rows(TABLE.read_text()))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table_is_what_is_arranged(row: list[str]) -> None:
    _, connector, listener, paths = row
    assert ways(side(connector), side(listener)) == paths


def test_a_port_of_zero_cannot_be_dialled() -> None:
    nowhere = Side((PUBLIC, 1), (Endpoint(PUBLIC, 0),))
    assert ways(nowhere, nowhere) == "relayed"


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


def every_side() -> Iterator[Side]:
    """Of each sort one: seen by any sort of address, with an agent at up to two of them."""
    sorts = [NAT_A, PUBLIC, "10.1.0.2", "127.0.0.1", "2001:db8::1"]
    for observed, count in itertools.product(sorts, range(3)):
        for local in itertools.combinations(sorts, count):
            yield Side((observed, 40000), tuple(Endpoint(host, 5000) for host in local))


def test_every_combination_of_paths_stands_in_the_table_and_no_other() -> None:
    pairs = itertools.product(every_side(), repeat=2)
    found = {_kinds(ways(connector, listener)) for connector, listener in pairs}
    assert found == {_kinds(row[3]) for row in ROWS}


def _kinds(paths: str) -> tuple[str, ...]:
    return tuple(path.split()[0] for path in paths.split(", "))


@given(sides, sides)
def test_every_pair_gets_the_relay_last_and_addresses_that_somebody_named(
    connector: Side, listener: Side
) -> None:
    paths = arrange(connector, listener)
    kinds = [path.kind for path in paths]
    assert kinds == sorted(set(kinds))
    assert paths[-1].kind is RELAYED
    for path in paths:
        named = connector.local if path.kind is PathKind.REVERSE else listener.local
        assert set(path.addresses) <= set(named)
        assert len(path.addresses) <= MOST_ADDRESSES


def test_a_network_is_known_again_and_not_by_what_it_is() -> None:
    one, other = Side((NAT_A, 40000)), Side((NAT_A, 40001), (Endpoint("10.1.0.2", 5000),))
    assert network_of(one, b"secret") == network_of(other, b"secret")
    for different in (Side((PUBLIC, 40000)), Side((NAT_A, 40000), (), "a")):
        assert network_of(one, b"secret") != network_of(different, b"secret")
    assert network_of(one, b"secret") != network_of(one, b"another")


def test_a_call_with_all_that_can_be_in_it_is_one_datagram() -> None:
    long = tuple(
        Endpoint(f"2001:db8:ffff:ffff:ffff:ffff:ffff:fff{n}", 65535) for n in range(8)
    )
    everything = Side((long[0].host, 1), tuple(Endpoint(long[0].host, 60000 + n) for n in range(8)))
    call = Call(
        bytes(16), bytes(8), bytes(8), bytes(16), long[0], True, arrange(everything, everything),
        bytes(16), JoinReply(long[0], bytes(16), 60000, 60000), bytes(16),
    )
    sealed = 32
    assert len(build(Kind.REQUEST, Command.CALL, 1, call)) + sealed <= MAX_DATAGRAM

"""dpfd's mapping table: whose, where, until when."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpfd.table import Mapping, Table
from gcbpatch.wire.messages import TCP, UDP

PUBLIC, INSIDE = ("198.51.100.1", 20000), ("10.1.0.2", 9618)


def mapping(number: int = 0, **changes: object) -> Mapping:
    """A mapping of the client A; each number another listener with addresses of its own."""
    made = Mapping(
        client=b"A" * 16,
        listener=number.to_bytes(16, "big"),
        protocol=TCP,
        public=(PUBLIC[0], PUBLIC[1] + number),
        inside=(INSIDE[0], INSIDE[1] + number),
        management=(INSIDE[0], 40000 + number),
        nonce=b"n" * 16,
        lifetime=30,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_mapping_is_found_in_three_ways() -> None:
    table, made = Table(), mapping()
    table.put(made, now=0)
    assert table.get(made.owner) == made
    assert table.at_public(TCP, PUBLIC) == made
    assert table.at_inside(TCP, INSIDE) == [made]
    assert (len(table), list(table), table.count_of(made.client)) == (1, [made], 1)


def test_tcp_and_udp_are_different_ports() -> None:
    table = Table()
    table.put(mapping(), now=0)
    assert table.at_public(UDP, PUBLIC) is None
    assert table.at_inside(UDP, INSIDE) == []


def test_what_is_removed_is_found_in_no_way() -> None:
    table, made = Table(), mapping()
    table.put(made, now=0)
    assert table.remove(made.owner) == made
    assert table.remove(made.owner) is None
    assert table.get(made.owner) is None
    assert table.at_public(TCP, PUBLIC) is None
    assert table.at_inside(TCP, INSIDE) == []
    assert (len(table), table.count_of(made.client)) == (0, 0)


def test_an_owner_has_one_mapping() -> None:
    table, first = Table(), mapping()
    table.put(first, now=0)
    moved = replace(first, public=(PUBLIC[0], 30000), inside=(INSIDE[0], 1))
    table.put(moved, now=0)
    assert list(table) == [moved]
    assert table.at_public(TCP, PUBLIC) is None
    assert table.at_inside(TCP, INSIDE) == []


def test_a_public_address_has_one_owner() -> None:
    table = Table()
    table.put(mapping(), now=0)
    with pytest.raises(ValueError, match="mapped already"):
        table.put(mapping(1, public=PUBLIC), now=0)
    assert list(table) == [mapping()]


def test_listeners_may_share_an_inside_address() -> None:
    table, first, second = Table(), mapping(), mapping(1, inside=INSIDE)
    table.put(first, now=0)
    table.put(second, now=0)
    assert table.at_inside(TCP, INSIDE) == [first, second]
    table.remove(first.owner)
    assert table.at_inside(TCP, INSIDE) == [second]


def test_a_lease_ends_and_is_reported_until_it_is_removed() -> None:
    table, made = Table(), mapping()
    table.put(made, now=100)
    assert table.expired(129.9) == []
    assert table.expired(130) == [made]
    assert table.expired(131) == [made]
    table.remove(made.owner)
    assert table.expired(132) == []


def test_a_renewed_lease_begins_again() -> None:
    table, made = Table(), mapping()
    table.put(made, now=100)
    assert table.renew(made.owner, now=120)
    assert table.expired(149.9) == []
    assert table.expired(150) == [made]


def test_what_is_not_there_cannot_be_renewed() -> None:
    assert not Table().renew(mapping().owner, now=0)


def test_a_shorter_lease_in_the_place_of_a_longer_one_ends_when_it_should() -> None:
    table, made = Table(), mapping()
    table.put(made, now=0)
    short = replace(made, lifetime=2)
    table.put(short, now=1)
    assert table.expired(2.9) == []
    assert table.expired(3) == [short]


def test_a_nonce_is_not_shown() -> None:
    assert "nnnn" not in repr(mapping())


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "renew", "remove", "look"]),
        st.integers(0, 4),
        st.integers(1, 20),
    ),
    max_size=60,
)


@given(steps)
def test_leases_end_when_a_plain_list_says_so(history: list[tuple[str, int, int]]) -> None:
    table, deadlines, now = Table(), dict[bytes, float](), 0.0
    for action, number, amount in history:
        made = mapping(number, lifetime=amount)
        if action == "put":
            table.put(made, now)
            deadlines[made.listener] = now + amount
        elif action == "renew" and table.renew(made.owner, now):
            held = table.get(made.owner)
            assert held is not None
            deadlines[made.listener] = now + held.lifetime
        elif action == "remove":
            table.remove(made.owner)
            deadlines.pop(made.listener, None)
        now += amount / 2
        over = {m.listener for m in table.expired(now)}
        assert over == {name for name, deadline in deadlines.items() if deadline <= now}

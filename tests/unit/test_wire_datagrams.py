"""Relayed datagrams: their headers, the document's examples, and parts that find each other."""

from __future__ import annotations

import struct

import pytest

from gcbpatch.errors import LocalProtocolError, RemoteProtocolError
from gcbpatch.wire.datagrams import (
    CONTROL_BIT,
    MAGIC_SIZE,
    MOST_HEADER,
    MOST_OPEN,
    MOST_PAYLOAD,
    PART_SECONDS,
    Header,
    Parts,
    magic_of,
    parse,
    parts,
    refused,
    whole,
)
from tests.unit.vectors import Block, relayed

PEER = ("192.0.2.7", 40000)
OTHER = ("192.0.2.8", 40000)
EXAMPLES = relayed()

each_example = pytest.mark.parametrize("block", EXAMPLES.values(), ids=EXAMPLES)


def header_of(block: Block) -> bytes:
    """What this code puts before the example's payload."""
    given = block.given
    peer = (given["peer"][0], given["peer"][1])
    if given.get("refused"):
        return refused(peer)
    if given.get("part"):
        return parts(peer, given["number"])[given["part"] - 1]
    return whole(peer)


@each_example
def test_building_gives_these_octets(block: Block) -> None:
    assert (header_of(block) + block.given["payload"]).hex(" ") == block.data.hex(" ")


@each_example
def test_reading_gives_these_fields(block: Block) -> None:
    header, given = parse(block.data), block.given
    assert list(header.peer) == given["peer"]
    assert (header.part, header.number) == (given.get("part", 0), given.get("number", 0))
    assert header.refused is given.get("refused", False)
    assert block.data[header.size :] == given["payload"]


@pytest.mark.parametrize("first", range(256))
def test_a_magic_looks_neither_like_data_nor_like_a_command(first: int) -> None:
    magic = magic_of(bytes([first]) + b"BBBBBBB")
    assert len(magic) == MAGIC_SIZE
    assert not magic[0] & CONTROL_BIT
    assert magic[0] != ord("G")


@each_example
def test_octets_are_what_the_document_says(block: Block) -> None:
    kind, part, port = struct.unpack_from(">BBH", block.data)
    six = ":" in block.given["peer"][0]
    assert kind == (0xE4 if part else 0xF4 if "refused" in block.given else 0xD4) + 2 * six
    assert (part, port) == (block.given.get("part", 0), block.given["peer"][1])
    assert block.data[0] & CONTROL_BIT


def test_the_examples_show_every_kind_of_ipv4_and_one_of_ipv6() -> None:
    assert {block.data[0] for block in EXAMPLES.values()} == {0xD4, 0xD6, 0xE4, 0xF4}


@pytest.mark.parametrize(
    "peer", [PEER, ("2001:db8::7", 1), ("0.0.0.0", 65535), ("::ffff:1.2.3.4", 9)]
)
def test_what_is_built_is_read(peer: tuple[str, int]) -> None:
    assert parse(whole(peer) + b"x").peer == peer
    one, two = parts(peer, 2**32 + 5)
    assert [(parse(h).peer, parse(h).part, parse(h).number) for h in (one, two)] == [
        (peer, 1, 5),
        (peer, 2, 5),
    ]
    assert parse(one).size == len(one) <= MOST_HEADER


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xd4",
        whole(PEER)[:7],
        whole(("2001:db8::7", 9))[:19],
        parts(PEER, 1)[0][:11],
        b"\xd5" + whole(PEER)[1:],
        b"\x54" + whole(PEER)[1:],
        b"\xd4\x01" + whole(PEER)[2:],
        b"\xe4\x00" + parts(PEER, 1)[0][2:],
        b"\xe4\x03" + parts(PEER, 1)[0][2:],
        b"\xd4\x00\x00\x00" + whole(PEER)[4:],
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse(data)


@pytest.mark.parametrize(
    "peer", [("host", 9), ("192.0.2.7", 0), ("192.0.2.7", 65536), ("fe80::1%1", 9)]
)
def test_a_peer_that_no_header_can_name_is_a_fault_of_ours(peer: tuple[str, int]) -> None:
    with pytest.raises(LocalProtocolError):
        whole(peer)
    with pytest.raises(LocalProtocolError):
        parts(peer, 1)


def both(number: int, peer: tuple[str, int] = PEER) -> tuple[Header, Header]:
    one, two = parts(peer, number)
    return parse(one), parse(two)


def test_parts_are_joined_in_any_order() -> None:
    first, second = both(1)
    for order in ([(first, b"ab"), (second, b"cd")], [(second, b"cd"), (first, b"ab")]):
        some = Parts()
        assert some.join(*order[0], now=0.0) is None
        assert some.join(*order[1], now=1.0) == b"abcd"
        assert len(some) == 0


def test_parts_of_different_datagrams_and_peers_are_not_mixed() -> None:
    some = Parts()
    assert some.join(both(1)[0], b"1", 0.0) is None
    assert some.join(both(2)[1], b"2", 0.0) is None
    assert some.join(both(1, OTHER)[1], b"3", 0.0) is None
    assert some.join(both(1)[1], b"4", 0.0) == b"14"


def test_the_same_part_again_does_not_complete_anything() -> None:
    some = Parts()
    assert some.join(both(1)[0], b"a", 0.0) is None
    assert some.join(both(1)[0], b"b", 0.0) is None
    assert some.join(both(1)[1], b"c", 0.0) == b"bc"


def test_a_part_waits_for_a_limited_time() -> None:
    some = Parts()
    some.join(both(1)[0], b"a", 0.0)
    assert some.join(both(1)[1], b"b", PART_SECONDS) is None
    assert some.join(both(1)[0], b"c", PART_SECONDS) == b"cb"


def test_parts_that_wait_are_limited_in_number() -> None:
    some = Parts()
    for number in range(MOST_OPEN + 1):
        some.join(both(number)[0], b"x", 0.0)
    assert len(some) == MOST_OPEN
    assert not some.completes(both(0)[1], 0.0)
    assert some.join(both(MOST_OPEN)[1], b"y", 0.0) == b"xy"


def test_what_no_datagram_could_hold_is_dropped() -> None:
    some = Parts()
    some.join(both(1)[0], bytes(MOST_PAYLOAD), 0.0)
    assert some.join(both(1)[1], b"x", 0.0) is None
    some.join(both(2)[0], bytes(MOST_PAYLOAD), 0.0)
    assert some.join(both(2)[1], b"", 0.0) == bytes(MOST_PAYLOAD)


def test_a_part_that_was_peeked_at_completes_it_once_more() -> None:
    some = Parts()
    some.join(both(1)[0], b"a", 0.0)
    assert some.join(both(1)[1], b"b", 0.0, peeked=True) == b"ab"
    assert some.join(both(1)[1], b"b", 0.0) == b"ab"
    assert len(some) == 0

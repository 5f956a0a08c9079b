"""Rules in the kernel's own layout. The bytes were read from a kernel (6.18, x86-64)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpfd.kernel import blocks
from dpfd.kernel.entries import parse_entry
from dpfd.kernel.port import Claim
from dpfd.reconcile import Rule


def entry(network: str, mask: str, protocol: int, matches: str, target: str) -> bytes:
    """struct ipt_entry of a rule with these parts, in hexadecimal."""
    ip = bytes(4) + bytes.fromhex(network) + bytes(4) + bytes.fromhex(mask) + bytes(64)
    ip += struct.pack("=HBB", protocol, 0, 0)
    body, end = bytes.fromhex(matches), bytes.fromhex(target)
    sizes = struct.pack("=IHHI", 0, 112 + len(body), 112 + len(body) + len(end), 0)
    return ip + sizes + bytes(16) + body + end


def extension(name: str, revision: int, body: str) -> str:
    data = bytes.fromhex(body)
    data += bytes(-len(data) % 8)
    # What stands behind the end of a name is left over from other rules.
    label = (name.encode() + b"\0\0\x30\0tcp").ljust(28, b"\0") + b"\x06"
    return (struct.pack("=H29sB", 32 + len(data), label, revision) + data).hex()


PUBLIC, ALL = "c6336401", "ffffffff"
TCP_10000 = extension("tcp", 0, "0000ffff1027102700000000")
DNAT_V2 = extension(
    "DNAT", 2, "03000000" + "0a010002" + "00" * 12 + "0a010002" + "00" * 12 + "271027100000"
)
DNAT_V0 = extension("DNAT", 0, "01000000" + "03000000" + "0a010002" * 2 + "27102710")
ACCEPT = extension("", 0, "feffffff00000000")


@pytest.mark.parametrize("dnat", [DNAT_V0, DNAT_V2])
def test_a_forwarding_rule_is_read_back(dnat: str) -> None:
    parsed = parse_entry(entry(PUBLIC, ALL, 6, TCP_10000, dnat))
    assert parsed.rule() == Rule(6, ("198.51.100.1", 10000), ("10.1.0.2", 10000))


def test_others_rules_are_not_ours() -> None:
    wide = extension("tcp", 0, "0000ffff1027112700000000")
    for data in (
        entry(PUBLIC, ALL, 6, wide, DNAT_V2),
        entry(PUBLIC, "ffffff00", 6, TCP_10000, DNAT_V2),
        entry(PUBLIC, ALL, 6, "", DNAT_V2),
        entry(PUBLIC, ALL, 6, TCP_10000, ACCEPT),
    ):
        assert parse_entry(data).rule() is None


def test_a_rule_for_a_range_claims_it() -> None:
    wide = extension("tcp", 0, "0000ffff1027112700000000")
    (claim,) = parse_entry(entry("c6336400", "ffffff00", 6, wide, DNAT_V2)).claims()
    assert claim == Claim(6, 0xC6336400, 0xFFFFFF00, 10000, 10001)
    assert claim.covers(6, 0xC6336401, 10001)
    assert not claim.covers(6, 0xC6336401, 10002)
    assert not claim.covers(17, 0xC6336401, 10001)
    assert not claim.covers(6, 0xC6336501, 10001)


def test_a_rule_for_many_ports_claims_each() -> None:
    ports = "5000" + "1027" + "1a27" + "00" * 24
    marks = "00" + "01" + "00" * 13
    many = extension("multiport", 1, "01" + "03" + ports + marks + "00")
    redirect = extension("REDIRECT", 0, "01000000" + "02000000" + "00000000" * 2 + "1f901f90")
    claims = list(parse_entry(entry(PUBLIC, ALL, 6, many, redirect)).claims())
    assert [(claim.low, claim.high) for claim in claims] == [(80, 80), (10000, 10010)]


def test_an_exposed_host_claims_no_port() -> None:
    assert not list(parse_entry(entry(PUBLIC, ALL, 6, "", DNAT_V2)).claims())


def test_an_accept_claims_nothing() -> None:
    assert not list(parse_entry(entry(PUBLIC, ALL, 6, TCP_10000, ACCEPT)).claims())


@given(st.data())
def test_damaged_entries_are_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(entry(PUBLIC, ALL, 6, TCP_10000, DNAT_V2))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        parse_entry(bytes(whole[:cut]))
    except ValueError:
        return


@pytest.mark.parametrize("protocol", [6, 17])
def test_a_mapping_reads_as_it_was_written(protocol: int) -> None:
    rule = Rule(protocol, ("198.51.100.1", 20000), ("10.1.0.2", 65535))
    assert parse_entry(blocks.forward(rule)).rule() == rule
    assert blocks.block(rule) == ("DPFD-U-C6336401-4E" if protocol == 17 else "DPFD-C6336401-4E")
    assert parse_entry(blocks.block_jump(blocks.block(rule))).ports == ((19968, 20223),)

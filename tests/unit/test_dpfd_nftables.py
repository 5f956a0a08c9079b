"""The pure rooms of the nftables back end: what is written, read, and taken for others' claims."""

import errno
import struct
from typing import Any

import pytest

from dpfd.kernel import elements, foreign, netlink, ruleset
from dpfd.kernel.elements import Element
from dpfd.kernel.port import Claim, Layout
from dpfd.kernel.sources import Sources
from dpfd.reconcile import Rule
from gcbpatch.wire.messages import TCP, UDP

A, B = ("198.51.100.1", 20000), ("198.51.100.2", 20001)
X, Y = ("10.1.0.2", 80), ("10.1.0.3", 65535)
LAYOUT = Layout(("198.51.100.1",), 20000, 20099, (("lan", "10.1.0.0/24"),))


def test_an_element_reads_as_it_was_written() -> None:
    made = [Element(TCP, A, X), Element(UDP, B, Y)]
    asked = elements.message(elements.SET, elements.where("t", "m"), [e.whole(5) for e in made], "")
    assert elements.parse([asked.body]) == made


@pytest.mark.parametrize("data", [b"", netlink.nest(1, b"\0" * 3), netlink.attribute(1, b"x" * 12)])
def test_what_is_no_element_is_a_value_error(data: bytes) -> None:
    body = netlink.nest(3, netlink.nest(1, data))
    with pytest.raises(ValueError):
        elements.parse([body])


def test_an_attribute_that_is_longer_than_what_is_there_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no netlink attribute"):
        list(netlink.attributes(struct.pack("=HH", 9, 1) + b"abcd"))


def test_a_refusal_says_what_the_kernel_says() -> None:
    assert str(netlink.Refusal(errno.ENOENT)) == "No such file or directory"
    assert "(too big)" in str(netlink.Refusal(errno.E2BIG, "too big"))


def rule(public: tuple[str, int], inside: tuple[str, int], protocol: int = UDP) -> Rule:
    return Rule(protocol, public, inside)


def test_a_listener_keeps_its_source_until_that_mapping_goes() -> None:
    sources = Sources()

    def change(adds: list[Rule], removes: list[Rule]) -> tuple[Any, Any]:
        changes = sources.changes(adds, removes)
        sources.done(adds, removes, changes)
        return changes

    assert change([rule(B, X), rule(A, Y, TCP)], []) == (((X, B),), ())
    assert change([rule(A, X)], []) == ((), ())
    assert change([], [rule(B, X)]) == (((X, A),), ((X, B),))
    assert sources.of([rule(A, X), rule(A, Y, TCP)]) == [(X, A)]
    assert change([rule(A, Y)], [rule(A, X)]) == (((Y, A),), ((X, A),))
    assert change([], [rule(A, Y)]) == ((), ((Y, A),))


def test_sources_that_are_wrong_are_put_right_with_the_next_change() -> None:
    sources = Sources([rule(A, X)], [(X, B), (Y, A)])
    changes = sources.changes([], [])
    assert changes == (((X, A),), ((X, B), (Y, A)))
    sources.done([], [], changes)
    assert sources.changes([], []) == ((), ())


def test_the_script_keeps_what_is_another_dpfds() -> None:
    others = ruleset.Sharing(("203.0.113.1",), (("lan2", "10.2.0.0/24"),), ((20100, 20199),))
    text = ruleset.script(LAYOUT, others)
    assert "ranges { 20000-20099, 20100-20199 }" in text
    assert "hosts { 198.51.100.1 : 198.51.100.1, 203.0.113.1 : 203.0.113.1 }" in text
    assert 'inner { "lan", "lan2" }' in text and "networks { 10.1.0.0/24, 10.2.0.0/24 }" in text
    before = ruleset.Sharing(ranges=((19000, 20050),))  # its own, with other settings
    assert "ranges { 20000-20099 }" in ruleset.script(LAYOUT, before)


def matches(field: str, right: Any, protocol: str = "tcp") -> dict[str, Any]:
    payload = {"payload": {"protocol": protocol, "field": field}}
    return {"match": {"op": "==", "left": payload, "right": right}}


TO = {"dnat": {"addr": "10.1.0.9"}}
PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
ONE = (int.from_bytes(bytes([198, 51, 100, 1]), "big"), 0xFFFFFFFF)
CLAIMS: dict[str, tuple[list[dict[str, Any]], list[Claim]]] = {
    "a port": ([matches("dport", 80), TO], [Claim(TCP, 0, 0, 80, 80)]),
    "ports of an address": (
        [
            matches("daddr", "198.51.100.1", "ip"),
            matches("dport", {"set": [80, {"range": [90, 99]}]}),
            TO,
        ],
        [Claim(TCP, *ONE, 80, 80), Claim(TCP, *ONE, 90, 99)],
    ),
    "a redirection of either protocol": (
        [matches("dport", 53, "th"), {"redirect": {"port": 5353}}],
        [Claim(0, 0, 0, 53, 53)],
    ),
    "the keys of a map": (
        [{"dnat": {"addr": {"map": {"key": PORT, "data": {"set": [[80, "10.1.0.9"]]}}}}}],
        [Claim(TCP, 0, 0, 80, 80)],
    ),
    "a target of iptables'": (
        [matches("dport", 80), {"xt": {"type": "target", "name": "DNAT"}}],
        [Claim(TCP, 0, 0, 80, 80)],
    ),
    "a network": (
        [
            matches("daddr", {"prefix": {"addr": "198.51.0.0", "len": 16}}, "ip"),
            matches("dport", 1),
            TO,
        ],
        [Claim(TCP, ONE[0] & 0xFFFF0000, 0xFFFF0000, 1, 1)],
    ),
    "an exposed host": ([matches("daddr", "198.51.100.1", "ip"), TO], []),
    "no translation": ([matches("dport", 80), {"accept": None}], []),
    "all but a port": (
        [{"match": {"op": "!=", "left": PORT, "right": 22}}, TO],
        [],
    ),
}


@pytest.mark.parametrize(("expression", "claims"), CLAIMS.values(), ids=CLAIMS)
def test_what_others_rules_claim(expression: list[dict[str, Any]], claims: list[Claim]) -> None:
    made = {"family": "ip", "table": "nat", "chain": "pre", "expr": expression}
    assert foreign.of_rule(made) == claims

"""Which public ports the rules of others forward, in nftables' world: read from nft's JSON.

What is claimed is what a rule that translates destinations says itself of the destination: an
address and ports, in a match or as the keys of a map. A rule without ports claims none: single
ports go before an exposed host. It must never be taken for more: conditions that the caller of a
chain has looked at are not seen here.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import ruleset, tools
from .port import Claim

_PROTOCOLS = {"tcp": 6, "udp": 17, "th": 0}
_TARGETS = ("DNAT", "REDIRECT")
_FAMILIES = ("ip", "inet")

Range = tuple[int, int]


@dataclass
class _Seen:
    """What a rule has been found to match: networks as number and mask, ranges of ports."""

    networks: list[Range]
    ports: list[Range]
    protocol: int = 0
    translates: bool = False


def claims() -> list[Claim]:
    """Return others' claims in nftables. Raises KernelError; without nft there are none."""
    if not tools.there_is("nft"):
        return []
    listed = json.loads(tools.run(["nft", "-j", "-t", "list", "ruleset"]))["nftables"]
    rules = [item["rule"] for item in listed if "rule" in item]
    return [claim for rule in rules if _is_anothers(rule) for claim in of_rule(rule)]


def of_rule(rule: dict[str, Any]) -> list[Claim]:
    """Return what one rule claims."""
    seen = _Seen([], [])
    for one in rule.get("expr", []):
        for kind, body in one.items():
            if kind == "match":
                _match(seen, body, rule)
            elif kind in ("dnat", "redirect"):
                seen.translates = True
                _keys(seen, body or {}, rule)
            elif kind == "xt" and isinstance(body, dict) and body.get("name") in _TARGETS:
                seen.translates = True
    if not seen.translates:
        return []
    return [
        Claim(seen.protocol, network, mask, low, high)
        for network, mask in seen.networks or [(0, 0)]
        for low, high in seen.ports
    ]


def _is_anothers(rule: dict[str, Any]) -> bool:
    return rule["family"] in _FAMILIES and rule["table"] != ruleset.TABLE


def _match(seen: _Seen, body: dict[str, Any], rule: dict[str, Any]) -> None:
    left = body["left"]
    if body["op"] not in ("==", "in") or not isinstance(left, dict):
        return
    if left.get("meta", {}).get("key") == "l4proto":
        seen.protocol = _PROTOCOLS.get(str(body["right"]), 0)
        return
    payloads = left.get("concat", [left])
    for value in _values(body["right"], rule):
        fields = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
        _note(seen, payloads, fields)


def _keys(seen: _Seen, body: dict[str, Any], rule: dict[str, Any]) -> None:
    """A translation may look up where to: then the keys of the map are what it forwards."""
    for where in (body.get("addr"), body.get("port")):
        if not isinstance(where, dict) or "map" not in where:
            continue
        key = where["map"]["key"]
        payloads = key.get("concat", [key])
        for pair in _values(where["map"]["data"], rule):
            value = pair[0] if isinstance(pair, list) else pair
            fields = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
            _note(seen, payloads, fields)


def _note(seen: _Seen, payloads: Iterable[Any], fields: Iterable[Any]) -> None:
    for left, right in zip(payloads, fields, strict=False):
        payload = left.get("payload", {}) if isinstance(left, dict) else {}
        kind, field = payload.get("protocol"), payload.get("field")
        if (kind, field) == ("ip", "daddr"):
            seen.networks += _networks(right)
        elif kind in _PROTOCOLS and field == "dport":
            seen.protocol = _PROTOCOLS[kind] or seen.protocol
            seen.ports += _ports(right)


def _values(right: Any, rule: dict[str, Any]) -> Iterator[Any]:
    """Yield what a match compares with: one value, or those of a set, named or not."""
    if isinstance(right, str) and right.startswith("@"):
        yield from _elements(rule, right[1:])
    elif isinstance(right, dict) and "set" in right:
        yield from right["set"]
    else:
        yield right


def _elements(rule: dict[str, Any], name: str) -> Iterator[Any]:
    """Yield the elements of a named set or map; those with a timeout are wrapped."""
    for kind in ("set", "map"):
        argv = ["nft", "-j", "list", kind, rule["family"], rule["table"], name]
        if not tools.succeeds(argv):
            continue
        for item in json.loads(tools.run(argv))["nftables"]:
            for one in item.get(kind, {}).get("elem", []):
                key = one[0] if isinstance(one, list) else one
                yield key["elem"]["val"] if isinstance(key, dict) and "elem" in key else key


def _networks(value: Any) -> list[Range]:
    """Return networks as number and mask; a range is widened to those that hold it."""
    try:
        if isinstance(value, dict) and "range" in value:
            ends = (ipaddress.IPv4Address(end) for end in value["range"])
            found = list(ipaddress.summarize_address_range(*ends))
        elif isinstance(value, dict) and "prefix" in value:
            prefix = value["prefix"]
            found = [ipaddress.IPv4Network(f"{prefix['addr']}/{prefix['len']}", strict=False)]
        else:
            found = [ipaddress.IPv4Network(str(value))]
    except ValueError:
        return [(0, 0)]  # a name, or what is not known here: it may be any address
    return [(int(one.network_address), int(one.netmask)) for one in found]


def _ports(value: Any) -> list[Range]:
    if isinstance(value, int):
        return [(value, value)]
    if isinstance(value, dict) and "range" in value:
        low, high = value["range"]
        return [(int(low), int(high))]
    return []

"""The lab's nftables rules, as text. Pure: nothing here touches a kernel.

They live in tables of their own (`inet lab`, and `netdev lab-…` for what a link does), so that a
gateway daemon may use legacy iptables or its own nft table beside them. The lab's NAT chains have
a later priority than everybody's, so a mapping that somebody else sets wins over masquerading.
"""

from typing import Literal

Policy = Literal["accept", "drop", "reject", "rst"]
Mapping = Literal["preserving", "random", "shifting"]

# What happens to a packet from outside that nobody inside has asked for.
_POLICIES: dict[str, list[str]] = {
    "accept": ["accept"],
    "drop": ["counter drop"],
    # As firewalld does: connect() fails with EHOSTUNREACH.
    "reject": ["counter reject with icmpx admin-prohibited"],
    # As a machine without a firewall does: TCP connect() fails with ECONNREFUSED.
    "rst": [
        "meta l4proto tcp counter reject with tcp reset",
        "counter reject with icmpx port-unreachable",
    ],
}
# RFC 4787 and 5382: endpoint-independent as long as no two hosts want the same port, or
# address-and-port-dependent; "shifting" is as the first, and shows every port as another one.
_MAPPINGS = {
    "preserving": "masquerade", "random": "masquerade fully-random", "shifting": "masquerade",
}
_SHIFT = 1024  # one bit of the port is turned round


def policies() -> list[str]:
    """The names of the policies for what comes unsolicited."""
    return list(_POLICIES)


def mappings() -> list[str]:
    """The names of the mapping behaviours."""
    return list(_MAPPINGS)


def chain(name: str, *lines: str) -> str:
    return "\n".join([f"chain {name} {{", *lines, "}"])


def table(*chains: str, name: str = "inet lab") -> str:
    return "\n".join([f"table {name} {{", *chains, "}"])


def input_chains(interface: str, policy: Policy) -> list[str]:
    """The host firewall towards `interface`; the chain `open` holds the exceptions."""
    return [
        chain("open"),
        chain(
            "input",
            "type filter hook input priority filter; policy accept;",
            f'iifname != "{interface}" accept',
            "ct state established,related accept",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
            "jump open",
            *_POLICIES[policy],
        ),
    ]


def nat_chains(interface: str, inside: str, mapping: Mapping) -> list[str]:
    """Masquerading of the network `inside` behind `interface`, and nothing in but answers."""
    return [
        *(_shift_chains(interface) if mapping == "shifting" else []),
        chain("static", "type nat hook prerouting priority dstnat + 10;"),
        chain(
            "source_nat",
            "type nat hook postrouting priority srcnat + 10;",
            f'oifname "{interface}" ip saddr {inside} {_MAPPINGS[mapping]}',
        ),
        # What conntrack finds invalid is not translated; a private source must not show outside.
        chain(
            "leak",
            "type filter hook postrouting priority srcnat + 20; policy accept;",
            f'oifname "{interface}" ip saddr {inside} drop',
        ),
        chain(
            "forward",
            "type filter hook forward priority filter; policy accept;",
            f'iifname != "{interface}" accept',
            "ct state established,related accept",
            "ct status dnat accept",
            "counter drop",
        ),
    ]


def _shift_chains(interface: str) -> list[str]:
    """Beyond what conntrack sees: on the way out after it, on the way in before it."""

    def turn(which: str) -> list[str]:
        ports = (f"{protocol} {which}" for protocol in ("tcp", "udp"))
        return [f"{port} set {port} ^ {_SHIFT}" for port in ports]

    return [
        chain(
            "shift_out",
            "type filter hook postrouting priority srcnat + 30; policy accept;",
            *(f'oifname "{interface}" {rule}' for rule in turn("sport")),
        ),
        chain(
            "shift_in",
            "type filter hook prerouting priority raw - 10; policy accept;",
            *(f'iifname "{interface}" {rule}' for rule in turn("dport")),
        ),
    ]


def open_rule(ports: str) -> str:
    """Let in what comes for these ports, e.g. `65432, 10000-32767`."""
    return f"add rule inet lab open meta l4proto {{ tcp, udp }} th dport {{ {ports} }} accept"


def static_rule(
    interface: str, protocol: str, public: tuple[str, int], inside: tuple[str, int]
) -> str:
    """A port forwarding that an administrator has set by hand."""
    return (
        f'add rule inet lab static iifname "{interface}" ip daddr {public[0]} '
        f"{protocol} dport {public[1]} dnat ip to {inside[0]}:{inside[1]}"
    )


def ingress(interface: str, *, loss: float = 0.0, block_udp: bool = False) -> str:
    """What is silently lost of the packets that arrive on `interface`."""
    lines = []
    if block_udp:
        lines.append("ip protocol udp counter drop")
    if loss:
        lines.append(f"meta protocol ip numgen random mod 1000000 < {round(loss * 1e6)} drop")
    hook = f'type filter hook ingress device "{interface}" priority filter; policy accept;'
    return table(chain("ingress", hook, *lines), name=f"netdev lab-{interface}")

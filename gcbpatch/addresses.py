"""Internet addresses as pure values: reading, writing, and what kind of network they are of.

It must never resolve a name, open a socket or look at this machine's interfaces.
"""

from __future__ import annotations

import ipaddress

Address = tuple[str, int]
"""An IP literal and a port, as the socket module has them for AF_INET."""

ANY, V4, V6 = 0, 4, 6
"""Which addresses a socket can have and show: of either family, or of one."""

BROKER_PORT = 65432
"""The predefined port at which connectors look for a broker (Son & Livny 2003, section 4)."""

GATEWAY_PORT = 65431
"""The port at which dpfd takes commands unless told otherwise."""

_PRIVATE = tuple(
    ipaddress.ip_network(n)
    for n in (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # RFC 6598, carrier-grade NAT
        "169.254.0.0/16",  # RFC 3927
        "127.0.0.0/8",
        "fc00::/7",  # RFC 4193
        "fe80::/10",
        "::1/128",
    )
)


def is_ip(host: str) -> bool:
    """Return whether ``host`` is an IPv4 or IPv6 literal."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_private(host: str) -> bool:
    """Return whether ``host`` (an IP literal) has a meaning only inside some network.

    RFC 1918, RFC 6598, RFC 4193, link-local and loopback ranges. Documentation ranges
    count as public: the lab uses them for its Internet.

    Raises ValueError if ``host`` is no IP literal.
    """
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address.version == net.version and address in net for net in _PRIVATE)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` (an IP literal) never leaves this machine."""
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_wildcard(host: str) -> bool:
    """Return whether ``host`` is the address that means all of this host's addresses."""
    return host == "" or ipaddress.ip_address(host).is_unspecified


def family_of(host: str) -> int:
    """Return 4 or 6 for an IP literal."""
    return 6 if ":" in host else 4


def canonical(host: str) -> str:
    """Return an IP literal as the socket module writes it, so that two can be compared.

    A name is returned as it is.
    """
    return str(ipaddress.ip_address(host)) if ":" in host and is_ip(host) else host


def is_link_local(host: str) -> bool:
    """Return whether ``host`` (an IP literal) means something on one link only: fe80::/10."""
    return ":" in host and ipaddress.ip_address(host).is_link_local


def mapped(address: Address) -> tuple[str, int, int, int]:
    """Return an address as an IPv6 socket has it: IPv4 hosts mapped (RFC 4291, 2.5.5.2)."""
    host, port = address
    return (host if ":" in host else f"::ffff:{host}"), port, 0, 0


def shown(address: Address, v6: bool) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return an address as a socket of that family has it.

    An IPv6 host has no form for an IPv4 socket, which then says that it has none.
    """
    if v6:
        return mapped(address)
    return address if ":" not in address[0] else ("0.0.0.0", address[1])


def unmapped(host: str) -> str:
    """Return the IPv4 host that a mapped one stands for; any other as it is."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def is_multicast(host: str) -> bool:
    """Return whether ``host`` (an IP literal) means many hosts at once, or all of them."""
    address = ipaddress.ip_address(host)
    return address.is_multicast or host == "255.255.255.255"


def pack_host(host: str) -> bytes:
    """Return an IP literal as 4 or 16 octets; raises ValueError if it is none or has a zone."""
    address = ipaddress.ip_address(host)
    if "%" in host:
        raise ValueError(f"{host!r} has a zone, which means nothing on another host")
    return address.packed


def unpack_host(octets: bytes) -> str:
    """Return 4 or 16 octets as an IP literal; raises ValueError for any other number.

    In the form in which sockets tell it: a mapped IPv4 host in dotted numbers, which ipaddress
    writes so from Python 3.13 on.
    """
    if len(octets) == 4:
        return ".".join(map(str, octets))
    address = ipaddress.IPv6Address(octets)
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"


def parse_port(text: str, what: str = "port") -> int:
    """Return ``text`` as a port number, 0 to 65535; raise ValueError saying what is right."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError(f"{what}: {text!r} is not a port; a number from 0 to 65535 would be")
    return int(text)


def parse_host_port(text: str, default_port: int) -> Address:
    """Read ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``; the host may be a name.

    Raises ValueError with the right form in its text.
    """
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address; [2001:db8::1]:65432 would be")
        port = rest[1:]
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError(f"{text!r} names no host; host:port would be right")
    return canonical(host), parse_port(port, f"port of {host}") if port else default_port


def format_address(address: tuple[str, int]) -> str:
    """Return ``host:port``, with brackets around an IPv6 host."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

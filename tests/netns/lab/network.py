"""Networks and links: a bridge with addresses to give away, and the cables that end in it."""

import ipaddress
import itertools
import sys
from pathlib import Path
from typing import NamedTuple, TypedDict

from tests.netns.lab import program, rules
from tests.netns.lab.carrier import wait_until_carrying
from tests.netns.lab.errors import LabError
from tests.netns.lab.space import Space, Warden

_PORTS = itertools.count(1)


class LinkOptions(TypedDict, total=False):
    """What a node's uplink does to packets; each way for itself."""

    delay_ms: float
    """Added in each direction; a round trip takes at least twice as long."""
    loss: float
    """Probability from 0 to 1 that a packet is lost, in each direction."""
    seed: int
    """Makes the same packets of a direction be lost in every run."""
    block_udp: bool
    """Nothing that is UDP gets out. It vanishes on the way; sendto() does not fail."""


class Network:
    """An IPv4 network on a bridge, held by a namespace that routes for it.

    `router` is that namespace's address here. `behind` is the address under which the world
    sees this network, None where it needs no translation.
    """

    def __init__(
        self, space: Space, bridge: str, cidr: str, *, router_index: int, behind: str | None = None
    ) -> None:
        self.space = space
        self.bridge = bridge
        self.block = _network(cidr)
        self.router = str(self.block[router_index])
        self.behind = behind
        self.has_ipv6 = False
        self._members = [Member(space, bridge, self.router, mac_of(self.router))]
        self._free = (str(host) for host in self.block.hosts() if str(host) != self.router)
        space.ip(
            f"link add name {bridge} address {mac_of(self.router)} type bridge mcast_snooping 0",
            f"address add {self.with_prefix(self.router)} dev {bridge}",
            f"link set dev {bridge} up",
        )

    def next_address(self) -> str:
        """An address that nobody here has yet."""
        address = next(self._free, None)
        if address is None:
            raise LabError(f"{self.block} has no free address left; take a larger network")
        return address

    def with_prefix(self, address: str) -> str:
        return f"{address}/{self.block.prefixlen}"

    def introduce(self, newcomer: "Member") -> list[str]:
        """Tell every member the newcomer's Ethernet address; the commands to tell it theirs.

        While ARP asks, the kernel queues packets, and lets later ones overtake them when it has
        the answer. Here nothing is overtaken, and the first packet takes no longer than others.
        """
        others = [each for each in self._members if each.space is not newcomer.space]
        for other in others:
            other.space.ip(_neighbour(newcomer, other.interface))
        self._members.append(newcomer)
        return [_neighbour(other, newcomer.interface) for other in others]


class Member(NamedTuple):
    """An address of a network, and where it is."""

    space: Space
    interface: str
    address: str
    mac: str


def mac_of(address: str) -> str:
    """The Ethernet address of an interface whose first IPv4 address is this."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + ipaddress.IPv4Address(address).packed)


def _neighbour(member: Member, interface: str) -> str:
    target = f"{member.address} lladdr {member.mac}"
    return f"neighbour replace {target} dev {interface} nud permanent"


def _network(cidr: str) -> ipaddress.IPv4Network:
    try:
        block = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise LabError(f"{cidr!r} is no IPv4 network like 10.1.0.0/24: {error}") from error
    if block.prefixlen > 29:
        raise LabError(f"{cidr} is too small for a gateway and hosts; take a /29 or larger")
    return block


def attach(
    warden: Warden,
    network: Network,
    space: Space,
    interface: str,
    address: str,
    options: LinkOptions,
) -> program.Program | None:
    """Link the namespace to the network and configure the interface with this address.

    Returns the program that delays and loses packets, where the link needs one.
    """
    port = f"p{next(_PORTS)}"
    plug = f"link set dev {port} master {network.bridge} up"
    line = _needs_line(options)
    if line:
        running = _lay_line(warden, network.space, port, space, interface, options)
        running.name = f"the line of {address}"
        network.space.ip(plug)
    else:
        running = None
        network.space.ip(_veth(port, interface, space), plug)
    neighbours = network.introduce(Member(space, interface, address, mac_of(address)))
    space.ip(
        f"link set dev {interface} address {mac_of(address)} up",
        f"address add {network.with_prefix(address)} dev {interface}",
        f"route add default via {network.router}",
        *neighbours,
    )
    wait_until_carrying(network.space, port, network.bridge)
    wait_until_carrying(space, interface)
    loss = 0.0 if line else options.get("loss", 0.0)
    if line or loss:
        _one_frame_per_packet(network.space, port)
        _one_frame_per_packet(space, interface)
    if loss:
        space.nft(rules.ingress(interface, loss=loss))
    block_udp = options.get("block_udp", False)
    if loss or block_udp:
        network.space.nft(rules.ingress(port, loss=loss, block_udp=block_udp))
    return running


def _needs_line(options: LinkOptions) -> bool:
    """Plain loss is the kernel's to do; delay, and loss that can be repeated, are not."""
    if not 0 <= options.get("loss", 0.0) < 1:
        raise LabError(f"loss must be a probability below 1, not {options['loss']}")
    if options.get("delay_ms", 0.0) < 0:
        raise LabError(f"delay_ms must not be negative, like {options['delay_ms']}")
    return options.get("delay_ms", 0.0) > 0 or "seed" in options


def _veth(name: str, peer: str, peer_space: Space) -> str:
    return f"link add name {name} type veth peer name {peer} netns {peer_space.path}"


def _lay_line(
    warden: Warden, upstream: Space, port: str, space: Space, interface: str, options: LinkOptions
) -> program.Program:
    middle = warden.space()
    middle.ip(
        _veth("near", interface, space),
        _veth("far", port, upstream),
        "link set dev near up",
        "link set dev far up",
    )
    script = str(Path(__file__).with_name("line.py"))
    numbers = [options.get("delay_ms", 0.0), options.get("loss", 0.0), options.get("seed", 0)]
    argv = [sys.executable, "-I", "-S", script, *map(str, numbers)]
    line = program.Program("a line", [*middle.entry(), *argv], env=program.environment())
    line.wait_line("^ready$")
    return line


def _one_frame_per_packet(space: Space, interface: str) -> None:
    """What is lost must be a packet of the wire's size, not 64 KiB waiting for segmentation."""
    space.ip(f"link set dev {interface} gso_max_segs 1")

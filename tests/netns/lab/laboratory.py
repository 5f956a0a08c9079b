"""The lab as a whole: it makes networks, hosts and gateways, and ends everything."""

import contextlib
import socket
from types import TracebackType
from typing import Self, Unpack

from tests.netns.lab import rules
from tests.netns.lab.errors import LabError
from tests.netns.lab.network import LinkOptions, Network
from tests.netns.lab.nodes import Gateway, Host, Node
from tests.netns.lab.program import Program
from tests.netns.lab.space import Warden, has_capabilities

# RFC 5737. All that is public in the lab is documentation's.
PUBLIC_NETWORKS = ("198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24")


class Lab:
    """A small Internet of its own. Closed, or its process gone, nothing of it is left.

    `internet` is the first public segment. A core router joins the public segments, one hop
    between any two; what it has no route for (private addresses) vanishes there.
    `rootless`: build it inside a user namespace; None: only if capabilities are missing.
    LabError if it cannot be had here.
    """

    def __init__(self, *, rootless: bool | None = None) -> None:
        self.rootless = not has_capabilities() if rootless is None else rootless
        self.nodes: dict[str, Node] = {}
        self._programs: list[Program] = []
        self._lines: list[Program] = []
        self._sockets: list[socket.socket] = []
        self._segments: list[Network] = []
        self._closed = False
        self.warden = Warden(rootless=self.rootless)
        try:
            self.core = self.warden.space(forwarding=True)
            self.core.ip("route add blackhole default")
            self.internet = self.segment()
        except BaseException:
            # The first complaint counts: closing can only repeat it.
            with contextlib.suppress(LabError):
                self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def segment(self) -> Network:
        """One more public segment, a router hop away from the others."""
        index = len(self._segments)
        if index == len(PUBLIC_NETWORKS):
            raise LabError(f"there are only {index} public segments")
        segment = Network(self.core, f"seg{index}", PUBLIC_NETWORKS[index], router_index=-2)
        self._segments.append(segment)
        return segment

    def host(
        self,
        name: str,
        *,
        uplink: Network | Gateway | None = None,
        firewall: rules.Policy = "accept",
        **options: Unpack[LinkOptions],
    ) -> Host:
        """A host on a public segment (default: `internet`) or behind a gateway.

        `firewall` is what its own firewall does to what comes unsolicited.
        """
        self._check(name, firewall, rules.policies())
        host = Host(self, name, self._network(uplink), firewall, options)
        self.nodes[name] = host
        return host

    def gateway(
        self,
        name: str,
        *,
        inside: str = "10.0.0.0/24",
        unsolicited: rules.Policy = "drop",
        mapping: rules.Mapping = "preserving",
        uplink: Network | Gateway | None = None,
        **options: Unpack[LinkOptions],
    ) -> Gateway:
        """A NAT gateway with the network `inside`, which other gateways may use as well.

        `unsolicited` is what it does to packets from outside that nobody asked for: drop them,
        reject them by ICMP, or answer with a reset. `mapping` preserves ports where it can, takes a
        random one for every destination, or for each port the same other one for all. An `uplink`
        gateway makes it a nested NAT.
        """
        self._check(name, unsolicited, rules.policies())
        self._check(name, mapping, rules.mappings())
        network = self._network(uplink)
        gateway = Gateway(self, name, network, inside, unsolicited, mapping, options)
        self.nodes[name] = gateway
        return gateway

    def keep(self, program: Program) -> None:
        """Have this program closed with the lab."""
        self._programs.append(program)

    def keep_line(self, line: Program) -> None:
        """Have this line closed with the lab, which complains if it has broken by then."""
        self._lines.append(line)

    def keep_socket(self, made: socket.socket) -> None:
        """Have this socket closed with the lab."""
        self._sockets.append(made)

    def close(self) -> None:
        """Kill all programs and let go of all namespaces. A second time does nothing.

        LabError if a line broke while the lab was in use.
        """
        if self._closed:
            return
        self._closed = True
        broken = [line for line in self._lines if line.returncode is not None]
        with contextlib.ExitStack() as stack:
            for program in [*self._lines, *self._programs]:
                stack.callback(program.close)
            for made in self._sockets:
                stack.callback(made.close)
            # The last in is the first out: programs are closed when all processes are dead.
            stack.callback(self.warden.close)
        if broken:
            raise LabError(f"{broken[0].name} broke: {broken[0].stderr}")

    def _network(self, uplink: Network | Gateway | None) -> Network:
        if uplink is None:
            return self.internet
        return uplink.inside if isinstance(uplink, Gateway) else uplink

    def _check(self, name: str, word: str, right: list[str]) -> None:
        if name in self.nodes:
            raise LabError(f"there is already a node named {name!r}")
        if word not in right:
            raise LabError(f"{name}: {word!r} is none of {', '.join(right)}")


def why_not() -> str | None:
    """Why there can be no lab on this machine for this user, in one line; None if there can."""
    try:
        with Lab() as lab:
            lab.gateway("probe").host("inside")
    except LabError as error:
        return f"no network namespaces with NAT to be had: {' '.join(str(error).split())}"
    return None

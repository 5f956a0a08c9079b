"""Hosts and gateways: what a test talks about."""

import os
import shlex
import socket
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING, TypedDict, Unpack

from tests.netns.lab import rules
from tests.netns.lab.errors import LabError
from tests.netns.lab.network import LinkOptions, Member, Network, attach, mac_of
from tests.netns.lab.program import HANG_LIMIT, Program, environment
from tests.netns.lab.space import tool

if TYPE_CHECKING:
    from tests.netns.lab.laboratory import Lab


class RunOptions(TypedDict, total=False):
    """How a program runs inside a node."""

    privileged: bool
    """With all capabilities and a writable /run, for a gateway's daemon. Default: with none."""
    uid: int
    """As this ordinary user and group. Default: the lab's own user, without capabilities.

    A user namespace usually has no other users, so LabError there.
    """
    env: dict[str, str]
    """Added to the environment; GCB_* and DPF_* of the lab's own are not passed on."""
    cwd: str | os.PathLike[str]
    """Default: the lab's own."""


class Node:
    """A machine: a namespace with one uplink. `address` is its address there."""

    def __init__(
        self,
        lab: "Lab",
        name: str,
        network: Network,
        interface: str,
        options: LinkOptions,
        *,
        forwarding: bool = False,
    ) -> None:
        self._lab = lab
        self.name = name
        self.network = network
        self.interface = interface
        self.space = lab.warden.space(forwarding=forwarding)
        self.address = network.next_address()
        line = attach(lab.warden, network, self.space, interface, self.address, options)
        if line is not None:
            lab.keep_line(line)

    @property
    def observed_address(self) -> str:
        """The address under which a public host sees this node."""
        return self.network.behind or self.address

    def popen(
        self,
        argv: list[str],
        *,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        **options: Unpack[RunOptions],
    ) -> Program:
        """Start a program here. It ends with the lab at the latest, and so do its children."""
        wrapped = [*self.command(**options), *argv]
        name = f"{os.path.basename(argv[0])} on {self.name}"
        env = environment(options.get("env"))
        running = Program(name, wrapped, env=env, stdin=stdin)
        self._lab.keep(running)
        return running

    def run(
        self,
        argv: list[str],
        *,
        input: str = "",
        check: bool = True,
        hang_limit: float = HANG_LIMIT,
        **options: Unpack[RunOptions],
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end. ProgramError if `check` and it failed."""
        with tempfile.TemporaryFile() as stdin:
            stdin.write(input.encode())
            stdin.seek(0)
            running = self.popen(argv, stdin=stdin, **options)
        return running.result(check=check, hang_limit=hang_limit)

    def command(self, **options: Unpack[RunOptions]) -> list[str]:
        """The command prefix that runs a program here; `env` is not part of it."""
        privileged = options.get("privileged", False)
        if privileged and "uid" in options:
            raise LabError("a program is either privileged or an ordinary user's, not both")
        # A lab started in the background of a shell ignores SIGINT; its programs must not.
        prefix = [*self.space.entry(mounts=privileged), tool("env"), "--default-signal"]
        prefix.append(f"--chdir={os.path.abspath(options.get('cwd', '.'))}")
        return prefix if privileged else [*prefix, *self._no_privileges(options.get("uid"))]

    def enter_command(self) -> str:
        """What to type, in any shell of the lab's user, to look around in here."""
        return shlex.join([*self.space.entry(mounts=True), "bash"])

    def socket(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        """A socket of this node's for the test itself; closed with the lab at the latest."""
        made = self.space.socket(family, kind)
        self._lab.keep_socket(made)
        return made

    def open(self, *ports: int | str) -> None:
        """Let in what comes unsolicited for these ports, TCP and UDP: 80, "10000-32767"."""
        self.space.nft(rules.open_rule(", ".join(map(str, ports))))

    def add_address(self) -> str:
        """One more address of the uplink's network."""
        address = self.network.next_address()
        self.space.ip(f"address add {self.network.with_prefix(address)} dev {self.interface}")
        member = Member(self.space, self.interface, address, mac_of(self.address))
        # It is known here already who the others are.
        self.network.introduce(member)
        return address

    def _no_privileges(self, uid: int | None) -> list[str]:
        prefix = [tool("setpriv"), "--no-new-privs"]
        prefix += [f"--{which}=-all" for which in ("bounding-set", "inh-caps", "ambient-caps")]
        if uid is not None:
            if not self._lab.warden.has_user(uid):
                raise LabError(f"there is no user {uid} in this user namespace; leave uid out")
            prefix += [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return [*prefix, "--"]


class Host(Node):
    """A machine with one interface, `eth0`, and its own firewall."""

    def __init__(
        self,
        lab: "Lab",
        name: str,
        network: Network,
        firewall: rules.Policy,
        options: LinkOptions,
    ) -> None:
        super().__init__(lab, name, network, "eth0", options)
        self._firewalled = firewall != "accept"
        if self._firewalled:
            self.space.nft(rules.table(*rules.input_chains(self.interface, firewall)))

    def open(self, *ports: int | str) -> None:
        """As for every node; where nothing is closed there is nothing to open."""
        if self._firewalled:
            super().open(*ports)


class Gateway(Node):
    """A NAT gateway: `wan` is its uplink, `lan` a bridge with the network inside."""

    inside_interface = "lan"

    def __init__(
        self,
        lab: "Lab",
        name: str,
        network: Network,
        inside: str,
        unsolicited: rules.Policy,
        mapping: rules.Mapping,
        options: LinkOptions,
    ) -> None:
        super().__init__(lab, name, network, "wan", options, forwarding=True)
        self.inside = Network(
            self.space, self.inside_interface, inside, router_index=1, behind=self.observed_address
        )
        self.inside_address = self.inside.router
        chains = rules.input_chains(self.interface, unsolicited)
        chains += rules.nat_chains(self.interface, str(self.inside.block), mapping)
        self.space.nft(rules.table(*chains))

    @property
    def public_interface(self) -> str:
        """The name of the interface towards the world."""
        return self.interface

    @property
    def public_address(self) -> str:
        """Its address towards the world; not a public one if it is itself behind a gateway."""
        return self.address

    def host(
        self, name: str, *, firewall: rules.Policy = "accept", **options: Unpack[LinkOptions]
    ) -> Host:
        """A host in the network inside."""
        return self._lab.host(name, uplink=self, firewall=firewall, **options)

    def forward(self, port: int, host: Host, inside_port: int, protocol: str = "tcp") -> None:
        """Forward a public port to a host inside, as an administrator does by hand."""
        public, inside = (self.public_address, port), (host.address, inside_port)
        self.space.nft(rules.static_rule(self.interface, protocol, public, inside))

"""What the end-to-end tests share: daemons in a lab, the two test programs, what they report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.gateway_extra import require
from tests.netns.lab import Gateway, Host, Lab, Program

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
ADDRESS = r"listening on (\S+)"


@dataclass
class Listening:
    """A running listener and the address it would advertise."""

    program: Program
    address: str

    def report(self) -> dict[str, Any]:
        """What it tells of its next connection."""
        return dict(json.loads(self.program.wait_line(r"^\{.*\}$").group(0)))


class Ground:
    """A lab, daemons in it, and programs that are patched where their host has settings."""

    brokerd: Program
    """The broker in public, where a test has started it so."""

    def __init__(self, lab: Lab, tmp: Path) -> None:
        self.lab, self.tmp = lab, tmp
        self.settings: dict[str, dict[str, str]] = {}

    def broker(self, node: Any, token: str = "", **flags: Any) -> Program:
        """Start brokerd on a node, which may be a gateway, without any capability."""
        argv = [sys.executable, "-m", "brokerd", "--address", node.address]
        argv += ["--key-file", str(self.tmp / f"{node.name}.key")]
        if token:
            argv += ["--token-file", str(self.token_file(node.name, token))]
        for flag, value in flags.items():
            argv += [f"--{flag.replace('_', '-')}", str(value)]
        daemon = node.popen(argv)
        daemon.wait_line("^brokerd ready")
        return daemon

    def token_file(self, name: str, token: str) -> Path:
        """Write a token file."""
        path = self.tmp / f"{name}.token"
        path.write_text(f"{name} {token}\n")
        return path

    def gateway_daemon(self, gateway: Gateway, **flags: Any) -> Program:
        """Start dpfd on a gateway, as root there."""
        require()
        argv = [sys.executable, "-m", "dpfd", "--mirror", str(self.tmp / f"{gateway.name}.db")]
        argv += ["--private", gateway.inside_interface, "--public", gateway.interface]
        for flag, value in flags.items():
            argv += [f"--{flag.replace('_', '-')}", str(value)]
        daemon = gateway.popen(argv, privileged=True)
        daemon.wait_line("^dpfd ready")
        return daemon

    def use_broker(self, host: Host, address: str, token: str = "", **more: str) -> None:
        """Have the programs on a host patched, with this broker."""
        self.settings.setdefault(host.name, {}).update(GCB_BROKER=address, **more)
        if token:
            path = self.token_file(f"{host.name}-client", token)
            self.settings[host.name]["GCB_TOKEN_FILE"] = str(path)

    def script(self, host: Host, text: str, **options: Any) -> Program:
        """Start a small program, given as text, like start()."""
        path = self.tmp / f"script-{len(list(self.tmp.glob('script-*')))}.py"
        path.write_text(textwrap.dedent(text))
        return self.start(host, str(path.with_suffix("")), **options)

    def start(self, host: Host, program: str, *arguments: str, **options: Any) -> Program:
        """Start a test program on a host, patched if the host has settings."""
        settings = self.settings.get(host.name, {})
        patch = ["-m", "gcbpatch"] if settings else []
        env = {**settings, "GCB_LOG": "INFO", "GCB_LOG_FILE": str(self.log_of(host))}
        argv = [sys.executable, *patch, str(PROGRAMS / f"{program}.py"), *arguments]
        return host.popen(argv, env=env if settings else None, **options)

    def listen(self, host: Host, *arguments: str) -> Listening:
        """Start a listener and wait for the address it would advertise.

        An unpatched one behind the wildcard advertises its host's address, as pools do.
        """
        program = self.start(host, "listener", *arguments)
        address = program.wait_line(ADDRESS).group(1)
        return Listening(program, address.replace("0.0.0.0", host.address))

    def connect(self, host: Host, address: str, timeout: float = 30.0) -> dict[str, Any]:
        """Run a connector to its end and return its report."""
        program = self.start(host, "connector", address, "--timeout", str(timeout))
        return dict(json.loads(program.wait_line(r"^\{.*\}$").group(0)))

    def log_of(self, host: Host) -> Path:
        """Where the agents and programs of a host log."""
        return self.tmp / f"{host.name}.log"

    def path_to(self, host: Host, address: str) -> str:
        """The path that the last connect of a host's programs to ``address`` took."""
        found = re.findall(
            rf"program.* connect(?:ed|ing) to {re.escape(address)}: (\w+)",
            self.log_of(host).read_text() if self.log_of(host).exists() else "",
        )
        return found[-1] if found else "kernel"


class World(Ground):
    """A lab with gateways A and B, two hosts behind A, one behind B, and two in public."""

    def __init__(self, lab: Lab, tmp: Path, **policy: Any) -> None:
        super().__init__(lab, tmp)
        self.public, self.other = lab.host("public"), lab.host("other")
        self.gateway_a = lab.gateway("gateway-a", inside="10.1.0.0/24", **policy)
        self.gateway_b = lab.gateway("gateway-b", inside="10.2.0.0/24", **policy)
        self.a, self.a2 = self.gateway_a.host("a"), self.gateway_a.host("a2")
        self.b = self.gateway_b.host("b")

    def gateway_of(self, host: Host) -> Gateway | None:
        """The gateway that a host is behind; None for a public one."""
        return {"a": self.gateway_a, "a2": self.gateway_a, "b": self.gateway_b}.get(host.name)

    def use_gateway(self, host: Host, **more: str) -> None:
        """Have the programs on a host patched, with the dpfd of its gateway, if it has one."""
        gateway = self.gateway_of(host)
        if gateway is not None:
            settings = self.settings.setdefault(host.name, {})
            settings.update(DPF_SERVER=gateway.inside_address, **more)


class Dialogue:
    """A connector that holds its connections while the world around it breaks."""

    def __init__(self, world: World, host: Host) -> None:
        self._program = world.start(host, "dialogue", stdin=subprocess.PIPE)

    def __call__(self, command: str) -> str:
        self._program.stdin.write(f"{command}\n".encode())
        self._program.stdin.flush()
        return self._program.wait_line("^(connected|heard|error) .*$").group(0)


def exchanged(world: World, connector: Host, listening: Listening) -> tuple[Any, Any]:
    """Connect, and assert that the bytes of both directions arrived as they were sent."""
    mine = world.connect(connector, listening.address)
    assert "error" not in mine, mine
    theirs = listening.report()
    assert "error" not in theirs, theirs
    assert mine["sent"] == theirs["received"]
    assert theirs["sent"] == mine["received"]
    return mine, theirs

"""Where the demo's programs run: hosts behind two NAT gateways, or this machine's loopback.

A place is a lab host or something that quacks like one: `address`, `popen`, `run`. It must
never send anything beyond the lab's namespaces or the loopback interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.netns.lab import Gateway, Lab, Program
from tests.netns.lab.program import environment


class Here:
    """This machine, by its loopback address, where no namespaces are to be had."""

    address = "127.0.0.1"

    def __init__(self, name: str) -> None:
        self.name = name
        self._programs: list[Program] = []

    def popen(self, argv: list[str], *, env: dict[str, str] | None = None, **_: Any) -> Program:
        """Start a program here."""
        program = Program(f"{argv[0]} on {self.name}", argv, env=environment(env))
        self._programs.append(program)
        return program

    def run(self, argv: list[str], *, env: dict[str, str] | None = None, check: bool = True) -> Any:
        """Run a program here to its end."""
        return self.popen(argv, env=env).result(check=check, hang_limit=60.0)

    def close(self) -> None:
        """Kill whatever still runs."""
        for program in self._programs:
            program.close()


@dataclass
class Places:
    """Everything the demo needs to know of the network."""

    public: Any
    outside: Any
    left: Any
    right: Any
    schedd: Any
    gateways: list[Gateway] = field(default_factory=list)

    @property
    def all(self) -> list[Any]:
        """Every host, each once."""
        return [self.public, self.outside, self.left, self.right, self.schedd]


@contextlib.contextmanager
def two_nats() -> Iterator[Places]:
    """A public host, a client outside, and two networks behind NATs that drop the unsolicited."""
    with Lab() as lab:
        public, outside = lab.host("public"), lab.host("outside")
        left = lab.gateway("gateway A", inside="10.1.0.0/24", unsolicited="drop")
        right = lab.gateway("gateway B", inside="10.2.0.0/24", unsolicited="drop")
        yield Places(
            public,
            outside,
            left.host("behind A"),
            right.host("behind B"),
            right.host("schedd behind B"),
            [left, right],
        )


@contextlib.contextmanager
def loopback() -> Iterator[Places]:
    """Everything on 127.0.0.1: shows the programs, but no NAT."""
    places = Places(*(Here(n) for n in ("public", "outside", "startd A", "startd B", "schedd B")))
    try:
        yield places
    finally:
        for place in places.all:
            place.close()

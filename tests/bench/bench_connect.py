"""python -m tests.bench.bench_connect [--times N] [--delay MS] [--json] [--check] [NAME ...]

How long connect() and the first octet of an answer take, by every path, over lines: any two hosts
of the lab are 25 ms from each other, each way. A round trip is what an ordinary connect takes
between two such hosts, measured here as well. The path that was taken is read in the agents' logs.
With a longer delay the round trips remain, and what this machine takes itself matters less.

With --check the exit status is 1 if a bar is missed, or a connect takes another path than it
should. It needs the lab, and must never be a part of the tests: figures belong to a machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, World

DELAY_MS = 25.0
"""Between any two hosts, each way: of that, half is on each host's own line."""
TOLERANCE_MS = 12.5
"""What programs, agents and daemons may take themselves on the way."""
TIMES = 9
PORT = 9618
BOTH, NORMAL, ORDINARY = (True, True), (True, False), (False, True)
"""Which of connector and listener have the layer."""

CALLEE = """
import socket, sys, threading
kind, port = sys.argv[1:]
sock = socket.socket(socket.AF_INET, getattr(socket, "SOCK_" + kind))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("", int(port)))
if kind == "STREAM":
    sock.listen(64)
print("listening on %s:%d" % sock.getsockname(), flush=True)
def answer(conn):
    with conn:
        conn.sendall(conn.recv(1))
        conn.recv(1)
while kind == "STREAM":
    threading.Thread(target=answer, args=[sock.accept()[0]]).start()
while True:
    data, peer = sock.recvfrom(100)
    sock.sendto(data, peer)
"""

CALLER = """
import json, socket, sys, time
kind, host, port = sys.argv[1:]
for line in sys.stdin:
    sock = socket.socket(socket.AF_INET, getattr(socket, "SOCK_" + kind))
    sock.settimeout(20)
    began = time.perf_counter()
    if kind == "STREAM":
        sock.connect((host, int(port)))
    connected = time.perf_counter()
    sock.sendto(b"x", (host, int(port))) if kind == "DGRAM" else sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    print(json.dumps([connected - began, time.perf_counter() - began]), flush=True)
    sock.close()
"""


@dataclass(frozen=True)
class Way:
    """One row: who connects to whom, by which path, in at most how many round trips.

    ``bar`` is for the connect; for datagrams, which need none, for the first answer.
    """

    title: str
    connector: str
    listener: str
    path: str
    bar: float
    patched: tuple[bool, bool] = BOTH
    kind: str = "STREAM"


WAYS = {
    "answers": Way("GCB → normal, a broker there", "b", "answers", "kernel", 1, NORMAL),
    "refuses": Way("GCB → normal, no broker there", "b", "refuses", "kernel", 1, NORMAL),
    "silent": Way("GCB → normal, silence there", "b", "silent", "kernel", 1, NORMAL),
    "proxy": Way("ordinary → proxy address", "other", "a", "kernel", 1, ORDINARY),
    "local": Way("local: behind the same NAT", "a2", "a", "local", 2),
    "direct": Way("direct: the listener is public", "b", "known", "direct", 2),
    "reverse": Way("reverse: the connector is public", "known", "a", "reverse", 3),
    "punched": Way("punched: two NATs that keep ports", "b", "a", "punched", 3),
    "relayed": Way("relayed: a NAT that shifts ports", "b", "r", "relayed", 2),
    "udp-proxy": Way(
        "UDP: ordinary → proxy address", "other", "a", "relayed", 2, ORDINARY, "DGRAM"
    ),
    "udp": Way("UDP: GCB → GCB", "b", "a", "relayed", 2, BOTH, "DGRAM"),
}


class Wide(World):
    """Two NATs that keep ports, one that does not, and a public net; each host on a line."""

    def __init__(self, lab: Lab, tmp: Path, delay_ms: float) -> None:
        self.lab, self.tmp, self.settings = lab, tmp, {}
        self.round_trip_ms = 2 * delay_ms
        line: dict[str, Any] = {"delay_ms": delay_ms / 2}
        self.gateway_a = lab.gateway("gateway-a", inside="10.1.0.0/24")
        self.gateway_b = lab.gateway("gateway-b", inside="10.2.0.0/24")
        shifting = lab.gateway("gateway-r", inside="10.3.0.0/24", mapping="random")
        inside = {"a": self.gateway_a, "a2": self.gateway_a, "b": self.gateway_b, "r": shifting}
        self.hosts: dict[str, Host] = {
            name: gateway.host(name, **line) for name, gateway in inside.items()
        }
        for name in ("broker", "other", "known", "answers", "refuses"):
            self.hosts[name] = lab.host(name, **line)
        self.hosts["silent"] = lab.host("silent", firewall="drop", **line)
        self.hosts["silent"].open(PORT)
        self.b = self.hosts["b"]
        for name in ("broker", "answers"):
            self.broker(self.hosts[name])

    def run(self, name: str, text: str, patched: bool, *arguments: str) -> Program:
        """Start a program on a host, patched or not; a public host is brokered as well."""
        host = self.hosts[name]
        path = self.tmp / f"program-{len(list(self.tmp.glob('program-*')))}.py"
        path.write_text(text)
        env = {
            "GCB_BROKER": self.hosts["broker"].address, "GCB_REGISTER": "always",
            "GCB_LOG": "INFO", "GCB_LOG_FILE": str(self.log_of(host)),
        }
        argv = [sys.executable, *(["-m", "gcbpatch"] if patched else []), str(path), *arguments]
        return host.popen(argv, env=env if patched else None, stdin=subprocess.PIPE)

    def listening(self, name: str, kind: str, patched: bool) -> tuple[Program, str, str]:
        """Start a listener; return it, and its address."""
        program = self.run(name, CALLEE, patched, kind, "0" if patched else str(PORT))
        address = program.wait_line(ADDRESS).group(1)
        host, _, port = address.replace("0.0.0.0", self.hosts[name].address).rpartition(":")
        return program, host, port


def told(program: Program, round_trip_ms: float) -> list[float]:
    """Have a caller connect once; return the round trips until then, and until it was answered."""
    program.stdin.write(b"\n")
    program.stdin.flush()
    seconds = json.loads(program.wait_line(r"^\[.*\]$").group(0))
    return [1000 * one / round_trip_ms for one in seconds]


def measure(world: Wide, way: Way, times: int) -> dict[str, Any]:
    """Connect many times from one program, and as often from an ordinary one to an ordinary."""
    listener, host, port = world.listening(way.listener, way.kind, way.patched[1])
    caller = world.run(way.connector, CALLER, way.patched[0], way.kind, host, port)
    ordinary, its_host, its_port = world.listening("broker", way.kind, False)
    plain = world.run(way.connector, CALLER, False, way.kind, its_host, its_port)
    first, *found = [told(caller, world.round_trip_ms) for _ in range(times + 1)]
    regular = [told(plain, world.round_trip_ms) for _ in range(times + 1)][1:]
    path = way.path
    if way.kind == "STREAM":
        path = world.path_to(world.hosts[way.connector], f"{host}:{port}")
    for program in (caller, plain, listener, ordinary):
        program.kill()
    column = 0 if way.kind == "STREAM" else 1
    took = statistics.median(one[column] for one in found)
    return {
        "title": way.title,
        "path": path,
        "first": first[column],
        "took": took,
        "least": min(one[column] for one in found),
        "most": max(one[column] for one in found),
        "answer": statistics.median(one[1] for one in found),
        "regular": statistics.median(one[column] for one in regular),
        "regular_answer": statistics.median(one[1] for one in regular),
        "bar": way.bar,
        "met": took <= way.bar + TOLERANCE_MS / world.round_trip_ms and way.path == path,
    }


HEAD = """\
| | path | round trips | least | most | the first | regular | to the answer | regular | bar | met |
|---|---|---|---|---|---|---|---|---|---|---|"""


def row(one: dict[str, Any]) -> str:
    """One way as a line of a Markdown table."""
    figures = [
        f"{one[name]:.2f}"
        for name in ("took", "least", "most", "first", "regular", "answer", "regular_answer")
    ]
    met = "yes" if one["met"] else "NO"
    return f"| {one['title']} | {one['path']} | {' | '.join(figures)} | {one['bar']:g} | {met} |"


def run(
    names: list[str],
    times: int,
    show: Callable[[dict[str, Any]], None],
    delay_ms: float = DELAY_MS,
) -> bool:
    """Measure some ways, show each; return whether all bars were met."""
    met = True
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        world = Wide(lab, Path(folder), delay_ms)
        for name in names:
            found = measure(world, WAYS[name], times)
            show(found)
            met = met and found["met"]
    return met


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_connect")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WAYS))
    parser.add_argument("--times", type=int, default=TIMES, help="connects after the first")
    parser.add_argument("--delay", type=float, default=DELAY_MS, help="milliseconds each way")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(WAYS):
        parser.error(f"no such way: {', '.join(sorted(unknown))}")
    if not arguments.json:
        print(HEAD)
    met = run(
        arguments.names or list(WAYS),
        arguments.times,
        lambda one: print(json.dumps(one) if arguments.json else row(one), flush=True),
        arguments.delay,
    )
    if arguments.check and not met:
        sys.exit(1)


if __name__ == "__main__":
    main()

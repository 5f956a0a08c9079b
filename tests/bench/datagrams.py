"""python -m tests.bench.datagrams [--turns N] [--json]: datagrams relayed, punched, and plain.

Between two hosts behind NAT gateways of a lab, on one machine: programs under gevent alone through
a port that is forwarded by hand, programs with the layer past the relay, and, behind a NAT that
takes random ports, through it. Measured by turns, in an order that turns round; what counts is the
median of the ratios within a turn. It needs the lab, and must never be a part of the tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, Ground

from .alternate import Spread

ROOT = Path(__file__).resolve().parents[2]
TALKER = str(Path(__file__).resolve().parent / "talker.py")
PORT = 9618
TURNS = 15
WARM_SECONDS = 2.0
MEASURES = {
    "64 bytes there and back": ("trips", 500, 64),
    "64 bytes, one after the other": ("stream", 4096, 64),
    "1200 bytes, one after the other": ("stream", 4096, 1200),
}
ORDER = ("plain", "punched", "relayed", "again")


class Lines:
    """The lab, and a caller for each way."""

    def __init__(self, lab: Lab, tmp: Path) -> None:
        self._ground = Ground(lab, tmp)
        public = lab.host("public")
        near = lab.gateway("near", inside="10.1.0.0/24", unsolicited="drop")
        far = lab.gateway("far", inside="10.2.0.0/24", unsolicited="drop")
        odd = lab.gateway("odd", inside="10.3.0.0/24", unsolicited="drop", mapping="random")
        self._a, b, c = near.host("a"), far.host("b"), odd.host("c")
        near.forward(PORT, self._a, PORT, "udp")
        self._ground.broker(public)
        for host in (self._a, b, c):
            self._ground.use_broker(host, public.address)
        self._listen("plain", PORT)
        proxy = self._listen("layer", 0)
        self.callers = {
            "plain": self._call(b, "plain", near.public_address, PORT),
            "punched": self._call(b, "layer", *proxy),
            "relayed": self._call(c, "layer", *proxy),
            "again": self._call(b, "plain", near.public_address, PORT),
        }
        for caller in self.callers.values():
            _say(caller, "warm", WARM_SECONDS)
            caller.wait_line("^warm$")
        took = {name: self._path(host, proxy) for name, host in (("punched", b), ("relayed", c))}
        if took != {"punched": "PUNCHED", "relayed": "RELAYED"}:
            raise RuntimeError(f"datagrams took other paths: {took}")

    def _listen(self, kind: str, port: int) -> tuple[str, int]:
        host, _, number = (
            self._start(self._a, kind, "listen", port).wait_line(ADDRESS).group(1).rpartition(":")
        )
        return host, int(number)

    def _call(self, host: Host, kind: str, *address: object) -> Program:
        return self._start(host, kind, "call", *address, stdin=subprocess.PIPE)

    def _start(self, host: Host, *words: object, **options: Any) -> Program:
        log = str(self._ground.log_of(host))
        settings = {**self._ground.settings[host.name], "GCB_LOG": "INFO", "GCB_LOG_FILE": log}
        env = {"PYTHONPATH": str(ROOT)} | (settings if words[0] == "layer" else {})
        return host.popen([sys.executable, TALKER, *map(str, words)], env=env, **options)

    def _path(self, host: Host, proxy: tuple[str, int]) -> str:
        log = self._ground.log_of(host).read_text()
        what = f"datagrams for {proxy[0]}:{proxy[1]}: "
        said = [line for line in log.splitlines() if what in line]
        return said[-1].rpartition(" ")[2] if said else "RELAYED"

    def measure(self, how: str, times: int, size: int, turns: int) -> list[dict[str, float]]:
        """Return, for each turn, how many datagrams a second went each way."""
        found = []
        for turn in range(turns):
            row = {}
            for name in ORDER if turn % 2 else reversed(ORDER):
                _say(self.callers[name], how, times, size)
                took = int(self.callers[name].wait_line(r"^took (\d+)$").group(1))
                row[name] = times * 1e9 / took
            found.append(row)
        return found


def _say(program: Program, *words: object) -> None:
    program.stdin.write((" ".join(map(str, words)) + "\n").encode())
    program.stdin.flush()


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and medians of the ratios within a turn."""
    rates = {name: Spread.of([row[name] for row in rows]).median for name in ORDER[:3]}
    ratios = {
        name: Spread.of([row[name] / row["plain"] for row in rows]) for name in ORDER[1:]
    }
    return {
        "rates": rates,
        "ratios": {name: (one.median, one.low, one.high) for name, one in ratios.items()},
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Write the figures as a Markdown table."""
    lines = [
        "| datagrams a second | plain | punched | ratio (95 %) | relayed | ratio (95 %) | noise |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        rates, ratios = one["rates"], one["ratios"]
        cells = [f"{rates['plain']:.0f}"]
        for way in ("punched", "relayed"):
            cells += [f"{rates[way]:.0f}", "{:.2f} ({:.2f}–{:.2f})".format(*ratios[way])]
        cells.append("{:.2f} ({:.2f}–{:.2f})".format(*ratios["again"]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(turns: int) -> dict[str, dict[str, Any]]:
    """Measure all."""
    with tempfile.TemporaryDirectory() as tmp, Lab() as lab:
        lines = Lines(lab, Path(tmp))
        return {
            name: summary(lines.measure(*what, turns)) for name, what in MEASURES.items()
        }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.datagrams")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    arguments = parser.parse_args()
    found = run(arguments.turns)
    print(json.dumps(found) if arguments.json else table(found))


if __name__ == "__main__":
    main()

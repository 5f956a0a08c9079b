"""What dpfd costs: a mapping's connect, setting and removing, memory, and the start.

A connect through a mapping is compared with one through a gateway beside, where an administrator
has set the only forwarding by hand; setting and removing with python-iptables committing each
change to a table with nothing else in it. Needs root or user namespaces, as the lab does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpfd.kernel.choice import NAMES
from gcbpatch.addresses import GATEWAY_PORT, Address
from tests.bench.alternate import Spread, Trio, alternate
from tests.bench.gateway_world import MAPPINGS, Served, World, world
from tests.loopback.gateway_client import random_id
from tests.netns.talk import dial

CONNECT = {"nftables": 1.02, "iptables": 1.05}
"""Of a static forwarding's connect."""
READY_SECONDS = 5.0
LISTEN = 300
"""Microseconds more than without dpfd."""
COUNTS = (0, 1_000, 10_000, 50_000)


@dataclass
class Effort:
    """How often things are done."""

    turns: int = 40
    pairs: int = 400
    slow_pairs: int = 10
    listens: int = 300
    programs: int = 5
    counts: tuple[int, ...] = COUNTS


QUICK = Effort(2, 5, 2, 5, 1, (0, 100))


def connecting(place: World, addresses: list[Address], which: str) -> Callable[[], float]:
    """Connect once to each address; the median time of it, in nanoseconds."""
    listener = place.static_listener if which == "static" else place.listener

    def do() -> float:
        times = []
        for one, address in zip(place.sockets(len(addresses)), addresses, strict=True):
            began = time.perf_counter_ns()
            one.connect(address)
            times.append(time.perf_counter_ns() - began)
            accepted, _ = listener.accept()
            one.close()
            accepted.close()
        return statistics.median(times)

    return do


def exchanging(place: World, address: Address, which: str, size: int) -> Callable[[], float]:
    """Send that much over an established connection and have a byte come back."""
    listener = place.static_listener if which == "static" else place.listener
    near = dial(place.pub, *address)
    far, _ = listener.accept()
    data, room = bytes(size), bytearray(1 << 16)

    def do() -> float:
        began = time.perf_counter_ns()
        for _ in range(20):
            near.sendall(data)
            left = size
            while left:
                left -= far.recv_into(room)
            far.sendall(b"!")
            near.recv(1)
        return (time.perf_counter_ns() - began) / 20

    return do


def compared(make: Callable[[str], Callable[[], float]], turns: int) -> dict[str, Any]:
    """Alternate the static gateway, the mapping, and the static gateway again."""

    @contextmanager
    def trio() -> Iterator[Trio]:
        yield Trio(make("static"), make("mapping"), make("static"))

    found = alternate(trio, 1, turns)
    return {
        "static_microseconds": found.plain / 1000,
        "ratio": asdict(found.ratio),
        "noise": asdict(found.noise_ratio),
    }


def pairs_a_second(served: Served, count: int) -> float:
    """FORWARD and UNFORWARD of the same listener over one session, one after the other."""
    listener = random_id()
    began = time.perf_counter()
    for _ in range(count):
        served.forward(listener)
        served.session.unforward(listener)
    return count / (time.perf_counter() - began)


AUTOCOMMIT = """
import sys, time
import iptc
table = iptc.Table("nat")
chain = iptc.Chain(table, "PREROUTING")
rule = iptc.Rule()
rule.protocol, rule.dst = "tcp", "198.51.100.250"
rule.create_match("tcp").dport = "10000"
rule.create_target("DNAT").to_destination = "10.1.0.9:80"
began = time.perf_counter()
for _ in range(int(sys.argv[1])):
    chain.insert_rule(rule)
    chain.delete_rule(rule)
print(int(sys.argv[1]) / (time.perf_counter() - began))
"""


def autocommit_pairs_a_second(place: World, count: int) -> float:
    """What python-iptables does alone, with an empty table, in a namespace of its own."""
    argv = [sys.executable, "-c", AUTOCOMMIT, str(count)]
    return float(place.lab.host("bare").run(argv, privileged=True).stdout)


LISTENING = """
import statistics, sys, time
from gevent import monkey
if sys.argv[1] == "patched":
    import gcbpatch
    gcbpatch.patch_all()
else:
    monkey.patch_all()
import socket
def once():
    sock = socket.socket()
    began = time.perf_counter_ns()
    sock.bind(("0.0.0.0", 0))
    sock.listen(16)
    took = time.perf_counter_ns() - began
    sock.close()
    return took
once()
for line in sys.stdin:
    print(statistics.median(once() for _ in range(int(line))), flush=True)
"""


def listening(served: Served, effort: Effort) -> dict[str, float]:
    """bind() and listen() of a patched program and of one with gevent alone, in microseconds."""
    place = served.place
    env = {"DPF_SERVER": f"{place.gateway.inside_address}:{GATEWAY_PORT}"}
    found: dict[str, list[float]] = {"plain": [], "patched": []}
    for _ in range(effort.programs):
        for which, medians in found.items():
            argv = [sys.executable, "-c", LISTENING, which]
            done = place.host.run(argv, env=env, input=f"{effort.listens}\n")
            medians.append(float(done.stdout) / 1000)
    return {which: statistics.median(medians) for which, medians in found.items()}


def measure(place: World, back_end: str, count: int, effort: Effort) -> dict[str, Any]:
    """All figures of one back end with so many other mappings."""
    with tempfile.TemporaryDirectory() as folder:
        served = Served(place, back_end, count, Path(folder))
        with closing(served):
            found: dict[str, Any] = {
                "back_end": back_end,
                "mappings": count,
                "seconds_to_ready": served.seconds_to_ready,
                "resident": served.resident(),
            }
            publics = [served.forward(random_id()) for _ in range(MAPPINGS)]
            ends = {"static": place.statics, "mapping": publics}
            found["connect"] = compared(lambda w: connecting(place, ends[w], w), effort.turns)
            for name, size in (("round_trip", 64), ("stream", 1 << 16)):
                found[name] = compared(
                    lambda w, size=size: exchanging(place, ends[w][0], w, size),  # type: ignore[misc]
                    effort.turns,
                )
            slow = back_end == "iptables" and count > 1000
            rates = [
                pairs_a_second(served, effort.slow_pairs if slow else effort.pairs)
                for _ in range(3)
            ]
            found["pairs_a_second"] = statistics.median(rates)
            if count == 0:
                found["listen"] = listening(served, effort)
    return found


def run(back_ends: list[str], effort: Effort) -> dict[str, Any]:
    """Measure everything."""
    with world() as place:
        bare = autocommit_pairs_a_second(place, effort.pairs)
        figures = []
        for name in back_ends:
            for count in effort.counts:
                figures.append(measure(place, name, count, effort))
                print(f"{name}, {count} mappings: done", file=sys.stderr, flush=True)
    return {"cores": os.cpu_count(), "autocommit_pairs_a_second": bare, "figures": figures}


def missed(found: dict[str, Any]) -> Iterator[str]:
    """Yield the bars that were missed by more than half of what two equal gateways differ."""
    for one in found["figures"]:
        what = f"{one['back_end']} with {one['mappings']} mappings"
        for name, bar in (("connect", CONNECT[one["back_end"]]), ("round_trip", 1), ("stream", 1)):
            noise = one[name]["noise"]
            if one[name]["ratio"]["median"] > bar + (noise["high"] - noise["low"]) / 2:
                yield f"{name}, {what}"
        if one["seconds_to_ready"] > READY_SECONDS:
            yield f"start, {what}"
        if "listen" in one and one["listen"]["patched"] - one["listen"]["plain"] > LISTEN:
            yield f"bind and listen, {what}"


def table(found: dict[str, Any]) -> str:
    """Write the figures as Markdown tables."""
    bare = found["autocommit_pairs_a_second"]
    lines = [
        f"python-iptables, committing each change to an empty table: {bare:.0f} pairs/s",
        "",
        "| back end | other mappings | connect / static | noise | round trip | stream "
        "| set+delete pairs/s | start, s | memory each, kB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    empty = {one["back_end"]: one["resident"] for one in found["figures"] if not one["mappings"]}
    for one in found["figures"]:
        each = "–"
        if one["mappings"]:
            bytes_each = (one["resident"] - empty[one["back_end"]]) / one["mappings"]
            each = f"{bytes_each / 1000:.2f}"
        cells = [
            one["back_end"],
            f"{one['mappings']:,}",
            _spread(one["connect"]["ratio"]),
            _spread(one["connect"]["noise"]),
            _spread(one["round_trip"]["ratio"]),
            f"{1 / one['stream']['ratio']['median']:.3f}",
            f"{one['pairs_a_second']:.0f} ({one['pairs_a_second'] / bare:.2f} ×)",
            f"{one['seconds_to_ready']:.2f}",
            each,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for one in found["figures"]:
        if "listen" in one:
            plain, patched = one["listen"]["plain"], one["listen"]["patched"]
            lines += ["", f"bind+listen, {one['back_end']}: {plain:.0f} µs plain, "]
            lines[-1] += f"{patched:.0f} µs with the FORWARD, {patched - plain:.0f} µs more"
    return "\n".join(lines)


def _spread(spread: dict[str, float]) -> str:
    return "{median:.3f} ({low:.3f}–{high:.3f})".format(**asdict(Spread(**spread)))


def plot(found: dict[str, Any], path: str) -> None:
    """Draw the connects' ratios over the number of mappings. Needs the extra `bench`."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    for name in NAMES:
        some = [one for one in found["figures"] if one["back_end"] == name]
        ratios = [one["connect"]["ratio"] for one in some]
        middle = [ratio["median"] for ratio in ratios]
        reach = [
            [ratio["median"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["median"] for ratio in ratios],
        ]
        counts = [one["mappings"] for one in some]
        pyplot.errorbar(counts, middle, reach, label=name, marker="o", capsize=3)
    pyplot.axhline(1.0, color="grey", linewidth=0.5)
    pyplot.xscale("symlog", linthresh=1000)
    pyplot.xlabel("other mappings")
    pyplot.ylabel("connect through a mapping / static forwarding")
    pyplot.legend()
    pyplot.savefig(path)


def main() -> None:
    """Measure what was asked for."""
    name = "python -m tests.bench.bench_gateway"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="BACKEND", help=", ".join(NAMES))
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--plot", metavar="FILE", help="draw the connects, as SVG")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such back end: {', '.join(sorted(unknown))}")
    found = run(arguments.names or list(NAMES), QUICK if arguments.quick else Effort())
    print(json.dumps(found) if arguments.json else table(found))
    if arguments.plot:
        plot(found, arguments.plot)
    if arguments.check and (bars := list(missed(found))):
        sys.exit("missed: " + "; ".join(bars))


if __name__ == "__main__":
    main()

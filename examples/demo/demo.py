"""make demo: a job runs on machines behind two NATs, first not at all, then by GCB, then by DPF.

It builds its network out of namespaces (tests/netns/lab) and leaves nothing behind. Exits
with 0 only if every job came back right over both systems.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from places import Places, loopback, two_nats
from pool import RANGES, Pool, Row

from tests.netns.lab import Program, why_not

Settings = dict[str, dict[str, str]]
PLAIN_PATIENCE = 1.5
"""Seconds in which a connect that cannot succeed is given up."""
PATIENCE = 10.0


def main() -> int:
    """Run all three parts and say how it went."""
    began = time.monotonic()
    problem = why_not()
    if problem:
        print(f"no lab here ({problem}): the loopback part only")
        with loopback() as places:
            good = by_gcb(places)
    else:
        with two_nats() as places:
            without(places)
            good = by_gcb(places)
            if importlib.util.find_spec("iptc") is None:
                print("\nDPF left out: python-iptables is not installed (extra `gateway`)")
            else:
                good = by_dpf(places) and good
    verdict = "all jobs came back right" if good else "NOT all jobs came back right"
    print(f"\n{verdict}; {time.monotonic() - began:.0f} s in all")
    return 0 if good else 1


def without(places: Places) -> None:
    """The pool as it is: its startds advertise addresses that mean nothing elsewhere."""
    title = "Without gcbpatch: startds advertise addresses of their own networks"
    with running(places, {}, PLAIN_PATIENCE) as pool:
        show(title, pool.run_job(places.outside, RANGES[:1]))


def by_gcb(places: Places) -> bool:
    """The same programs, each run by `python -m gcbpatch`, with a broker in public."""
    broker = {"GCB_BROKER": places.public.address}
    inside = (places.left, places.right, places.schedd)
    settings: Settings = {place.name: broker for place in inside}
    with tempfile.TemporaryDirectory() as state, broker_at(places, state):
        return run_both(places, settings, "GCB: brokerd in public, nothing changed on the gateways")


def by_dpf(places: Places) -> bool:
    """The same programs again, with dpfd on both gateways and no broker."""
    settings: Settings = {}
    with tempfile.TemporaryDirectory() as state, contextlib.ExitStack() as stack:
        for gateway, hosts in zip(
            places.gateways, ([places.left], [places.right, places.schedd]), strict=True
        ):
            daemon = dpfd_at(gateway, state)
            stack.callback(daemon.terminate)
            settings |= {host.name: {"DPF_SERVER": gateway.inside_address} for host in hosts}
        return run_both(places, settings, "DPF: dpfd on the gateways, no broker")


def run_both(places: Places, settings: Settings, title: str) -> bool:
    """Send the job from behind NAT B and from an ordinary, unpatched client outside."""
    with running(places, settings, PATIENCE) as pool:
        rows = pool.run_job(places.schedd, RANGES)
        rows += pool.run_job(places.outside, RANGES[:2])
    show(title, rows)
    return len(rows) == len(RANGES) + 2 and all(row.correct for row in rows)


@contextlib.contextmanager
def running(places: Places, settings: Settings, patience: float) -> Iterator[Pool]:
    """A pool that is ended with the block."""
    pool = Pool(places, settings, patience)
    try:
        yield pool
    finally:
        pool.close()


@contextlib.contextmanager
def broker_at(places: Places, state: str) -> Iterator[Program]:
    """A broker on the public host, as an ordinary program without any capability."""
    address, key = places.public.address, os.path.join(state, "broker.key")
    argv = [sys.executable, "-m", "brokerd", "--address", address, "--key-file", key]
    daemon = places.public.popen(argv)
    daemon.wait_line("^brokerd ready")
    try:
        yield daemon
    finally:
        daemon.terminate()


def dpfd_at(gateway, state: str) -> Program:  # type: ignore[no-untyped-def]
    """A dpfd on a gateway, as root there."""
    mirror = os.path.join(state, f"{gateway.name}.db")
    argv = [sys.executable, "-m", "dpfd", "--private", gateway.inside_interface]
    daemon = gateway.popen(
        [*argv, "--public", gateway.interface, "--mirror", mirror], privileged=True
    )
    daemon.wait_line("^dpfd ready")
    return daemon


def show(title: str, rows: list[Row]) -> None:
    """Print one table."""
    head = ("from", "to startd", "advertised as", "path", "connect", "result", "")
    lines = [head] + [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print(f"\n{title}")
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join(cells).rstrip(), flush=True)


def _cells(row: Row) -> tuple[str, ...]:
    took = "-" if row.milliseconds is None else f"{row.milliseconds:.1f} ms"
    judged = "correct" if row.correct else "FAILED"
    return row.who, row.whom, row.address, row.path, took, row.result, judged


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

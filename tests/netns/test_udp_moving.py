"""UDP ports whose broker dies or drains: another one takes them, and the program knows."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from tests.netns.lab import Lab, Program
from tests.netns.pairs import ADDRESS, World
from tests.netns.test_broker_lists import LIFETIME, Brokers

HANG_S = 30.0

# Tells its name whenever that has changed; answers, or has a forked child do so.
LISTENER = """
import os, select, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 0))
names = set()
sock.setblocking(False)
child = os.fork() if {forks} else 0
while True:
    if child or not {forks}:
        name = "%s:%d" % sock.getsockname()
        if name not in names:
            names.add(name)
            print("listening on", name, flush=True)
    if {computes}:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass  # nothing but the program runs
    else:
        time.sleep(0.1)
    try:
        while not child:
            data, peer = sock.recvfrom(70000)
            sock.sendto(data[::-1], peer)
    except BlockingIOError:
        pass
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited."""
    return World(lab, tmp_path)


@pytest.fixture
def brokers(world: World) -> Brokers:
    """Two brokers, and hosts that know both."""
    made = Brokers(world)
    for host in (world.a, world.b):
        world.use_broker(host, ",".join(made.hosts), **LIFETIME)
    return made


def next_name(program: Program) -> Address:
    """The next name that the listener tells."""
    host, _, port = program.wait_line(ADDRESS).group(1).rpartition(":")
    return host, int(port)


def answers(world: World, proxy: Address, tries: int = 60) -> None:
    """Assert that an ordinary peer in public is answered from there."""
    with world.b.socket(socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        for _ in range(tries):
            sock.sendto(b"hello", proxy)
            try:
                assert sock.recvfrom(100) == (b"olleh", proxy)
                return
            except TimeoutError:
                continue
    raise AssertionError("no answer")


@pytest.mark.parametrize(
    ("computes", "forks"),
    [(True, False), (False, True)],
    ids=["computing", "forked"],
)
def test_a_port_of_a_dead_broker_moves_and_knows_its_name(
    brokers: Brokers, world: World, computes: bool, forks: bool
) -> None:
    program = world.script(world.a, LISTENER.format(computes=computes, forks=forks))
    before = next_name(program)
    answers(world, before)
    brokers.running[before[0]].kill()
    after = next_name(program)
    assert after[0] == brokers.of(f"{before[0]}:0")[1]
    answers(world, after)


def test_a_port_leaves_a_broker_that_drains_which_ends(brokers: Brokers, world: World) -> None:
    program = world.script(world.a, LISTENER.format(computes=False, forks=False))
    before = next_name(program)
    draining = brokers.running[before[0]]
    draining.signal(signal.SIGUSR1)
    after = next_name(program)
    assert after[0] != before[0]
    answers(world, after)
    assert draining.wait(hang_limit=HANG_S) == 0

"""UDP past the relay: which pairs of ports find a way, that nothing else does, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from gcbpatch.addresses import Address
from gcbpatch.wire.codec import Kind, build
from gcbpatch.wire.datagrams import direct, whole
from gcbpatch.wire.messages import Command, Endpoint, Way
from tests.netns.lab import Host, Lab
from tests.netns.pairs import ADDRESS, World
from tests.netns.test_connects import agent_of
from tests.netns.test_punching import DROP, RANDOM, punching_world

RST = {"unsolicited": "rst"}
HANG_S = 30.0

# Answers with what it got, backwards.
LISTENER = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", {port}))
print("listening on %s:%d" % sock.getsockname(), flush=True)
print("magic", sock._sock._state.label.magic.hex(), flush=True)
while True:
    data, peer = sock.recvfrom(70000)
    if data == b"end":
        break
    sock.sendto(("%s:%d" % peer).encode() if data == b"who" else data[::-1], peer)
sock.close()
print("ended", flush=True)
input()
"""

# Reads what it is to do; asks 20 times a second, each question once.
CONNECTOR = """
import os, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 0))
listener = ("{host}", {port})
if {connected}:
    sock.connect(listener)

def ask(data):
    sock.settimeout(0.05)
    sock.send(data) if {connected} else sock.sendto(data, listener)
    try:
        while True:
            got, peer = sock.recvfrom(70000)
            assert peer == listener, peer
            if got == data[::-1]:
                return True
    except TimeoutError:
        return False

print("ready on %s:%d" % sock.getsockname(), flush=True)
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "ask":
        answered = 0
        until = time.monotonic() + float(number)
        while time.monotonic() < until:
            answered += ask(os.urandom(100))
            time.sleep(0.02)
        print("answered", answered, flush=True)
    elif word == "until":  # answers are there without a break again
        began, run = time.monotonic(), 0
        while run < 20:
            run = run + 1 if ask(os.urandom(100)) else 0
        print("took", time.monotonic() - began, flush=True)
    elif word == "size":
        for _ in range(20):
            if ask(os.urandom(int(number))):
                print("good", flush=True)
                break
"""


class Pair:
    """A listener, and a connector that asks it."""

    def __init__(self, world: World, one: Host, other: Host, connected: bool = False) -> None:
        self.world, self.one, self.other = world, one, other
        self.listener = world.script(one, LISTENER.format(port=0))
        host, _, port = self.listener.wait_line(ADDRESS).group(1).rpartition(":")
        self.proxy: Address = (host, int(port))
        script = CONNECTOR.format(host=host, port=port, connected=connected)
        self.connector = world.script(other, script, stdin=-1)
        self.own = self.connector.wait_line(r"ready on (\S+)").group(1)

    def tell(self, what: str) -> None:
        """Have the connector do something."""
        self.connector.stdin.write(f"{what}\n".encode())
        self.connector.stdin.flush()

    def ask(self, seconds: float) -> int:
        """Return how many questions were answered in that time."""
        self.tell(f"ask {seconds}")
        return int(self.connector.wait_line(r"^answered (\d+)$").group(1))

    def sends(self, size: int) -> None:
        """Have a datagram of that size go there and back."""
        self.tell(f"size {size}")
        self.connector.wait_line("^good$")

    def wait_for(self, path: str) -> None:
        """Ask until both directions take that path."""
        until = time.monotonic() + HANG_S
        while self.paths != (path, path):
            assert time.monotonic() < until, self.paths
            self.ask(0.2)

    @property
    def paths(self) -> tuple[str, str]:
        """The paths of both directions, the listener's answers first."""
        address = "{}:{}".format(*self.proxy)
        mine, theirs = (self.one, self.own), (self.other, address)
        return path_of(self.world, *mine), path_of(self.world, *theirs)


def path_of(world: World, host: Host, peer: str) -> str:
    """The path that the log tells of."""
    log = world.log_of(host).read_text()
    found = [line for line in log.splitlines() if f"datagrams for {peer}: " in line]
    return found[-1].rpartition(" ")[2] if found else "RELAYED"


def test_a_pair_with_random_mappings_stays_relayed(lab: Lab, tmp_path: Path) -> None:
    world = punching_world(lab, tmp_path, RANDOM, RANDOM)
    pair = Pair(world, world.a, world.b)
    assert pair.ask(5.0) > 20  # longer than is looked for a way
    assert pair.paths == ("RELAYED", "RELAYED")


@pytest.mark.parametrize(
    ("a", "connected"), [(DROP, False), (RST, True)], ids=["drop, sendto", "rst, connected"]
)
def test_two_nats_that_keep_ports_are_punched(
    lab: Lab, tmp_path: Path, a: dict[str, Any], connected: bool
) -> None:
    world = punching_world(lab, tmp_path, a, DROP)
    pair = Pair(world, world.a, world.b, connected)
    pair.wait_for("PUNCHED")
    for size in (0, 1, 1472, 9000, 65491, 65492, 65507):
        pair.sends(size)
    world.brokerd.signal(signal.SIGSTOP)
    assert pair.ask(1.0) > 10  # nobody else carries it
    world.brokerd.signal(signal.SIGCONT)


def test_a_way_that_dies_is_left_within_seconds_and_found_again(
    lab: Lab, tmp_path: Path
) -> None:
    world = punching_world(lab, tmp_path, DROP, DROP)
    pair = Pair(world, world.a, world.b)
    pair.wait_for("PUNCHED")
    wall = f"ip saddr {world.gateway_a.public_address} udp dport >= 1024 drop"
    nft = ["nft", "add table inet wall; add chain inet wall in { type filter hook prerouting "
           f"priority raw; }}; add rule inet wall in {wall}"]
    world.gateway_b.run(nft, privileged=True)
    pair.tell("until")
    took = float(pair.connector.wait_line(r"^took (\S+)$").group(1))
    assert took < 3.0 + 5.0  # what a way is good for, and for a machine that is busy
    pair.wait_for("RELAYED")
    world.gateway_b.run(["nft", "delete table inet wall"], privileged=True)
    pair.wait_for("PUNCHED")


def test_an_agent_that_is_killed_leaves_no_datagrams_in_a_dead_way(
    lab: Lab, tmp_path: Path
) -> None:
    world = punching_world(lab, tmp_path, DROP, DROP)
    pair = Pair(world, world.a, world.b)
    pair.wait_for("PUNCHED")
    os.kill(agent_of(world, world.b), signal.SIGKILL)
    pair.tell("until")
    assert float(pair.connector.wait_line(r"^took (\S+)$").group(1)) < 8.0


def test_paths_without_a_nat_between(lab: Lab, tmp_path: Path) -> None:
    world = punching_world(lab, tmp_path, DROP, DROP)
    walled = lab.host("walled", firewall="drop")
    for host in (world.a2, walled):
        world.use_broker(host, world.public.address)
    cases = {
        "a firewalled listener": (Pair(world, walled, world.b), ("PUNCHED", "DIRECT")),
        "not brokered": (Pair(world, world.a, world.other), ("DIRECT", "PUNCHED")),
        "one network": (Pair(world, world.a, world.a2), ("LOCAL", "LOCAL")),
    }
    for name, (pair, paths) in cases.items():
        until = time.monotonic() + HANG_S
        while pair.paths != paths:
            assert time.monotonic() < until, (name, pair.paths)
            pair.ask(0.2)
    world.brokerd.signal(signal.SIGSTOP)
    for pair, _ in cases.values():
        assert pair.ask(0.5) > 5
    world.brokerd.signal(signal.SIGCONT)


def test_the_end_of_a_listener_ends_its_ways(lab: Lab, tmp_path: Path) -> None:
    world = punching_world(lab, tmp_path, DROP, DROP)
    pair = Pair(world, world.a, world.b)
    pair.wait_for("PUNCHED")
    with world.other.socket(socket.SOCK_DGRAM) as ordinary:
        ordinary.sendto(b"end", pair.proxy)
    pair.listener.wait_line("ended")
    until = time.monotonic() + HANG_S
    while pair.paths[1] != "RELAYED":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_stranger_at_the_port_is_not_taken_for_the_peer(lab: Lab, tmp_path: Path) -> None:
    """He comes through, knows all that can be seen from outside, and even the magic."""
    world = punching_world(lab, tmp_path, DROP, DROP)
    world.use_broker(world.other, world.public.address, GCB_REGISTER="always")
    pair = Pair(world, world.other, world.b)
    magic = bytes.fromhex(pair.listener.wait_line(r"^magic (\S+)$").group(1))
    port = int(re.findall(r"UDP port \S+:(\d+): ", world.log_of(world.other).read_text())[-1])
    while path_of(world, world.b, "{}:{}".format(*pair.proxy)) != "DIRECT":
        assert pair.ask(0.2)
    host, _, number = pair.own.rpartition(":")
    question = Way(Endpoint(host, int(number)), os.urandom(16), os.urandom(16))
    forged = direct(whole((host, int(number))), os.urandom(8)) + b"hello"
    with world.public.socket(socket.SOCK_DGRAM) as stranger:
        stranger.connect((world.other.address, port))
        stranger.settimeout(HANG_S)
        stranger.send(magic + build(Kind.REQUEST, Command.WAY, 1, question))
        stranger.send(forged)
        # The question has no answer, and what he sends is an ordinary datagram of his own.
        assert stranger.recv(100) == forged[::-1]
        stranger.send(b"who")
        assert stranger.recv(100).decode() == "{}:{}".format(*stranger.getsockname())
    assert pair.ask(1.0) > 10
    assert pair.paths == ("PUNCHED", "DIRECT")

"""Which UDP ports are brokered: those that are not reached without, as dialling back tells."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, World
from tests.netns.test_register import PORT

# Nothing must come before the first question; tells its name whenever that has changed.
LISTENER = """
import select, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 9618))
name = None
assert select.select([sock], [], [], 0.5) == ([], [], []), "the dial-back shows"
while True:
    before, name = name, sock.getsockname()
    if name != before:
        print("listening on {}:{}".format(*name), flush=True)
    if select.select([sock], [], [], 0.1)[0]:
        data, peer = sock.recvfrom(100)
        sock.sendto(data[::-1], peer)
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """A broker's users everywhere, and quick heartbeats."""
    world = World(lab, tmp_path)
    for one in (world.a, world.other):
        world.use_broker(one, world.public.address, GCB_LIFETIME="3")
    return world


def next_name(program: Program) -> Address:
    """The next name that a listener tells."""
    host, _, port = program.wait_line(ADDRESS).group(1).rpartition(":")
    return host, int(port)


def answers(host: Host, name: Address) -> None:
    """Assert that an ordinary peer on a host is answered, from where it has asked."""
    with host.socket(socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        for _ in range(60):
            sock.sendto(b"hello", name)
            try:
                assert sock.recvfrom(100) == (b"olleh", name)
                return
            except TimeoutError:
                continue
    raise AssertionError("no answer")


def test_a_port_of_a_public_host_is_not_brokered_until_a_firewall_closes(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    program = world.script(world.other, LISTENER)
    name = next_name(program)
    assert name == (world.other.address, PORT)
    broker.wait_line(f"unregistered {world.public.address}", stream="stderr")
    for host in (world.public, world.b):
        answers(host, name)
    world.other.space.nft(
        "table inet cut { chain input { type filter hook input priority 0; policy accept; "
        f"iifname eth0 udp dport {PORT} ct state new drop; }}; }}"
    )
    after = next_name(program)
    assert after[0] == world.public.address
    answers(world.b, after)


@pytest.mark.parametrize("firewall", ["drop", "reject"])
def test_a_port_of_a_firewalled_public_host_is_brokered(world: World, firewall: str) -> None:
    world.broker(world.public)
    walled = world.lab.host("walled", firewall=firewall)  # type: ignore[arg-type]
    world.use_broker(walled, world.public.address)
    name = next_name(world.script(walled, LISTENER))
    assert name == (world.public.address, PORT)
    answers(world.b, name)


@pytest.mark.parametrize(
    ("setting", "brokered"), [("always", True), ("never", False)], ids=["always", "never"]
)
def test_the_setting_is_obeyed_without_a_question(
    world: World, setting: str, brokered: bool
) -> None:
    world.broker(world.public)
    world.use_broker(world.other, world.public.address, GCB_REGISTER=setting)
    name = next_name(world.script(world.other, LISTENER))
    assert name == ((world.public.address if brokered else "0.0.0.0"), PORT)
    answers(world.b, name if brokered else (world.other.address, PORT))

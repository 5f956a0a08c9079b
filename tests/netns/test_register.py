"""Which listeners are brokered: those that are not reached without, as dialling back tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, World, exchanged

PORT = 9618

QUIET = """
    import select, socket
    listener = socket.create_server(("", 9618))
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    assert select.select([listener], [], [], 1.0) == ([], [], []), "the dial-back shows"
    print("quiet", flush=True)
    sock, peer = listener.accept()
    print("accepted", peer[0], flush=True)
"""

NAMED = """
    import socket
    listener = socket.socket()
    listener.bind(("", 9618))
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    listener.listen()
    sock, peer = listener.accept()
    print("accepted", peer[0], flush=True)
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """A broker's users everywhere, and quick heartbeats."""
    world = World(lab, tmp_path)
    for one in (world.a, world.a2, world.b, world.other):
        world.use_broker(one, world.public.address, GCB_LIFETIME="3")
    return world


def named(world: World, host: Host, text: str) -> tuple[Program, str]:
    """Start a listening script; return it and its name."""
    program = world.script(host, text)
    name = program.wait_line(ADDRESS).group(1)
    if text is QUIET:
        program.wait_line("^quiet")
    return program, name


def accepts(world: World, program: Program, name: str) -> None:
    """Connect from a host that is not patched; the program sees that one, and first."""
    world.start(world.public, "connector", name)
    assert program.wait_line("^accepted (.*)").group(1) == world.public.address


def shut(host: Host, port: int) -> None:
    """Close a firewall that was open."""
    host.space.nft(
        "table inet cut {\nchain input {\ntype filter hook input priority 0; policy accept;\n"
        f"iifname eth0 tcp dport {port} ct state new drop\n}}\n}}"
    )


@pytest.mark.parametrize("text", [QUIET, NAMED], ids=["listening", "named before it listens"])
def test_a_public_host_is_not_brokered(world: World, text: str) -> None:
    broker = world.broker(world.public, log="INFO")
    program, name = named(world, world.other, text)
    assert name == f"{world.other.address}:{PORT}"
    accepts(world, program, name)
    assert "registered" not in broker.stderr


def test_a_patched_program_behind_a_nat_reaches_one_that_is_not_brokered(world: World) -> None:
    world.broker(world.public)
    exchanged(world, world.a, world.listen(world.other, "--port", str(PORT)))


@pytest.mark.parametrize("text", [QUIET, NAMED], ids=["listening", "named before it listens"])
@pytest.mark.parametrize("firewall", ["drop", "reject", "rst"])
def test_a_firewalled_public_host_is_brokered(
    world: World, firewall: str, text: str
) -> None:
    world.broker(world.public)
    walled = world.lab.host("walled", firewall=firewall)  # type: ignore[arg-type]
    world.use_broker(walled, world.public.address)
    program, name = named(world, walled, text)
    assert name == f"{world.public.address}:{PORT}"
    accepts(world, program, name)


@pytest.mark.parametrize("text", [QUIET, NAMED], ids=["listening", "named before it listens"])
def test_a_port_forwarded_by_hand_is_known_by_the_gateways_address(
    world: World, text: str
) -> None:
    broker = world.broker(world.public, log="INFO")
    world.gateway_a.forward(PORT, world.a, PORT)
    program, name = named(world, world.a, text)
    assert name == f"{world.gateway_a.address}:{PORT}"
    broker.wait_line("unregistered", stream="stderr")
    accepts(world, program, name)


def test_who_answers_on_the_gateway_itself_is_not_taken_for_the_listener(world: World) -> None:
    world.broker(world.public)
    world.gateway_a.open(PORT)
    others = world.gateway_a.socket()
    others.bind((world.gateway_a.address, PORT))
    others.listen()
    _, name = named(world, world.a, QUIET)
    assert name == f"{world.public.address}:{PORT}"


def test_always_means_always(world: World) -> None:
    world.broker(world.public)
    world.use_broker(world.other, world.public.address, GCB_REGISTER="always")
    listening = world.listen(world.other, "--port", str(PORT))
    assert listening.address == f"{world.public.address}:{PORT}"
    exchanged(world, world.b, listening)


def test_never_needs_no_agent_to_listen(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    world.use_broker(world.a, world.public.address, GCB_REGISTER="never")
    exchanged(world, world.a2, world.listen(world.a, "--port", str(PORT)))
    assert "registered" not in broker.stderr
    assert "agent[" not in world.log_of(world.a).read_text()


def test_a_firewall_that_closes_makes_a_listener_a_brokered_one(world: World) -> None:
    world.broker(world.public)
    program = world.start(world.other, "renamed", "--waits")
    before = program.wait_line(ADDRESS).group(1)
    assert before.startswith(f"{world.other.address}:")
    shut(world.other, int(before.partition(":")[2]))
    after = program.wait_line(ADDRESS).group(1)
    assert after.startswith(f"{world.public.address}:")
    world.start(world.b, "connector", after)
    assert program.wait_line("accepted as (.*)").group(1) == after


def test_a_listener_stays_reached_when_the_broker_is_gone(world: World) -> None:
    broker = world.broker(world.public)
    program = world.start(world.other, "renamed", "--waits")
    before = program.wait_line(ADDRESS).group(1)
    broker.kill()
    again = world.broker(world.public, log="INFO")
    world.start(world.b, "connector", before)
    assert program.wait_line("accepted as (.*)").group(1) == before
    assert "registered" not in again.stderr

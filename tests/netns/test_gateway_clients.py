"""Programs behind dpfd: restarts, a dpfd that is not there, and a broker beside it."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab
from tests.netns.pairs import ADDRESS, PROGRAMS, Listening, World, exchanged


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited."""
    return World(lab, tmp_path)


def listen_warned(world: World, host: Host) -> tuple[Listening, list[str]]:
    """Start a patched listener; and all that is warned of until its address is known."""
    log = world.tmp / f"warnings-{host.name}"
    env = {**world.settings[host.name], "GCB_LOG": "WARNING", "GCB_LOG_FILE": str(log)}
    argv = [sys.executable, "-m", "gcbpatch", str(PROGRAMS / "listener.py")]
    program = host.popen(argv, env=env)
    address = program.wait_line(ADDRESS)[1].replace("0.0.0.0", host.address)
    return Listening(program, address), log.read_text().splitlines() if log.exists() else []


def test_a_dpfd_that_lost_everything_gives_the_same_mapping_again(world: World) -> None:
    daemon = world.gateway_daemon(world.gateway_a, lifetime=3)
    world.use_gateway(world.a)
    listening = world.listen(world.a)
    exchanged(world, world.public, listening)
    daemon.kill()
    for path in world.tmp.glob("gateway-a.db*"):
        path.unlink()
    again = world.gateway_daemon(world.gateway_a, lifetime=3)
    again.wait_line(re.escape(f"[{listening.address} > ") + ".* set", stream="stderr")
    exchanged(world, world.public, listening)


def test_without_dpfd_a_broker_is_taken_and_without_both_the_kernel(world: World) -> None:
    world.broker(world.public)
    world.use_gateway(world.a)  # nobody is there
    world.use_broker(world.a, world.public.address)
    listening, warned = listen_warned(world, world.a)
    assert listening.address.startswith(f"{world.public.address}:")
    assert len(warned) == 1 and "dpfd at 10.1.0.1:65431: " in warned[0]
    exchanged(world, world.other, listening)
    world.use_gateway(world.a2)
    plain, warned = listen_warned(world, world.a2)
    assert plain.address.startswith(f"{world.a2.address}:")
    assert len(warned) == 1 and "as if unpatched" in warned[0]
    exchanged(world, world.gateway_a.host("a3"), plain)


def test_where_wishes_are_refused_listen_fails_for_a_port_that_is_taken(world: World) -> None:
    world.gateway_daemon(world.gateway_a, wish="refuse")
    for host in (world.a, world.a2):
        world.use_gateway(host)
    first = world.listen(world.a, "--port", "20080")
    assert first.address == f"{world.gateway_a.address}:20080"
    late = world.start(world.a2, "listener", "--port", "20080")
    late.wait_line(f"^listen failed: {errno.EADDRNOTAVAIL} ")
    anywhere = world.listen(world.a2)  # the kernel's choice of a port is nobody's wish
    assert anywhere.address.startswith(f"{world.gateway_a.address}:")
    exchanged(world, world.public, anywhere)


def test_a_listener_behind_dpfd_is_reached_straight_by_who_has_a_broker(world: World) -> None:
    broker = world.broker(world.public)
    world.gateway_daemon(world.gateway_a)
    world.use_gateway(world.a)
    for host in (world.a, world.b):
        world.use_broker(host, world.public.address)
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.gateway_a.address}:")
    broker.kill()
    _, theirs = exchanged(world, world.b, listening)
    assert theirs["peer"][0] == world.gateway_b.address


@pytest.mark.parametrize("dpfd", [True, False])
def test_a_brokered_listener_tells_the_broker_its_public_address(world: World, dpfd: bool) -> None:
    world.broker(world.public)
    world.gateway_daemon(world.gateway_a)
    table = world.tmp / "routes"
    table.write_text("0.0.0.0/0 gcb\n")
    if dpfd:
        world.use_gateway(world.a, GCB_ROUTES=str(table))
    for host in (world.a, world.b):
        world.use_broker(host, world.public.address)
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.public.address}:")
    exchanged(world, world.b, listening)
    assert (world.path_to(world.b, listening.address) == "direct") is dpfd

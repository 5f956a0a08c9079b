"""Daemons and clients that die, tokens that are wrong, ports that run out: over real NAT."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
from pathlib import Path

import pytest

from gcbpatch.addresses import parse_host_port
from tests.netns.gateway_ground import BACK_ENDS, BackEnd
from tests.netns.lab import Host, Lab, Program, ProgramError
from tests.netns.pairs import ADDRESS, Dialogue, World, exchanged

LIFETIME = {"GCB_LIFETIME": "3"}
"""Seconds; a third of it between heartbeats, so that tests see what happens at their end."""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited."""
    return World(lab, tmp_path, mapping="random")


def echo(world: World, host: Host) -> tuple[Program, str]:
    """Start an echo listener; return it and its address."""
    program = world.start(host, "echo")
    return program, program.wait_line(ADDRESS).group(1)


def test_a_broker_that_was_killed_gets_its_clients_back(world: World) -> None:
    broker = world.broker(world.public, lifetime=3, log="INFO")
    for one in (world.a, world.a2, world.b):
        world.use_broker(one, world.public.address, **LIFETIME)
    _, address = echo(world, world.a)
    relayed, local = Dialogue(world, world.b), Dialogue(world, world.a2)
    assert relayed(f"connect {address}") == local(f"connect {address}") == "connected 0"
    assert relayed("say 0 one") == local("say 0 one") == "heard one"
    assert world.path_to(world.b, address) == "relayed"
    assert world.path_to(world.a2, address) == "local"

    broker.kill()
    assert local("say 0 still") == "heard still", "a direct connection needs no broker"
    assert relayed("say 0 gone").startswith("error"), "a relayed one ends with its broker"

    again = world.broker(world.public, lifetime=3, log="INFO")
    again.wait_line(f"registered {address}", stream="stderr")
    for one in (relayed, local):
        assert one(f"connect {address}") == "connected 1"
        assert one("say 1 two") == "heard two"
    assert local("say 0 on") == "heard on"


def test_a_claimed_address_is_not_given_to_anybody_else(world: World) -> None:
    broker = world.broker(world.public, lifetime=3, log="INFO", proxy_ports="20000-20099")
    for one in (world.a, world.b):
        world.use_broker(one, world.public.address, **LIFETIME)
    _, address = echo(world, world.a)
    port = address.rpartition(":")[2]
    broker.kill()
    again = world.broker(world.public, lifetime=3, log="INFO", proxy_ports="20000-20099")
    _, other = echo(world, world.b)
    again.wait_line(f"registered {address}", stream="stderr")
    assert other != address
    assert port in address


def test_a_client_that_is_killed_is_forgotten_within_its_lifetime(world: World) -> None:
    broker = world.broker(world.public, lifetime=3, log="INFO")
    world.use_broker(world.a, world.public.address, **LIFETIME)
    program, address = echo(world, world.a)
    program.kill()
    broker.wait_line("unregistered|expired", stream="stderr")
    assert "refused" in world.connect(world.other, address)["error"]


def test_a_host_that_vanishes_is_forgotten_within_its_lifetime(world: World) -> None:
    broker = world.broker(world.public, lifetime=3, log="INFO")
    world.use_broker(world.a, world.public.address, **LIFETIME)
    _, address = echo(world, world.a)
    world.a.space.ip("link set eth0 down")
    broker.wait_line("expired", stream="stderr")
    assert "refused" in world.connect(world.other, address)["error"]


@pytest.mark.parametrize("system", ["gcb", "dpf"])
def test_who_grants_less_than_was_asked_hears_more_often(world: World, system: str) -> None:
    if system == "gcb":
        daemon = world.broker(world.public, lifetime=1, log="INFO")
        world.use_broker(world.a, world.public.address)
    else:
        daemon = world.gateway_daemon(world.gateway_a, lifetime=1)
        world.use_gateway(world.a)
    _, address = echo(world, world.a)
    with pytest.raises(ProgramError, match="hangs"):
        daemon.wait_line("expired|removed", stream="stderr", hang_limit=4.0)
    outside = Dialogue(world, world.other)
    assert outside(f"connect {address}") == "connected 0"
    assert outside("say 0 kept") == "heard kept"


back_ends = pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda one: one.name)


@back_ends
def test_dpfd_killed_and_restarted_keeps_its_mappings(world: World, back_end: BackEnd) -> None:
    flags = {"lifetime": 3, "backend": back_end.name}
    daemon = world.gateway_daemon(world.gateway_a, **flags)
    world.use_gateway(world.a, **LIFETIME)
    _, address = echo(world, world.a)
    before = back_end.rules(world.gateway_a)
    assert parse_host_port(address, 0) in before
    outside = Dialogue(world, world.other)
    assert outside(f"connect {address}") == "connected 0"

    daemon.kill()
    assert outside("say 0 meanwhile") == "heard meanwhile"
    assert outside(f"connect {address}") == "connected 1", "the kernel forwards without dpfd"

    world.gateway_daemon(world.gateway_a, **flags)
    assert back_end.rules(world.gateway_a) == before
    assert outside(f"connect {address}") == "connected 2"
    assert outside("say 0 on") == outside("say 2 on") == "heard on"


@back_ends
def test_dpfd_removes_the_rule_of_a_killed_client_within_its_lifetime(
    world: World, back_end: BackEnd
) -> None:
    daemon = world.gateway_daemon(world.gateway_a, lifetime=3, backend=back_end.name)
    world.use_gateway(world.a, **LIFETIME)
    program, address = echo(world, world.a)
    assert parse_host_port(address, 0) in back_end.rules(world.gateway_a)
    program.kill()
    daemon.wait_line(f"{address}.* removed", stream="stderr")
    assert parse_host_port(address, 0) not in back_end.rules(world.gateway_a), daemon.stderr


def test_a_closed_listener_is_unregistered_at_once(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    world.use_broker(world.a, world.public.address)
    program, address = echo(world, world.a)
    program.terminate()
    broker.wait_line(f"unregistered {address}", stream="stderr")


def test_an_unreachable_broker_costs_one_warning_and_nothing_else(world: World) -> None:
    world.use_broker(world.a, world.public.address, GCB_PATIENCE="1")
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.a.address}:")
    exchanged(world, world.a2, listening)
    mine = world.connect(world.a, world.listen(world.other).address)
    assert "error" not in mine
    logged = world.log_of(world.a).read_text()
    assert logged.count("going on as if unpatched") == 1


def test_a_broker_that_comes_late_is_found_by_itself(world: World) -> None:
    world.use_broker(world.a, world.public.address, GCB_PATIENCE="0.5", **LIFETIME)
    listening = world.listen(world.a)
    port = listening.address.rpartition(":")[2]
    broker = world.broker(world.public, lifetime=3, log="INFO")
    broker.wait_line(f"registered {world.public.address}:{port}", stream="stderr")
    listening.address = f"{world.public.address}:{port}"
    exchanged(world, world.other, listening)


def test_a_wrong_token_leaves_the_program_as_if_unpatched(world: World) -> None:
    broker = world.broker(world.public, token="the-right-token")
    world.use_broker(world.a, world.public.address, token="a-wrong-token")
    world.use_broker(world.b, world.public.address, token="the-right-token")
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.a.address}:")
    broker.wait_line(f"refused {world.gateway_a.address}.*token", stream="stderr")
    # An ordinary connector needs no token to use somebody's proxy address.
    exchanged(world, world.a, world.listen(world.b))


def test_exhausted_proxy_ports_are_eaddrnotavail(world: World) -> None:
    world.broker(world.public, proxy_ports="20000-20000")
    answers = []
    for one in (world.a, world.a2, world.b):
        world.use_broker(one, world.public.address)
        program = world.start(one, "echo", "--port", "30000")
        answers.append(program.wait_line("listening on .*|listen failed: .*").group(0))
    assert answers[:2] == [
        f"listening on {world.public.address}:30000",
        f"listening on {world.public.address}:20000",
    ]
    assert answers[2].startswith(f"listen failed: {errno.EADDRNOTAVAIL} ")


def test_exhausted_gateway_ports_are_eaddrnotavail(world: World) -> None:
    world.gateway_daemon(world.gateway_a, ports="20000-20000")
    for one in (world.a, world.a2):
        world.use_gateway(one)
    _, address = echo(world, world.a)
    assert address == f"{world.gateway_a.address}:20000"
    refused = world.start(world.a2, "echo").wait_line("listen failed: (.*)")
    assert refused.group(1).startswith(f"{errno.EADDRNOTAVAIL} ")


def test_a_listener_falls_back_to_gcb_where_no_dpfd_answers(world: World) -> None:
    world.broker(world.public)
    world.use_broker(world.a, world.public.address, GCB_PATIENCE="1")
    world.use_gateway(world.a)
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.public.address}:")
    exchanged(world, world.other, listening)


@pytest.mark.parametrize("system", ["gcb", "dpf"])
def test_an_interrupted_program_leaves_no_agent(world: World, system: str) -> None:
    if system == "gcb":
        world.broker(world.public)
        world.use_broker(world.a, world.public.address)
    else:
        world.gateway_daemon(world.gateway_a)
        world.use_gateway(world.a)
    program, _ = echo(world, world.a)
    agent = int(re.search(r"agent\[(\d+)\]", world.log_of(world.a).read_text()).group(1))
    ended = os.pidfd_open(agent)
    program.signal(signal.SIGINT)
    program.wait()
    assert select.select([ended], [], [], 60.0)[0], "the agent outlived its last program"

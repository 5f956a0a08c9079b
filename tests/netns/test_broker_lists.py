"""Several brokers: who is chosen, who takes over, and what the program is called then."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, PROGRAMS, Dialogue, World, exchanged

LIFETIME = {"GCB_LIFETIME": "3", "GCB_PATIENCE": "1"}
"""Seconds: what is registered at a broker that is gone is over soon."""


class Brokers:
    """Two brokers on public hosts, and who of them a listener is registered with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts = {host.address: host for host in (world.public, world.other)}
        self.running = {address: self.start(address) for address in self.hosts}

    def start(self, address: str) -> Program:
        """Start one of them, with the key that it had before."""
        return self.world.broker(self.hosts[address], lifetime=3, log="INFO")

    def of(self, name: str) -> tuple[str, str]:
        """Return the host of the broker that a proxy address is at, and of the other one."""
        mine = name.rpartition(":")[0]
        (other,) = set(self.hosts) - {mine}
        return mine, other


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


def cut_off(host: Host) -> None:
    """Let nothing in."""
    host.space.nft(
        "table inet cut { chain input { type filter hook input priority -5; policy drop; }; }"
    )


def mend(host: Host) -> None:
    """Let everything in again."""
    host.space.nft("delete table inet cut")


def listening(world: World, *options: str) -> tuple[Program, str]:
    """Start a listener that says when its name changes; return it and its first name."""
    program = world.start(world.a, "renamed", *options)
    return program, program.wait_line(ADDRESS).group(1)


@pytest.mark.parametrize("options", [(), ("--waits",)], ids=["computing", "waiting"])
def test_a_listener_of_a_dead_broker_moves_and_knows_its_name(
    brokers: Brokers, world: World, options: tuple[str, ...]
) -> None:
    program, before = listening(world, *options)
    mine, other = brokers.of(before)
    brokers.running[mine].kill()
    after = program.wait_line(ADDRESS).group(1)
    assert after.startswith(f"{other}:")

    outside = Dialogue(world, world.b)
    assert outside(f"connect {after}") == "connected 0"
    assert outside("say 0 moved") == "heard moved"
    assert program.wait_line("accepted as (.*)").group(1) == after

    again = brokers.start(mine)
    assert "error" in outside(f"connect {before}"), "nobody registers where he was before"
    assert "registered" not in again.stderr
    assert outside(f"connect {after}") == "connected 1"


def test_a_registration_at_a_broker_that_was_cut_off_does_not_linger(
    brokers: Brokers, world: World
) -> None:
    program, before = listening(world, "--waits")
    mine, other = brokers.of(before)
    cut_off(brokers.hosts[mine])
    after = program.wait_line(ADDRESS).group(1)
    assert after.startswith(f"{other}:")
    brokers.running[mine].wait_line(f"{before} expired", stream="stderr")
    mend(brokers.hosts[mine])
    outside = Dialogue(world, world.b)
    assert "error" in outside(f"connect {before}")
    assert outside(f"connect {after}") == "connected 0"


def test_a_broker_that_comes_back_in_time_keeps_its_listener(
    brokers: Brokers, world: World
) -> None:
    program, before = listening(world, "--waits")
    mine, _ = brokers.of(before)
    brokers.running[mine].kill()
    brokers.start(mine).wait_line(f"registered {before}", stream="stderr")
    outside = Dialogue(world, world.b)
    assert outside(f"connect {before}") == "connected 0"
    assert program.stdout.count("listening on") == 1


def test_a_full_broker_is_passed_over(world: World) -> None:
    world.broker(world.public, proxy_ports="20000-20000")
    world.broker(world.other)
    world.use_broker(world.a2, world.public.address)
    world.listen(world.a2)
    both = f"{world.public.address},{world.other.address}"
    world.use_broker(world.a, both)
    for _ in range(3):
        assert world.listen(world.a).address.startswith(f"{world.other.address}:")


def test_listener_and_connector_have_different_brokers(world: World) -> None:
    for host in (world.public, world.other):
        world.broker(host)
    world.use_broker(world.a, world.public.address)
    world.use_broker(world.b, f"{world.other.address},{world.public.address}")
    listening = world.listen(world.a)
    exchanged(world, world.b, listening)
    assert world.path_to(world.b, listening.address) == "punched"


def test_a_dead_broker_in_the_list_is_nothing_to_wait_for(world: World) -> None:
    world.broker(world.public)
    world.use_broker(
        world.a, f"{world.other.address},{world.public.address}", GCB_PATIENCE="30"
    )
    cut_off(world.other)
    exchanged(world, world.b, world.listen(world.a))


class Named:
    """Brokers under one name, which a host resolves by a file of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.file = world.tmp / "hosts"
        self.file.touch()

    def stands_for(self, *hosts: Host) -> None:
        """Give the name addresses; the file stays the same file, since it is mounted."""
        self.file.write_text("".join(f"{host.address} brokers.test\n" for host in hosts))

    def start(self, host: Host, program: str) -> Program:
        """Start a program to which the name means that."""
        mount = f"mount --bind {self.file} /etc/hosts && exec \"$@\""
        argv = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-m", "gcbpatch"]
        log = str(self.world.log_of(host))
        env = {"GCB_BROKER": "brokers.test", "GCB_LOG": "INFO", "GCB_LOG_FILE": log, **LIFETIME}
        return host.popen([*argv, str(PROGRAMS / f"{program}.py"), "--waits"], env=env,
                          privileged=True)


def test_a_name_may_stand_for_several_brokers_and_is_looked_up_again(
    lab: Lab, world: World
) -> None:
    third = lab.host("third")
    named = Named(world)
    named.stands_for(world.public, world.other)
    first = world.broker(world.other, lifetime=3)
    program = named.start(world.a, "renamed")
    assert program.wait_line(ADDRESS).group(1).startswith(f"{world.other.address}:")

    world.broker(third, lifetime=3)
    named.stands_for(third)
    first.kill()
    after = program.wait_line(ADDRESS).group(1)
    assert after.startswith(f"{third.address}:")
    outside = Dialogue(world, world.b)
    assert outside(f"connect {after}") == "connected 0"
    assert outside("say 0 there") == "heard there"

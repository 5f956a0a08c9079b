"""Connections that wait at the broker: used when their listener is called, replaced when dead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.netns.lab import Lab, Program
from tests.netns.pairs import Listening, World, exchanged
from tests.netns.test_punching import punching_world

PARKED = r"a connection of \S+:(\d+) is parked"
JOINED = "joining on a connection that waited"

OLDER = """
from brokerd import cli, parking
from brokerd.registry import Refusal, Status

def enter(self, sock, peer, frame, now):
    self._refuse(sock, peer, frame, Refusal(Status.UNSUPPORTED, "command 47"))

parking.Parking.enter = enter
cli.main()
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NATs that no punch gets through."""
    world = World(lab, tmp_path, mapping="random")
    for host in (world.a, world.b):
        world.use_broker(host, world.public.address)
    return world


def waiting(world: World, broker: Program) -> tuple[Listening, str]:
    """Start a listener; return it, and from which port a connection waits for it."""
    listening = world.listen(world.a)
    return listening, parked(broker)


def parked(broker: Program) -> str:
    return broker.wait_line(PARKED, stream="stderr").group(1)


def joined(world: World) -> int:
    """How often a connection that waited was used."""
    return world.log_of(world.a).read_text().count(JOINED)


def test_who_is_called_joins_on_a_connection_that_waits(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    listening, _ = waiting(world, broker)
    exchanged(world, world.b, listening)
    assert world.path_to(world.b, listening.address) == "relayed"
    assert joined(world) == 1
    parked(broker)
    exchanged(world, world.other, listening)
    assert joined(world) == 2


EARLY = "introduced before the relay is ready"


@pytest.mark.parametrize(
    ("listener", "connector", "path", "early"),
    [
        pytest.param("preserving", "preserving", "punched", True, id="both keep ports"),
        pytest.param("preserving", "random", "relayed", False, id="the connector's NAT does not"),
        pytest.param("random", "preserving", "relayed", False, id="the listener's does not"),
    ],
)
def test_who_is_called_is_introduced_by_the_connection_that_waits(
    lab: Lab, tmp_path: Path, listener: str, connector: str, path: str, early: bool
) -> None:
    world = punching_world(lab, tmp_path, {"mapping": listener}, {"mapping": connector})
    listening, _ = waiting(world, world.brokerd)
    exchanged(world, world.b, listening)
    assert world.path_to(world.b, listening.address) == path
    for host in (world.a, world.b):
        assert (EARLY in world.log_of(host).read_text()) is early
    assert joined(world) == 1


def test_where_an_agent_was_reached_is_dialled_ahead(world: World) -> None:
    world.broker(world.public)
    world.use_broker(world.other, world.public.address, GCB_REGISTER="always")
    listening = world.listen(world.other)
    program = world.start(
        world.b, "connector", listening.address, "--times", "2", "--on-line", stdin=-1
    )
    for _ in range(2):
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert "error" not in program.wait_line(r"^\{.*\}$").group(0)
        listening.report()
        assert world.path_to(world.b, listening.address) == "direct"
    assert world.log_of(world.b).read_text().count("was dialled ahead") == 1


def test_one_that_is_dead_is_noticed_and_another_dialled(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    listening, port = waiting(world, broker)
    world.public.space.nft(
        "table inet forgetful {\nchain in {\ntype filter hook input priority 0; policy accept;\n"
        f"tcp sport {port} drop\n}}\n}}"
    )
    exchanged(world, world.b, listening)
    assert "is dead" in world.log_of(world.a).read_text()
    parked(broker)
    exchanged(world, world.b, listening)
    assert joined(world) == 2


def test_a_broker_that_is_started_again_has_them_again(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    listening, _ = waiting(world, broker)
    broker.kill()
    again = world.broker(world.public, log="INFO")
    parked(again)
    exchanged(world, world.b, listening)
    assert joined(world) == 1


def test_with_an_older_broker_all_is_as_before(world: World) -> None:
    argv = ["-c", OLDER, "--address", world.public.address, "--log", "INFO"]
    argv += ["--key-file", str(world.tmp / "key")]
    older = world.public.popen([sys.executable, *argv])
    older.wait_line("^brokerd ready")
    listening = world.listen(world.a)
    older.wait_line("command 47", stream="stderr")
    exchanged(world, world.b, listening)
    exchanged(world, world.other, listening)
    assert joined(world) == 0

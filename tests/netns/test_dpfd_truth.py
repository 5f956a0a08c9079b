"""Table, mirror and kernel say the same, whatever dpfd dies of and whoever meddles."""

import itertools
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpfd.faults import POINTS
from gcbpatch.addresses import Address
from tests.loopback.gateway_client import random_id
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import (
    BACK_ENDS,
    INSIDE,
    BackEnd,
    Client,
    Forwards,
    mirrored,
    start,
    table,
)
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.lab.errors import ProgramError
from tests.netns.talk import dial

LOW, HIGH = 20000, 20063


class World:
    """A gateway, its daemon, a client, and a mapping that must never be lost."""

    def __init__(
        self, gateway: Gateway, pub: Host, back_end: BackEnd, place: Path
    ) -> None:
        self.gateway = gateway
        self.back_end = back_end
        self.mirror = place / "mirror.db"
        self._copies = place / "copies"
        self.client = Client(gateway.host("a"), gateway)
        self.pub = pub
        self.publics = [(gateway.public_address, port) for port in range(LOW, HIGH + 1)]
        self.daemon: Program

    def start(
        self, fault: str = "", *, ports: tuple[int, int] = (LOW, HIGH), flags: tuple[str, ...] = ()
    ) -> Program:
        given = ("--ports", "{}-{}".format(*ports), "--backend", self.back_end.name, *flags)
        self.daemon = start(self.gateway, self.mirror, *given, fault=fault)
        self.client.session = None
        return self.daemon

    def agreement(self) -> Forwards:
        """What all three say; fails if they do not say the same."""
        held = table(self.client, self.publics)
        assert mirrored(self.mirror, self._copies) == held
        assert self.back_end.rules(self.gateway) == held
        return held


@pytest.fixture(params=BACK_ENDS, ids=lambda back_end: back_end.name)
def world(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[World]:
    require()
    gateway, pub = lab.gateway("ga", inside=INSIDE), lab.host("pub")
    yield World(gateway, pub, request.param, tmp_path)


class Script:
    """A set and a delete; remembers what was asked for and what acknowledged.

    No other script uses its inside port.
    """

    ports = itertools.count(40000)

    def __init__(self, client: Client) -> None:
        self._client = client
        self._listener = random_id()
        self.inside = client.inside[0], next(self.ports)
        self.may_be: set[bool] = {False}
        """Whether it may be mapped now: as acknowledged, and as asked for."""

    def run(self) -> None:
        """Raises when dpfd dies on the way."""
        self.may_be = {False, True}
        self._client.talk.forward(self._listener, self.inside, self._client.management)
        self.may_be = {True, False}
        self._client.talk.unforward(self._listener)
        self.may_be = {False}


def test_dpfd_killed_at_every_step_of_every_change_leaves_one_truth(world: World) -> None:
    client = world.client
    world.start()
    kept = client.forward()
    scripts: list[Script] = []
    places = set()
    for fault in faults(world.back_end, looks=len(world.publics) + 2):
        world.daemon.kill()
        daemon = world.start(fault)
        if is_ready(daemon):
            check(world, kept, scripts)
            scripts.append(Script(client))
            if carried_out(scripts[-1]) and "answer" not in fault:
                break
        assert daemon.wait() == -signal.SIGKILL, daemon.stderr
        places.add(re.findall("^dpfd dies at (.*)$", daemon.stderr, re.M)[-1])
    everywhere = world.back_end is BACK_ENDS[0]
    assert places == (set(POINTS) - {"load: strays"} if everywhere else {"kernel: committed"})


def faults(back_end: BackEnd, looks: int) -> Iterator[str]:
    """After which of a script's answers, then at which step of everything, to die.

    With one back end; with another, after each change of the kernel: that is what differs.
    ``looks`` is how many answers check() has before the script begins.
    """
    place = "kernel: committed"
    if back_end is BACK_ENDS[0]:
        place = "*"
        for when, number in itertools.product(("ready", "sent"), range(1, 3)):
            yield f"answer: {when}@{looks + number}"
    for number in itertools.count(1):
        yield f"{place}@{number}"


def check(world: World, kept: Address, scripts: list[Script]) -> None:
    """All agree; what was acknowledged is there, and what was not is wholly there or not."""
    held = world.agreement()
    assert held.pop(kept) == world.client.inside
    for script in scripts:
        assert (script.inside in held.values()) in script.may_be
    assert world.client.talk.renew(world.client.id).lost == []


def is_ready(daemon: Program) -> bool:
    """Whether dpfd has lived until it was ready."""
    try:
        daemon.wait_line("^dpfd ready on ")
    except ProgramError:
        return False
    return True


def carried_out(script: Script) -> bool:
    """Whether dpfd has lived until the script's end."""
    try:
        script.run()
    except (ConnectionError, AssertionError):  # the session ended
        return False
    return True


def test_a_start_that_gives_mappings_up_may_be_killed_in_the_middle(world: World) -> None:
    client = world.client
    world.start()
    inside = client.forward(wished=("0.0.0.0", LOW))
    client.forward(random_id(), wished=("0.0.0.0", HIGH))
    world.daemon.kill()
    daemon = world.start("load: strays", ports=(LOW, HIGH - 1))
    assert daemon.wait() == -signal.SIGKILL
    world.start(ports=(LOW, HIGH - 1))
    assert world.agreement() == {inside: client.inside}


def test_what_others_do_to_the_rules_is_put_right(world: World) -> None:
    client, back_end, gateway = world.client, world.back_end, world.gateway
    daemon = world.start()
    publics = [client.forward(random_id()) for _ in range(3)]
    free = next(public for public in world.publics if public not in publics)
    right = dict.fromkeys(publics, client.inside)
    for damage in back_end.damages:
        back_end.damage(gateway, damage)
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("reconciled", stream="stderr")
        assert world.agreement() == right, damage
    back_end.add(gateway, free, ("10.1.0.9", 9))
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reconciled", stream="stderr")
    assert world.agreement() == right
    carries(world, publics[0])


def carries(world: World, public: Address) -> None:
    with dial(world.pub, *public) as near:
        far, _ = world.client.accept()
        with far:
            near.sendall(b"through")
            assert far.recv(100) == b"through"


def test_it_is_put_right_at_intervals_too(world: World) -> None:
    daemon = world.start(flags=("--reconcile-interval", "1"))
    public = world.client.forward()
    world.back_end.damage(world.gateway, world.back_end.damages[0])
    daemon.wait_line("the kernel lacked 1 rules .*, which is put right", stream="stderr")
    assert world.agreement() == {public: world.client.inside}


def test_after_a_reboot_everything_is_back(world: World) -> None:
    world.start()
    public = world.client.forward()
    world.daemon.kill()
    world.back_end.reboot(world.gateway)
    world.start()
    assert world.agreement() == {public: world.client.inside}
    carries(world, public)


def test_a_tail_that_was_lost_with_the_power_comes_back_from_the_clients(world: World) -> None:
    client = world.client
    world.start()
    first = client.forward()
    log = Path(f"{world.mirror}-wal")
    size = log.stat().st_size
    late = random_id()
    second = client.forward(late)
    world.daemon.kill()
    with log.open("r+b") as file:  # the last change was being written: half of it is there
        file.truncate(size + (log.stat().st_size - size) // 2)
    world.back_end.reboot(world.gateway)
    world.start()
    assert world.agreement() == {first: client.inside}
    assert client.talk.renew(client.id, late).lost == [late]
    assert client.forward(late, wished=second) == second
    assert world.agreement() == {first: client.inside, second: client.inside}
    carries(world, second)

"""Punching: who connects through two NATs without the relay, and that all others are relayed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gcbpatch.agent.memory import HOPELESS
from tests.netns.lab import Lab
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.pairs import ADDRESS, World, exchanged

ATTEMPTS = int(os.environ.get("GCB_PUNCH_ATTEMPTS", "200"))
LEAST = 0.99

AGAIN_AND_AGAIN = """
    import socket, sys
    listener = socket.create_server(("", 0), backlog=100)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    while True:
        sock, _ = listener.accept()
        sock.sendall(sock.recv(5))
        sock.close()
"""


def punching_world(lab: Lab, tmp: Path, a: dict[str, Any], b: dict[str, Any]) -> World:
    """Two gateways with a router's hop between them, and a broker in public."""
    world = World.__new__(World)
    world.lab, world.tmp, world.settings = lab, tmp, {}
    world.public, world.other = lab.host("public"), lab.host("other")
    world.gateway_a = lab.gateway("gateway-a", inside="10.1.0.0/24", **a)
    world.gateway_b = lab.gateway(
        "gateway-b", inside="10.2.0.0/24", uplink=lab.segment(), **b
    )
    world.a, world.a2 = world.gateway_a.host("a"), world.gateway_a.host("a2")
    world.b = world.gateway_b.host("b")
    world.brokerd = world.broker(world.public, log="INFO")
    for host in (world.a, world.b, world.other):
        world.use_broker(host, world.public.address)
    return world


DROP = {"unsolicited": "drop"}
# The first packets have to meet on their way, which takes one.
RST = {"unsolicited": "rst", "delay_ms": 25}
LATE = {"unsolicited": "drop", "delay_ms": 25}
RANDOM = {"unsolicited": "drop", "mapping": "random"}
SHIFT = {"unsolicited": "drop", "mapping": "shifting"}


@pytest.mark.parametrize(
    ("a", "b", "path"),
    [
        pytest.param(DROP, DROP, "punched", id="drop-drop"),
        pytest.param(RANDOM, DROP, "relayed", id="random-drop"),
        pytest.param(DROP, RANDOM, "relayed", id="drop-random"),
        pytest.param(RANDOM, RANDOM, "relayed", id="random-random"),
        pytest.param(RST, LATE, "punched", id="rst-drop"),
        pytest.param(LATE, RST, "punched", id="drop-rst"),
        pytest.param(RST, RST, "punched", id="rst-rst"),
    ],
)
def test_a_pair_of_nats(
    lab: Lab, tmp_path: Path, a: dict[str, Any], b: dict[str, Any], path: str
) -> None:
    world = punching_world(lab, tmp_path, a, b)
    listening = world.listen(world.a)
    mine, theirs = exchanged(world, world.b, listening)
    assert world.path_to(world.b, listening.address) == path
    assert ":".join(map(str, mine["getpeername"])) == listening.address
    assert theirs["peer"][0] == world.b.observed_address


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(DROP, DROP, id="drop-drop"),
        pytest.param(SHIFT, DROP, id="shift-drop"),
        pytest.param(DROP, SHIFT, id="drop-shift"),
        pytest.param(SHIFT, SHIFT, id="shift-shift"),
    ],
)
def test_punching_comes_about_again_and_again(
    lab: Lab, tmp_path: Path, a: dict[str, Any], b: dict[str, Any]
) -> None:
    world = punching_world(lab, tmp_path, a, b)
    address = world.script(world.a, AGAIN_AND_AGAIN).wait_line(ADDRESS).group(1)
    host, port = address.split(":")
    world.script(
        world.b,
        f"""
        import socket
        for _ in range({ATTEMPTS}):
            with socket.create_connection(("{host}", {port}), timeout=20) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
        """,
    ).wait(hang_limit=max(HANG_LIMIT, ATTEMPTS / 5))
    log = world.log_of(world.b).read_text()
    punched, relayed = (log.count(f"{address}: {kind},") for kind in ("PUNCHED", "RELAYED"))
    print(f"{punched} of {ATTEMPTS} punched", flush=True)
    assert punched + relayed == ATTEMPTS
    assert punched >= LEAST * ATTEMPTS


NOTHING_FROM = (
    "add table ip strict;"
    "add chain ip strict first {{ type filter hook prerouting priority raw; }};"
    "add rule ip strict first ip saddr {} drop"
)


def test_what_does_not_work_is_not_tried_for_ever(lab: Lab, tmp_path: Path) -> None:
    """Two NATs of the best kind, of which one lets in nothing from the other, answers included.

    Gateways that reset would not do: without a delay their first packets still pass each other
    now and then.
    """
    world = World(lab, tmp_path)
    forbidden = NOTHING_FROM.format(world.b.observed_address)
    world.gateway_a.run(["nft", forbidden], privileged=True)
    world.broker(world.public, log="INFO")
    for one in (world.a, world.b):
        world.use_broker(one, world.public.address)
    address = world.script(world.a, AGAIN_AND_AGAIN).wait_line(ADDRESS).group(1)
    host, port = address.split(":")
    times = world.script(
        world.b,
        f"""
        import socket
        for _ in range({HOPELESS + 3}):
            with socket.create_connection(("{host}", {port}), timeout=20) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
        """,
    )
    times.wait()
    log = world.log_of(world.b).read_text()
    assert log.count(f"{address}: RELAYED,") == HOPELESS + 3
    assert log.count("no punch, as it came to nothing lately") == 3

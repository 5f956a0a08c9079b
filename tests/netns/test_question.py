"""Connecting to hosts that nobody has told us of: brokers are found out, others not slowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, World, exchanged
from tests.netns.test_connects import RESETTING

PORT = 9618


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Host b knows the broker at `public`; host a another one, at `other`."""
    world = World(lab, tmp_path, mapping="random")
    world.broker(world.public)
    world.use_broker(world.b, world.public.address)
    world.use_broker(world.a, world.other.address)
    return world


def counting(world: World, host: Host) -> tuple[Program, str]:
    """Start a listener that counts what it accepts; return it and its address."""
    program = world.script(host, RESETTING)
    return program, program.wait_line(ADDRESS).group(1)


def knock(world: World, host: Host, address: str, text: str = "sock.settimeout(20)") -> None:
    """Connect from a program of its own, and ask how many were before."""
    name, port = address.split(":")
    world.script(
        host,
        f"""
        import select, socket
        sock = socket.socket()
        {text}
        error = sock.connect_ex(("{name}", {port}))
        if error == 115:
            assert select.select([], [sock], [], 30)[1] == [sock]
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert error == 0, error
        assert sock.getpeername() == ("{name}", {port})
        sock.setblocking(True)
        sock.sendall(b"?")
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
        """,
    ).wait()


@pytest.mark.parametrize("text", ["sock.settimeout(20)", "sock.setblocking(False)"])
def test_an_unknown_broker_is_found_and_the_listener_sees_one_connection(
    world: World, text: str
) -> None:
    broker = world.broker(world.other, log="INFO")
    program, address = counting(world, world.a)
    for number in range(3):
        knock(world, world.b, address, text)
        assert program.wait_line(r"accepted (\d+)").group(1) == str(number)
        assert world.path_to(world.b, address) == "relayed"
    assert "reset" not in broker.stderr


def test_the_second_connect_of_a_program_needs_no_question(world: World) -> None:
    world.broker(world.other)
    listening = world.listen(world.a)
    program = world.start(
        world.b, "connector", listening.address, "--times", "2", "--on-line", stdin=-1
    )
    for _ in range(2):
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert "error" not in program.wait_line(r"^\{.*\}$").group(0)
        listening.report()
        world.other.space.nft(
            "table inet mute {\nchain in {\ntype filter hook input priority 0; policy accept;\n}\n}"
        )
    assert world.path_to(world.b, listening.address) == "relayed"


def test_an_unknown_broker_with_tokens_is_connected_to_as_everybody_does(world: World) -> None:
    world.broker(world.other, token="token-of-others")
    world.use_broker(world.a, world.other.address, token="token-of-others")
    program, address = counting(world, world.a)
    knock(world, world.b, address)
    assert program.wait_line(r"accepted (\d+)").group(1) == "0"
    assert world.path_to(world.b, address) == "kernel"


@pytest.mark.parametrize("answer", ["answers", "refuses", "is silent", "cannot be asked"])
def test_an_ordinary_host_is_connected_to_without_an_agent(world: World, answer: str) -> None:
    target = world.lab.host("target", firewall="drop" if answer == "is silent" else "accept")
    target.open(PORT)
    if answer == "answers":
        world.broker(target)
    if answer == "cannot be asked":
        world.b.space.nft(
            "table inet mute {\nchain out {\n"
            "type filter hook output priority 0; policy accept;\nudp dport 65432 drop\n}\n}"
        )
    exchanged(world, world.b, world.listen(target, "--port", str(PORT)))
    assert world.path_to(world.b, f"{target.address}:{PORT}") == "kernel"
    log = world.log_of(world.b)
    assert not log.exists() or "agent[" not in log.read_text()


def test_an_unknown_host_that_refuses_is_refused_at_once(world: World) -> None:
    world.listen(world.other, "--port", str(PORT))
    report = world.connect(world.b, f"{world.other.address}:{PORT + 1}")
    assert "refused" in report["error"]

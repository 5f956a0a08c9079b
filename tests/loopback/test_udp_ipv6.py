"""UDP sockets of IPv6 behind a broker on ::1: names, peers, sizes, connects, refusals, copies."""

from __future__ import annotations

import functools
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import format_address
from gcbpatch.wire.datagrams import MOST_PAYLOAD_6

from .broker_client import HANG_S, Broker
from .broker_ground import wait_until
from .conversation import PATCH, Program
from .test_ipv6 import HERE, words
from .test_patched import run

ECHO = """
    import os, socket
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, {only})
    sock.bind(("", 0))
    print(*sock.getsockname(), flush=True)
    buffer = bytearray(70000)
    while True:
        data, peer = sock.recvfrom(70000)
        print(len(data), *peer, flush=True)
        assert sock.sendto(data[::-1], peer) == len(data)
        size, peer = sock.recvfrom_into(buffer)
        print(size, *peer, flush=True)
        assert sock.sendto(buffer[:size][::-1], peer[:2]) == size
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("v6"), "--log", "INFO", host=HERE)
    yield broker
    broker.kill()


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """An ordinary socket."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((HERE, 0))
        sock.settimeout(HANG_S)
        yield sock


@pytest.mark.parametrize("only", [True, False], ids=["IPv6 alone", "both families"])
def test_ordinary_peers_send_to_a_proxy_address_and_are_answered_from_there(
    broker: Broker, peer: socket.socket, tmp_path: Path, only: bool
) -> None:
    with Program(ECHO.format(only=only), broker, tmp_path / "log") as program:
        name = words(program)
        assert (name[0], *name[2:]) == (HERE, 0, 0)
        mine = peer.getsockname()
        whole = MOST_PAYLOAD_6 - 20
        for size in (0, 1, 1, 1400, whole, whole + 1, MOST_PAYLOAD_6, 7):
            data = bytes(range(256)) * (size // 256 + 1)
            peer.sendto(data[:size], name)
            assert words(program) == (size, *mine)
            assert peer.recvfrom(70000) == (data[:size][::-1], name)
        program.kill()


def test_two_ports_of_one_broker_see_each_others_proxy_addresses(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
        import socket
        one, other = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (one, other):
            sock.bind(("::", 0))
            sock.settimeout(30)
        names = one.getsockname(), other.getsockname()
        one.sendto(b"hello", names[1])
        assert other.recvfrom(100) == (b"hello", names[0])
        assert other.sendto(b"hello yourself", names[0]) == 14
        assert one.recvmsg(100)[0::3] == (b"hello yourself", names[1])
        one.connect(names[1][:2])
        assert one.getpeername() == names[1]
        one.send(b"by connect")
        assert other.recvfrom(100) == (b"by connect", names[0])
        stranger = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        stranger.sendto(b"not from whom it is connected to", names[0])
        other.sendto(b"from whom it is", names[0])
        assert one.recv(100) == b"from whom it is"
        copy = socket.socket(fileno=one.detach())
        assert copy.getsockname() == names[0] and copy.getpeername() == names[1]
        copy.send(b"by a copy")
        assert other.recv(100) == b"by a copy"
        local = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        local.bind(("::1", 0))
        local.sendto(b"past all brokers", ("::1", local.getsockname()[1], 0, 0))
        assert local.recvfrom(100) == (b"past all brokers", local.getsockname())
        print("good")
    """
    done = run(PATCH + textwrap.dedent(text), GCB_BROKER=format_address(broker.address))
    assert done.stdout == "good\n", done.stderr


def test_a_peer_that_refuses_is_told_of_on_a_connected_socket(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
        import socket
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        sock.settimeout(30)
        print(*sock.getsockname(), flush=True)
        peer = sock.recvfrom(100)[1]
        sock.connect(peer)
        input()
        sock.send(b"to nobody")
        try:
            sock.recv(100)
        except ConnectionRefusedError:
            print("refused", flush=True)
    """
    with Program(text, broker, tmp_path / "log") as program:
        name = words(program)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
            peer.bind((HERE, 0))
            peer.sendto(b"hello", name)
        program.say()
        assert program.line() == "refused"


def test_an_ipv6_port_and_a_listener_are_given_up_with_their_sockets(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
        import socket
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        listener = socket.create_server(("", 0), family=socket.AF_INET6)
        for one in (sock, listener):
            print(*one.getsockname(), flush=True)
        input()
        sock.close()
        listener.close()
        input()
    """
    with Program(text, broker, tmp_path / "log") as program:
        names = words(program), words(program)
        program.say()
        # By events: a registration that nobody renews would be said to have expired.
        for name in names:
            gone = f"unregistered {format_address((str(name[0]), int(name[1])))}"
            wait_until(functools.partial(_is_in_log, broker, gone))
        program.say()


def _is_in_log(broker: Broker, line: str) -> bool:
    return line in broker.log()


def test_what_a_port_needs_is_not_to_be_seen(broker: Broker) -> None:
    text = """
        import errno, socket
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        assert sock.getsockname()[0] == "::1"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        import _socket
        port = _socket.socket.getsockname(sock._sock)[1]
        try:
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).bind(("", port))
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            sock.sendto(b"still there", sock.getsockname())
            print(sock.recv(100).decode())
    """
    done = run(PATCH + textwrap.dedent(text), GCB_BROKER=format_address(broker.address))
    assert done.stdout == "still there\n", done.stderr


def test_an_ipv4_port_is_the_kernels_where_the_broker_is_spoken_to_by_ipv6(tmp_path: Path) -> None:
    both = Broker(tmp_path, "--address", HERE)
    text = """
        import socket
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        print(sock.getsockname()[0])
    """
    done = run(PATCH + textwrap.dedent(text), GCB_BROKER=f"[{HERE}]:{both.address[1]}")
    both.kill()
    assert (done.stdout, done.stderr) == ("0.0.0.0\n", "")

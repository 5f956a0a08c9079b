"""UDP over real NAT: listeners behind gateways that drop what is unsolicited, by the relay."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, World

HANG_S = 30.0
SIZES = (0, 1, 100, 1472, 1473, 9000, 65499, 65500, 65507)

# Answers with what it got, backwards; "who" with whom it heard, "connect" by connecting to him.
LISTENER = """
import socket
def serve():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    print("listening on %s:%d" % sock.getsockname(), flush=True)
    while True:
        data, peer = sock.recvfrom(70000)
        if data == b"end":
            return
        if data == b"connect":
            refused_by(sock, peer)
        else:
            sock.sendto(("%s:%d" % peer).encode() if data == b"who" else data[::-1], peer)

def refused_by(sock, peer):
    sock.sendto(b"close", peer)
    sock.connect(peer)
    try:
        while True:  # until the peer has closed its port
            sock.send(b"anybody?")
            sock.settimeout(0.1)
            try:
                sock.recv(100)
            except TimeoutError:
                pass
    except ConnectionRefusedError as error:
        print("refused", error.errno, flush=True)

serve()
print("ended", flush=True)
input()
"""

CONNECTOR = """
import os, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 0))
sock.settimeout(20)
listener = ("{host}", {port})
for size in {sizes}:
    data = os.urandom(size)
    sock.sendto(data, listener)
    assert sock.recvfrom(70000) == (data[::-1], listener), size
sock.connect(listener)
sock.send(b"who")
assert sock.recv(100).decode() == "%s:%d" % sock.getsockname()
print("good %s:%d" % sock.getsockname(), flush=True)
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited, and a broker outside."""
    world = World(lab, tmp_path)
    world.broker(world.public)
    return world


def listening(world: World, host: Host, **settings: str) -> tuple[Program, Address]:
    """A patched listener, and its proxy address."""
    world.use_broker(host, world.public.address, **settings)
    program = world.script(host, LISTENER)
    name, _, port = program.wait_line(ADDRESS).group(1).rpartition(":")
    assert name == world.public.address
    return program, (name, int(port))


@pytest.fixture
def plain(world: World) -> Iterator[socket.socket]:
    """An ordinary socket in public."""
    with world.other.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((world.other.address, 0))
        sock.settimeout(HANG_S)
        yield sock


def answers(sock: socket.socket, proxy: Address, data: bytes) -> None:
    """Assert that the listener at ``proxy`` answers, from there."""
    sock.sendto(data, proxy)
    assert sock.recvfrom(70000) == (data[::-1], proxy)


def seen_by(sock: socket.socket, proxy: Address) -> str:
    """Whom the listener sees."""
    sock.sendto(b"who", proxy)
    return sock.recv(100).decode()


@pytest.mark.parametrize("name", ["other", "b", "a2", "public"])
def test_ordinary_peers_speak_with_a_listener_behind_a_nat(world: World, name: str) -> None:
    _, proxy = listening(world, world.a)
    peer: Host = getattr(world, name)
    with peer.socket(socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        sock.settimeout(HANG_S)
        for size in SIZES:
            answers(sock, proxy, os.urandom(size))
        host, _, port = seen_by(sock, proxy).rpartition(":")
        assert host == peer.observed_address
        if name == "other":
            assert int(port) == sock.getsockname()[1]


@pytest.mark.parametrize("name", ["b", "a2", "other", "a"])
def test_two_programs_of_ours_know_each_other_by_their_proxy_addresses(
    world: World, name: str
) -> None:
    _, proxy = listening(world, world.a)
    connector: Host = getattr(world, name)
    world.use_broker(connector, world.public.address, GCB_REGISTER="always")
    script = CONNECTOR.format(host=proxy[0], port=proxy[1], sizes=SIZES)
    good = world.script(connector, script).wait_line(r"good (\S+):")
    assert good.group(1) == world.public.address


def test_a_listener_that_was_silent_for_longer_than_its_nat_remembers_is_reached(
    world: World, plain: socket.socket
) -> None:
    for name in ("udp_timeout", "udp_timeout_stream"):
        path = f"/proc/sys/net/netfilter/nf_conntrack_{name}"
        world.gateway_a.run(["sh", "-c", f"echo 2 > {path}"], privileged=True)
    _, proxy = listening(world, world.a, GCB_LIFETIME="3")
    answers(plain, proxy, b"before")
    with world.a2.socket(socket.SOCK_DGRAM) as ordinary:
        ordinary.sendto(b"I was here", plain.getsockname())
        mapped = plain.recvfrom(100)[1]
        time.sleep(6)
        plain.sendto(b"still there?", mapped)
        answers(plain, proxy, b"after")
        ordinary.settimeout(0.5)
        with pytest.raises(TimeoutError):
            ordinary.recv(100)  # or the NAT had not forgotten, and nothing was shown


def test_a_refusal_comes_to_a_socket_that_is_connected_through_the_relay(
    world: World, plain: socket.socket
) -> None:
    world.other.open("1-65535")
    listener, proxy = listening(world, world.a)
    plain.sendto(b"connect", proxy)
    assert plain.recvfrom(100) == (b"close", proxy)
    plain.close()
    assert listener.wait_line(r"refused (\d+)").group(1) == "111"


def test_an_ordinary_peer_is_refused_when_the_listener_is_gone(
    world: World, plain: socket.socket
) -> None:
    listener, proxy = listening(world, world.a)
    plain.connect(proxy)
    plain.send(b"end")
    listener.wait_line("ended")
    with pytest.raises(ConnectionRefusedError):
        while True:
            plain.send(b"anybody?")
            time.sleep(0.05)


def test_a_killed_broker_comes_back_and_no_program_notices(
    lab: Lab, tmp_path: Path, plain: socket.socket, world: World
) -> None:
    key = str(tmp_path / "second.key")
    first = world.broker(world.other, key_file=key)
    world.use_broker(world.a, world.other.address, GCB_LIFETIME="3")
    program = world.script(world.a, LISTENER)
    name, _, port = program.wait_line(ADDRESS).group(1).rpartition(":")
    proxy = (name, int(port))
    answers(plain, proxy, b"before")
    first.signal(signal.SIGKILL)
    first.wait()
    world.broker(world.other, key_file=key)
    plain.settimeout(0.2)
    until = time.monotonic() + HANG_S
    while time.monotonic() < until:
        try:
            answers(plain, proxy, b"after")
            return
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise AssertionError("the listener did not come back at its address")


def test_the_brokers_loopback_is_out_of_reach(world: World) -> None:
    spy = world.public.popen(
        ["python3", "-c", "import socket\ns = socket.socket(2, 2); s.bind(('', 5555))\n"
         "print('ready', flush=True)\nwhile True: print(s.recv(100).decode(), flush=True)"]
    )
    spy.wait_line("ready")
    world.use_broker(world.a, world.public.address)
    world.script(
        world.a,
        f"""
        import socket
        from gcbpatch.wire.datagrams import whole
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        for host in ("127.0.0.1", "127.1.2.3", "0.0.0.0", "{world.public.address}"):
            sock._sock._state.heard(whole((host, 5555)))  # as if it had been heard by the relay
            sock.sendto(b"to " + host.encode(), (host, 5555))
        print("sent", flush=True)
        input()
        """,
    ).wait_line("sent")
    assert spy.wait_line(r"^to (\S+)$").group(1) == world.public.address

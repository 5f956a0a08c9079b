"""TLS over every path between real networks: the path is no business of the programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certificates import make_authority
from tests.netns.lab import Lab, Program
from tests.netns.pairs import ADDRESS, World

SERVER = """
import socket, ssl, threading
server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_context.load_cert_chain("{directory}/server.both.pem")
def serve(listener):
    listener = server_context.wrap_socket(listener, server_side=True)
    while True:
        sock, peer = listener.accept()
        sock.sendall(sock.recv(100).upper() * 20000)
        print("served", sock.getpeername() == peer, sock.version()[:4], flush=True)
        sock.close()
listener = socket.create_server(("", 0))
address = listener.getsockname()
print("listening on {{}}:{{}}".format(*address), flush=True)
serving = threading.Thread(target=serve, args=(listener,), daemon=True)
serving.start()
"""

CLIENT = """
import socket, ssl
client_context = ssl.create_default_context(cafile="{directory}/ca.pem")
for before in True, False:
    sock = socket.socket()
    if before:
        sock = client_context.wrap_socket(sock, server_hostname="server.test")
    sock.settimeout(20)
    sock.connect(address)
    if not before:
        sock = client_context.wrap_socket(sock, server_hostname="server.test")
    names = [value for _, value in sock.getpeercert()["subjectAltName"]]
    assert sock.getpeername() == address
    sock.sendall(b"hello")
    got = b"".join(iter(lambda: sock.recv(65536), b""))
    print("got", got == b"HELLO" * 20000, names, flush=True)
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """A certificate for server.test."""
    make_authority(tmp_path).of("server", "DNS:server.test")
    return World(lab, tmp_path, mapping="random")


def serve(world: World, listener: str) -> tuple[Program, str]:
    """Start the server; return it and its address."""
    server = world.script(getattr(world, listener), text_of(world, SERVER) + "serving.join()\n")
    return server, server.wait_line(ADDRESS).group(1)


def text_of(world: World, text: str) -> str:
    return text.format(directory=world.tmp)


def exchange(world: World, connector: str, server: Program, address: str) -> str:
    """Talk to the server from a program of its own; return the path."""
    host, port = address.split(":")
    at = getattr(world, connector)
    client = world.script(at, f'address = "{host}", {port}\n{text_of(world, CLIENT)}')
    for _ in range(2):
        assert client.wait_line("^got .*").group(0) == "got True ['server.test']"
        assert server.wait_line("^served .*").group(0) == "served True TLSv"
    return world.path_to(at, address)


def exchange_with_itself(world: World, at: str) -> tuple[str, str]:
    """A program talks to a listener of its own; return the listener's address and the path."""
    program = world.script(getattr(world, at), text_of(world, SERVER + CLIENT))
    address = program.wait_line(ADDRESS).group(1)
    for _ in range(2):
        assert program.wait_line("^got .*").group(0) == "got True ['server.test']"
    return address, world.path_to(getattr(world, at), address)


def with_broker(world: World) -> None:
    """A broker outside, and everybody patched."""
    world.broker(world.public)
    for one in (world.a, world.a2, world.b, world.other):
        world.use_broker(one, world.public.address, GCB_REGISTER="always")


@pytest.mark.parametrize(
    ("connector", "listener", "path"),
    [
        ("b", "a", "relayed"),
        ("a", "other", "direct"),
        ("other", "a", "reverse"),
        ("a2", "a", "local"),
    ],
)
def test_tls_is_the_same_over_every_path(
    world: World, connector: str, listener: str, path: str
) -> None:
    with_broker(world)
    assert exchange(world, connector, *serve(world, listener)) == path


def test_tls_is_the_same_within_one_program(world: World) -> None:
    with_broker(world)
    assert exchange_with_itself(world, "a")[1] == "own"


def test_tls_is_the_same_over_a_mapping_of_the_gateway(world: World) -> None:
    for gateway in (world.gateway_a, world.gateway_b):
        world.gateway_daemon(gateway)
    for one in (world.a, world.a2, world.b):
        world.use_gateway(one)
    server, address = serve(world, "a")
    assert address.startswith(f"{world.gateway_a.address}:")
    paths = {one: exchange(world, one, server, address) for one in ("b", "other", "a2")}
    assert paths == {"b": "kernel", "other": "kernel", "a2": "neighbour"}
    address, path = exchange_with_itself(world, "a")
    assert (address.split(":")[0], path) == (world.gateway_a.address, "own")

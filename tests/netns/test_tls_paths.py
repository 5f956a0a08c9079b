"""TLS over every path between real networks: the path is no business of the programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certificates import make_authority
from tests.netns.lab import Lab
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
    """A broker outside, everybody patched, and a certificate for server.test."""
    world = World(lab, tmp_path, mapping="random")
    world.broker(world.public)
    for one in (world.a, world.a2, world.b, world.other):
        world.use_broker(one, world.public.address, GCB_REGISTER="always")
    make_authority(tmp_path).of("server", "DNS:server.test")
    return world


@pytest.mark.parametrize(
    ("connector", "listener", "path"),
    [
        ("b", "a", "relayed"),
        ("a", "other", "direct"),
        ("other", "a", "reverse"),
        ("a2", "a", "local"),
        ("a", "a", "own"),
    ],
)
def test_tls_is_the_same_over_every_path(
    world: World, connector: str, listener: str, path: str
) -> None:
    client_text, server_text = (text.format(directory=world.tmp) for text in (CLIENT, SERVER))
    at, client_host = getattr(world, listener), getattr(world, connector)
    own = path == "own"
    server = world.script(at, server_text + (client_text if own else "serving.join()\n"))
    address = server.wait_line(ADDRESS).group(1)
    host, port = address.split(":")
    client = server
    if not own:
        client = world.script(client_host, f'address = "{host}", {port}\n{client_text}')
    for _ in range(2):
        assert client.wait_line("^got .*").group(0) == "got True ['server.test']"
    if not own:
        for _ in range(2):
            assert server.wait_line("^served .*").group(0) == "served True TLSv"
    assert world.path_to(client_host, address) == path

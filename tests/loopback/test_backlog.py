"""A full backlog holds brokered connectors off as the kernel's would, and dual-stack listeners."""

from __future__ import annotations

import socket
from pathlib import Path

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .conversation import Program
from .test_patched import HANG_LIMIT

CONNECTOR = """
    import select, socket
    public = input().rsplit(":", 1)
    public = public[0], int(public[1])
    def connect(limit):
        try:
            return socket.create_connection(public, limit)
        except TimeoutError:
            return None
"""


def test_no_more_connections_than_the_backlog_holds_and_no_error_for_who_waits(
    broker: Broker, tmp_path: Path
) -> None:
    routes = tmp_path / "routes"
    routes.write_text("127.0.0.0/8 gcb\n")
    listening = """
    import socket, sys
    listener = socket.create_server(("", 0), backlog=1)
    print("%s:%s" % listener.getsockname(), flush=True)
    for number in range(3):
        sys.stdin.readline()
        sock = listener.accept()[0]
        sock.sendall(b"%d" % number)
    """
    connecting = CONNECTOR + """
    held = [connect(60.0), connect(60.0)]
    print("third:", connect(0.5), flush=True)
    waiting = socket.socket()
    waiting.setblocking(False)
    waiting.connect_ex(public)
    print("room?", flush=True)
    select.select([], [waiting], [])
    waiting.settimeout(60.0)
    held.append(waiting)
    print(sorted(sock.recv(1) for sock in held), flush=True)
    """
    with (
        Program(listening, broker, tmp_path / "log") as listener,
        Program(connecting, broker, tmp_path / "log2", GCB_ROUTES=str(routes)) as connector,
    ):
        connector.say(format_address(listener.name()))
        assert connector.line() == "third: None"
        assert connector.line() == "room?"
        for _ in range(3):
            listener.say()
        assert connector.line() == "[b'0', b'1', b'2']"


def test_listen_with_another_backlog_makes_room(broker: Broker, tmp_path: Path) -> None:
    routes = tmp_path / "routes"
    routes.write_text("127.0.0.0/8 gcb\n")
    listening = """
    import socket, sys
    listener = socket.create_server(("", 0), backlog=1)
    print("%s:%s" % listener.getsockname(), flush=True)
    sys.stdin.readline()
    listener.listen(5)
    print("done", flush=True)
    sys.stdin.readline()
    """
    connecting = CONNECTOR + """
    held = [connect(60.0), connect(60.0)]
    print(connect(0.5), flush=True)
    input()
    held += [connect(60.0) for _ in range(4)]
    print(len(held), flush=True)
    """
    with (
        Program(listening, broker, tmp_path / "log") as listener,
        Program(connecting, broker, tmp_path / "log2", GCB_ROUTES=str(routes)) as connector,
    ):
        connector.say(format_address(listener.name()))
        assert connector.line() == "None"
        listener.say()
        assert listener.line() == "done"
        connector.say()
        assert connector.line() == "6"
        listener.say()


def test_a_dual_stack_listener_has_its_ipv4_name_mapped(broker: Broker, tmp_path: Path) -> None:
    text = """
    import socket
    listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    name = listener.getsockname()
    assert len(name) == 4 and name[0].startswith("::ffff:"), name
    print("%s:%s" % (name[0][7:], name[1]), flush=True)
    sock, peer = listener.accept()
    assert len(peer) == 4 and sock.getpeername() == peer, peer
    assert sock.getsockname() == name
    assert sock.family == socket.AF_INET6
    sock.sendall(b"%s %d" % (peer[0].encode(), peer[1]))
    sock.close()
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        assert public[0] == broker.address[0]
        with socket.create_connection(public, HANG_LIMIT) as sock:
            host, port = sock.getsockname()
            assert sock.recv(100).decode() == f"::ffff:{host} {port}"


def test_ordinary_ipv6_and_ipv4_connections_reach_a_dual_stack_listener_too(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
    import socket
    listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    print("127.0.0.1:%d" % listener.getsockname()[1], flush=True)
    for _ in range(2):
        sock, peer = listener.accept()
        sock.sendall(peer[0].encode())
        sock.close()
    """
    with Program(text, broker, tmp_path / "log", GCB_IDENTITY="local") as program:
        _, port = program.name()
        for host, seen in (("::1", b"::1"), ("127.0.0.1", b"::ffff:127.0.0.1")):
            with socket.create_connection((host, port), HANG_LIMIT) as sock:
                assert sock.recv(100) == seen


def test_an_ipv6_only_listener_is_the_kernels(broker: Broker, tmp_path: Path) -> None:
    text = """
    import socket
    listener = socket.create_server(("", 0), family=socket.AF_INET6)
    print(*listener.getsockname()[:1], flush=True)
    """
    with Program(text, broker, tmp_path / "log") as program:
        assert program.line() == "::"

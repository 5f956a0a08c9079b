"""A broker on ::1 and one on both families: listeners, connectors and ordinary peers by IPv6."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import ANY, V4, V6, format_address
from gcbpatch.agent import sockdiag
from gcbpatch.errors import Status
from gcbpatch.sockets.table import cookie_of
from gcbpatch.wire.messages import Endpoint, PathKind

from .broker_client import HANG_S, Broker, Client
from .broker_ground import LISTENER, OTHER, greeted, refusal
from .conversation import Program
from .test_patched import run

HERE = "::1"
GCB = {"GCB_ROUTES_TEXT": "::1/128 gcb\n127.0.0.0/8 gcb"}

SERVER = """
    import socket
    listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6={dual})
    print(*listener.getsockname(), flush=True)
    while True:
        sock, peer = listener.accept()
        assert sock.getpeername() == peer
        print(*sock.getsockname(), flush=True)
        print(*peer, flush=True)
        sock.sendall(sock.recv(100).upper())
        sock.close()
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One that knows IPv6 alone."""
    broker = Broker(tmp_path_factory.mktemp("v6"), "--log", "INFO", host=HERE)
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One with addresses of both families, IPv4 first."""
    broker = Broker(tmp_path_factory.mktemp("both"), "--address", HERE, "--log", "INFO")
    yield broker
    broker.kill()


def words(program: Program) -> tuple[str | int, ...]:
    """An address that a program prints."""
    return tuple(int(word) if word.isdigit() else word for word in program.line().split())


def ask(address: tuple[str | int, ...], word: bytes) -> tuple[str, int]:
    """Be an ordinary peer; return its own address."""
    with socket.create_connection(address[:2], timeout=HANG_S) as sock:
        sock.sendall(word)
        assert sock.recv(100) == word.upper()
        assert sock.getpeername()[:2] == address[:2]
        return sock.getsockname()[:2]


def test_a_broker_says_every_address_that_it_serves_at(broker: Broker, both: Broker) -> None:
    assert broker.ready_line == f"brokerd ready on [::1]:{broker.address[1]}"
    port = both.address[1]
    assert both.ready_line == f"brokerd ready on {both.host}:{port} [::1]:{port}"


@pytest.mark.parametrize("dual", [False, True])
def test_an_ipv6_listener_has_a_name_of_four_words_and_ordinary_clients(
    broker: Broker, tmp_path: Path, dual: bool
) -> None:
    with Program(SERVER.format(dual=dual), broker, tmp_path / "log") as server:
        name = words(server)
        assert (name[0], *name[2:]) == (HERE, 0, 0)
        for word in (b"one", b"two"):
            mine = ask(name, word)
            assert words(server) == name
            assert words(server) == (*mine, 0, 0)
        server.kill()
    assert "by gcb" in (tmp_path / "log").read_text()


def test_local_clients_that_come_by_themselves_are_no_nudges(
    broker: Broker, tmp_path: Path
) -> None:
    server = SERVER.replace("print(*listener.getsockname(),", "print(*listener._sock.__class__."
                            "__mro__[2].getsockname(listener._sock), *listener.getsockname()[:2],")
    with Program(server.format(dual=False), broker, tmp_path / "log") as program:
        plain = words(program)
        assert plain[0] == "::" and plain[4] == HERE
        for word, port in ((b"itself", plain[1]), (b"brokered", plain[5]), (b"again", plain[1])):
            mine = ask((HERE, port), word)
            words(program)
            assert words(program) == (*mine, 0, 0)
        program.kill()


def test_a_patched_client_connects_through_a_broker_by_ipv6(
    broker: Broker, tmp_path: Path
) -> None:
    client = """
        import socket
        host, port = input().split()
        for address in (host, int(port)), (host, int(port), 0, 0):
            sock = socket.socket(socket.AF_INET6)
            sock.connect(address)
            assert sock.getpeername() == (host, int(port), 0, 0), sock.getpeername()
            assert len(sock.getsockname()) == 4
            sock.sendall(b"hello")
            print(sock.recv(100).decode(), sock.getsockname()[1], flush=True)
    """
    with (
        Program(SERVER.format(dual=False), broker, tmp_path / "listener") as server,
        Program(client, broker, tmp_path / "connector", **GCB) as connector,
    ):
        name = words(server)
        connector.say(f"{name[0]} {name[1]}")
        for _ in range(2):
            assert words(server) == name
            host, port, *rest = words(server)
            assert (host, *rest) == (HERE, 0, 0)
            assert connector.line().split() == ["HELLO", str(port)]
        server.kill()
    assert "connected to [::1]" in (tmp_path / "connector").read_text()


# --- one with both families, seen from the wire


def clients(both: Broker) -> tuple[Client, Client]:
    """One that speaks with it by IPv4, and one by IPv6."""
    by_v6 = Client((HERE, both.address[1]))
    by_v6.hello()
    return greeted(both), by_v6


def test_hello_tells_of_the_hosts_of_both_families(both: Broker, broker: Broker) -> None:
    for client, hosts in zip(clients(both), [(both.host, HERE), (HERE, both.host)], strict=True):
        hello = client.hello()
        assert (hello.public, hello.other) == hosts
        client.close()
    with greeted(broker) as client:
        assert (client.hello().public, client.hello().other) == (HERE, "")


def test_a_listener_has_a_proxy_address_of_the_family_that_it_can_show(
    both: Broker, broker: Broker
) -> None:
    for client in clients(both):
        with client:
            for family, host in ((V4, both.host), (V6, HERE), (ANY, both.host)):
                given = client.register(LISTENER, family=family)
                assert given.proxy.host == host
                again = client.register(OTHER, family=family, proxy=given.proxy, claim=given.claim)
                assert again.proxy == given.proxy
                client.unregister(OTHER)
            right = client.register(LISTENER, family=V6)
            claimed = {"proxy": right.proxy, "claim": right.claim}
            assert client.register(OTHER, family=V4, **claimed).proxy.host == both.host
            for listener in (LISTENER, OTHER):
                client.unregister(listener)
    with greeted(broker) as client:
        assert refusal(client.register, family=V4) is Status.CANNOT_PROVIDE_EXTERNAL
        assert client.register(family=ANY).proxy.host == HERE


@pytest.mark.parametrize("workers", ["1", "2"])
def test_both_families_may_have_the_same_proxy_port(tmp_path: Path, workers: str) -> None:
    both = Broker(tmp_path, "--address", HERE, "--workers", workers)
    by_v4, by_v6 = clients(both)
    with by_v4, by_v6:
        other = by_v6.register(OTHER, family=V6)
        # That host is this broker's alone, so its port is free.
        one = by_v4.register(LISTENER, family=V4, wished=other.proxy.port)
        assert one.proxy == Endpoint(both.host, other.proxy.port)
        for client, proxy in ((by_v4, one.proxy), (by_v6, other.proxy)):
            with socket.create_connection(proxy.address, HANG_S) as sock:
                call = client.next_call()
                assert call.peer == Endpoint.of(sock.getsockname()[:2])
                with client.join(call) as half:
                    half.sendall(b"hello")
                    assert sock.recv(100) == b"hello"
    both.kill()


@pytest.mark.parametrize("listening", [V4, V6, ANY])
def test_a_connector_of_the_other_family_is_relayed_and_seen_at_the_brokers_own_host(
    both: Broker, listening: int
) -> None:
    by_v4, by_v6 = clients(both)
    listener, connector = (by_v6, by_v4) if listening == V6 else (by_v4, by_v6)
    near = (Endpoint("127.0.0.1", 4000),), (Endpoint(HERE, 4000),)
    with listener, connector:
        proxy = listener.register(LISTENER, family=listening, local=near[0] + near[1]).proxy
        meeting = connector.connect(proxy, local=near[0] + near[1])
        assert [path.kind for path in meeting.paths] == [PathKind.RELAYED]
        call = listener.next_call()
        # Who can show both is told the truth.
        seen = connector.sock.getsockname()[0] if listening == ANY else proxy.host
        assert call.peer == Endpoint(seen, connector.sock.getsockname()[1])
        halves = connector.start_join(meeting), listener.join(call)
        connector.finish_join(halves[0]).sendall(b"hello")
        assert halves[1].recv(100) == b"hello"
        for half in halves:
            half.close()


# --- programs that listen by both, or by one that a broker has not


def test_a_server_for_both_families_gets_a_name_of_each_on_one_port(
    both: Broker, tmp_path: Path
) -> None:
    text = """
        import asyncio, sys
        async def serve():
            async def echo(reader, writer):
                writer.write((await reader.read(100)).upper())
                print(*writer.get_extra_info("sockname"), flush=True)
                print(*writer.get_extra_info("peername"), flush=True)
                writer.close()
            server = await asyncio.start_server(echo, None, int(sys.stdin.readline()))
            for sock in sorted(server.sockets, key=lambda sock: sock.family):
                print(*sock.getsockname(), flush=True)
            await server.serve_forever()
        asyncio.run(serve())
    """
    with socket.create_server(("", 0)) as sock:
        port = sock.getsockname()[1]
    # A broker on loopback does not give the wished port, for it would be this host's own.
    with Program(text, both, tmp_path / "log") as server:
        server.say(str(port))
        names = words(server), words(server)
        assert [(name[0], len(name)) for name in names] == [(both.host, 2), (HERE, 4)]
        for name in names:
            mine = ask(name, b"hello")
            assert words(server) == name
            assert words(server)[:2] == mine
        server.kill()


def test_a_dual_stack_listener_shows_peers_of_each_family_in_the_form_of_its_own(
    broker: Broker, both: Broker, tmp_path: Path
) -> None:
    with Program(SERVER.format(dual=True), both, tmp_path / "log") as server:
        name = words(server)
        assert name[0] == f"::ffff:{both.host}"
        mine = ask((both.host, name[1]), b"hello")
        assert words(server) == name
        assert words(server) == (f"::ffff:{mine[0]}", mine[1], 0, 0)
        server.kill()
    with Program(SERVER.format(dual=True), broker, tmp_path / "log 6") as server:
        name = words(server)
        mine = ask(name, b"hello")
        assert words(server) == name and words(server) == (*mine, 0, 0)
        server.kill()


def test_a_listener_of_a_family_that_no_broker_has_is_the_kernels_without_a_word(
    broker: Broker, tmp_path: Path
) -> None:
    def listens(address: Broker, family: str, host: str, here: str) -> None:
        done = run(
            f"""
            import gcbpatch; gcbpatch.patch_all()
            import logging, socket
            logging.basicConfig()
            listener = socket.create_server(("", 0), family=socket.{family})
            name = listener.getsockname()
            assert name[0] == "{host}", name
            client = socket.create_connection(("{here}", name[1]))
            sock, peer = listener.accept()
            assert peer[:2] == client.getsockname()[:2]
            """,
            GCB_BROKER=format_address(address.address),
        )
        assert (done.returncode, done.stderr) == (0, "")

    listens(broker, "AF_INET", "0.0.0.0", "127.0.0.1")
    plain = Broker(tmp_path)
    listens(plain, "AF_INET6", "::", HERE)
    plain.kill()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_the_kernel_tells_of_the_end_of_a_socket(
    family: socket.AddressFamily, kind: socket.SocketKind
) -> None:
    stream = kind == socket.SOCK_STREAM
    with sockdiag.open_events() if stream else sockdiag.open_datagram_events() as events:
        sock = socket.socket(family, kind)
        sock.bind(("", 0))
        if stream:
            sock.listen()
        else:
            sockdiag.only_ports(events, [sock.getsockname()[1]])
        cookie = cookie_of(sock)
        sock.close()
        found: set[int] = set()
        while cookie not in found:
            assert select.select([events], [], [], HANG_S)[0], "it was not told"
            found |= sockdiag.read_ended(events)[0]

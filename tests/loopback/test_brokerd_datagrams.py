"""The relay of a real brokerd: datagrams, whose they are, and what it does not do."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire import datagrams
from gcbpatch.wire.codec import HEADER_SIZE, Kind, build, parse
from gcbpatch.wire.messages import TCP, UDP, Command, Endpoint, Hello, RegisterReply

from .broker_client import HANG_S, Broker, Client
from .broker_ground import ALICE, BOB, greeted, refusal, udp_to, wait_until
from .flow_client import Port, listening, peer

SIZES = [0, 1, 100, 1472, 1473, 9000, 65499, 65500, 65507]


@pytest.fixture
def alice(broker: Broker) -> Iterator[Client]:
    with greeted(broker) as client:
        yield client


@pytest.fixture
def bob(broker: Broker) -> Iterator[Client]:
    with greeted(broker) as client:
        yield client


def says(port: Port, other: socket.socket, proxy: Endpoint, payload: bytes = b"hello") -> None:
    """Assert that a peer's datagram comes to a port."""
    other.sendto(payload, proxy.address)
    assert port.receive() == (payload, other.getsockname())


def until_refused(sock: socket.socket, proxy: Address) -> None:
    """Send to a proxy address until the kernel says that it is closed."""
    sock.connect(proxy)
    with pytest.raises(ConnectionRefusedError):
        while True:
            sock.send(b"anybody?")
            time.sleep(0.01)


@pytest.mark.parametrize("size", SIZES)
def test_a_peer_is_heard_and_answered_with_every_size(alice: Client, size: int) -> None:
    port, reply = listening(alice)
    data = os.urandom(size)
    with port, peer() as other:
        says(port, other, reply.proxy, data)
        port.send(data[::-1], other.getsockname())
        assert other.recvfrom(65536) == (data[::-1], reply.proxy.address)


def test_a_listener_may_send_first_and_again_after_others(alice: Client) -> None:
    port, reply = listening(alice)
    with port, peer() as one, peer() as two:
        for other in (one, two, one):
            port.send(b"first", other.getsockname())
            assert other.recvfrom(100) == (b"first", reply.proxy.address)


def test_listeners_of_one_broker_reach_each_other_and_themselves(
    alice: Client, bob: Client
) -> None:
    one, first = listening(alice)
    two, second = listening(bob)
    data = os.urandom(65507)
    with one, two:
        for payload in (b"", b"hello", data):
            one.send(payload, second.proxy.address)
            assert two.receive() == (payload, first.proxy.address)
            two.send(payload, two_proxy := second.proxy.address)
            assert two.receive() == (payload, two_proxy)


def test_a_flow_goes_to_where_it_was_asked_for_last(alice: Client) -> None:
    old, reply = listening(alice)
    with old, Port(old.relay, alice.client, old.listener) as new, peer() as other:
        says(old, other, reply.proxy)
        new.flow()
        says(new, other, reply.proxy)
        old.send(b"from nowhere", other.getsockname())
        new.send(b"from here", other.getsockname())
        assert other.recv(100) == b"from here"
        old.flow()
        says(old, other, reply.proxy)


def test_one_address_is_one_listeners(alice: Client) -> None:
    port, first = listening(alice)
    with port, peer() as other:
        port.listener = os.urandom(16)
        second = alice.register(port.listener, protocol=UDP)
        port.flow()
        other.sendto(b"to nobody", first.proxy.address)
        says(port, other, second.proxy)
        port.send(b"as the second", other.getsockname())
        assert other.recvfrom(100) == (b"as the second", second.proxy.address)


# --- refusals


def test_a_refusal_is_told_and_nothing_is_lost_by_it(alice: Client) -> None:
    port, _ = listening(alice)
    with port, peer() as gone, peer() as other:
        nobody = gone.getsockname()
        gone.close()
        for number in range(5):
            port.send(b"anybody?", nobody)
            with pytest.raises(ConnectionRefusedError) as refused:
                port.receive()
            assert refused.value.args[0] == nobody
            port.send(b"%d" % number, other.getsockname())
            assert other.recv(100) == b"%d" % number
        for _ in range(100):
            port.send(b"anybody?", nobody)
            port.send(b"more", other.getsockname())
        for _ in range(100):
            assert other.recv(100) == b"more"


def test_what_is_idle_after_a_refusal_does_not_keep_the_broker_busy(
    broker: Broker, alice: Client
) -> None:
    port, _ = listening(alice)
    with port, peer() as gone:
        nobody = gone.getsockname()
        gone.close()
        for _ in range(100):
            port.send(b"anybody?", nobody)
        with pytest.raises(ConnectionRefusedError):
            port.receive()
        before = cpu_seconds(broker)
        time.sleep(1.0)
        assert cpu_seconds(broker) - before < 0.5


def cpu_seconds(broker: Broker) -> float:
    """Seconds of the processor that a broker has used."""
    fields = Path(f"/proc/{broker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- whose datagrams they are


def test_flow_needs_a_cookie_for_the_address_that_it_comes_from(alice: Client) -> None:
    port, reply = listening(alice)
    with port, Port(port.relay, alice.client, port.listener) as forger, peer() as other:
        for cookie in (bytes(8), port.cookie, alice.cookie):
            forger.cookie = cookie
            assert refusal(forger.ask, Command.FLOW, forger.flow_request()) is Status.STALE_EPOCH
        says(port, other, reply.proxy)


@pytest.mark.parametrize("key", [None, BOB], ids=["no token", "another token"])
def test_flow_needs_the_token_of_the_listener(guarded: Broker, key: object) -> None:
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB) as bob, peer() as other:
        port, reply = listening(alice)
        forger = Port(port.relay, alice.client, port.listener, BOB)
        with port, forger:
            forger.hello()
            forger.key = key  # type: ignore[assignment]
            status = refusal(forger.ask, Command.FLOW, forger.flow_request())
            assert status is Status.NOT_AUTHORIZED
            says(port, other, reply.proxy)
        bobs, reply = listening(bob)
        with bobs:
            says(bobs, other, reply.proxy)


def test_flow_for_what_is_not_registered_is_unknown(alice: Client) -> None:
    port, _ = listening(alice)
    with port:
        tcp = os.urandom(16)
        alice.register(tcp, protocol=TCP)
        for listener in (os.urandom(16), tcp):
            port.listener = listener
            assert refusal(port.flow) is Status.UNKNOWN


def test_what_comes_from_elsewhere_is_nobodys(alice: Client) -> None:
    port, reply = listening(alice)
    with port, peer() as stranger, peer() as other:
        stranger.sendto(datagrams.whole(other.getsockname()) + b"forged", port.relay)
        port.send(b"true", other.getsockname())
        assert other.recvfrom(100) == (b"true", reply.proxy.address)


def test_a_proxy_address_cannot_pass_for_a_program(alice: Client) -> None:
    port, reply = listening(alice)
    with port:
        hello = port.request(Command.HELLO, Hello(bytes(16)))
        for host in (port.relay[0], "127.0.0.1"):
            port.send(hello, (host, port.relay[1]))
            port.send(hello[8:], (host, port.relay[1]))
        port.send(b"to myself", reply.proxy.address)
        assert port.receive() == (b"to myself", reply.proxy.address)


# --- commands at the relay's port


def test_answers_to_what_comes_with_a_magic_are_not_larger(guarded: Broker) -> None:
    with greeted(guarded, ALICE) as alice:
        port, _ = listening(alice)
        with port:
            for data in (
                port.request(Command.HELLO, Hello(bytes(16))),
                port.request(Command.HELLO, Hello(bytes(16), b"")),
                port.magic + build(Kind.REQUEST, Command.FLOW, 5),
                port.magic + build(Kind.REQUEST, Command.REGISTER, 5),
                port.magic + build(Kind.REQUEST, 99, 5),
            ):
                port.raw(data)
                answer = port.sock.recv(2048)
                assert answer[:8] == port.magic
                assert HEADER_SIZE <= len(answer) - 8 == len(answer[8:]) <= len(data) - 8


def test_other_commands_with_a_magic_and_flow_without_one_are_not_taken(alice: Client) -> None:
    port, _ = listening(alice)
    with port:
        register = alice.register_request(protocol=UDP)
        assert refusal(port.ask, Command.REGISTER, register) is Status.UNSUPPORTED
        port.hello()
        port.raw(port.request(Command.FLOW, port.flow_request())[8:])
        assert parse(port.sock.recv(2048)).status == Status.UNSUPPORTED


GARBAGE = [
    b"",
    b"\xd4",
    b"\xff" * 30,
    b"\x7f" * 8,
    b"\x7f" * 12,
    b"\x7f" * 8 + b"GB",
    datagrams.whole(("192.0.2.7", 9))[:7],
    datagrams.whole(("192.0.2.7", 9))[:2] + bytes(6) + b"port 0",
    b"\xd4\x01" + datagrams.whole(("127.0.0.1", 9))[2:] + b"part of a whole",
    datagrams.parts(("127.0.0.1", 9), 7)[0][:11],
    datagrams.parts(("127.0.0.1", 9), 8)[0] + bytes(40000),
    datagrams.parts(("127.0.0.1", 9), 8)[1] + bytes(40000),
    datagrams.refused(("127.0.0.1", 9)),
    datagrams.whole(("2001:db8::7", 9)) + b"by another family",
    datagrams.whole(("255.255.255.255", 9)) + b"to all",
    datagrams.whole(("224.0.0.1", 9)) + b"to many",
    datagrams.whole(("0.0.0.0", 9)) + b"to nobody",
    datagrams.whole(("240.0.0.1", 9)) + b"to nowhere",
    datagrams.whole(("0.1.2.3", 9)) + b"to nowhere",
]


def test_garbage_from_programs_and_strangers_is_dropped(broker: Broker, alice: Client) -> None:
    port, reply = listening(alice)
    with port, peer() as stranger, peer() as other:
        for data in GARBAGE:
            stranger.sendto(data, port.relay)
            port.raw(data)
        says(port, other, reply.proxy)
        port.send(b"answer", other.getsockname())
        assert other.recv(100) == b"answer"
    assert "Traceback" not in broker.log()


# --- life and limits


def test_a_flow_that_nobody_renews_ends_and_its_listener_after_it(alice: Client) -> None:
    port, reply = listening(alice, lifetime=1)
    with port, peer() as other, peer() as last:
        assert port.flow().lifetime == 1
        port.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            while True:
                assert alice.refresh(port.listener).lost == []
                says(port, other, reply.proxy)
        port.sock.settimeout(HANG_S)
        alice.register(port.listener, protocol=UDP, lifetime=1)
        port.flow()
        says(port, other, reply.proxy, b"again")
        until_refused(last, reply.proxy.address)
        assert refusal(port.flow) is Status.UNKNOWN


def test_unregister_closes_the_proxy_address_at_once(alice: Client) -> None:
    port, reply = listening(alice)
    with port, peer() as other:
        alice.unregister(port.listener)
        other.connect(reply.proxy.address)
        other.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            other.recv(100)
        assert refusal(port.flow) is Status.UNKNOWN


def test_what_was_sent_before_unregister_arrives(alice: Client) -> None:
    with peer() as other:
        for _ in range(100):
            port, reply = listening(alice)
            with port:
                port.send(b"last words", other.getsockname())
                alice.unregister(port.listener)
                assert other.recvfrom(100) == (b"last words", reply.proxy.address)


def test_tcp_and_udp_may_have_the_same_port(alice: Client) -> None:
    tcp = alice.register(os.urandom(16))
    port, udp = listening(alice, wished=tcp.proxy.port)
    with port, peer() as other:
        assert udp.proxy == tcp.proxy
        assert (tcp.relay, udp.relay) == (0, alice.broker[1])
        says(port, other, udp.proxy)
        with socket.create_connection(tcp.proxy.address, HANG_S):
            assert alice.next_call().peer


def test_ports_in_use_by_others_are_not_given(broker: Broker, alice: Client, bob: Client) -> None:
    with peer() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((broker.host, 0))
        asked = here.getsockname()[1]
        assert alice.register(protocol=UDP, wished=asked).proxy.port != asked
        assert alice.register(protocol=UDP, wished=80).proxy.port >= 10000
        wish = taken.getsockname()[1]  # of another host
        assert alice.register(protocol=UDP, wished=wish).proxy.port == wish
        assert bob.register(protocol=UDP, wished=wish).proxy.port != wish


def test_a_killed_broker_gives_the_same_proxy_address_back(tmp_path: Path) -> None:
    first = Broker(tmp_path)
    try:
        with greeted(first) as alice:
            port, held = listening(alice)
            first.kill()
            second = Broker(tmp_path, host=first.host, port=first.address[1])
            try:
                with port, peer() as other, greeted(second) as newcomer:
                    late = newcomer.register(protocol=UDP)
                    assert late.proxy.port in range(30491, 32768), "of the last tenth"
                    assert refusal(port.ask, Command.FLOW, port.flow_request()) is (
                        Status.STALE_EPOCH
                    )
                    assert refusal(port.flow) is Status.UNKNOWN
                    alice.hello()
                    again = alice.register(
                        port.listener, protocol=UDP, proxy=held.proxy, claim=held.claim
                    )
                    assert (again.proxy, again.relay) == (held.proxy, held.relay)
                    port.flow()
                    says(port, other, held.proxy)
            finally:
                second.kill()
    finally:
        first.kill()


def test_a_client_whose_agent_died_takes_its_address_over(alice: Client) -> None:
    port, held = listening(alice)
    with port, peer() as other:
        port.listener = os.urandom(16)
        again = alice.register(port.listener, protocol=UDP, proxy=held.proxy, claim=held.claim)
        assert again.proxy == held.proxy
        says(port, other, held.proxy)
        port.flow()
        says(port, other, held.proxy)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Broker]:
    """A broker with tokens and small limits."""
    (tmp_path / "tokens").write_text("alice alices-token\nbob bobs-token-2\n")
    (tmp_path / "config").write_text(
        "[limits]\ntoken_proxies = 2\ntoken_datagrams = 100\ntoken_kilobytes = 200\n"
    )
    flags = ["--token-file", str(tmp_path / "tokens"), "--config", str(tmp_path / "config")]
    broker = Broker(tmp_path, *flags)
    yield broker
    broker.kill()


def test_proxy_sockets_of_a_token_are_counted_whatever_their_protocol(narrow: Broker) -> None:
    with greeted(narrow, ALICE) as alice, greeted(narrow, BOB) as bob:
        held: RegisterReply = alice.register(b"listener number1", protocol=UDP)
        alice.register(b"listener number2", protocol=TCP)
        assert refusal(alice.register, b"listener number3", protocol=UDP) is Status.QUOTA_EXCEEDED
        assert bob.register(protocol=UDP).proxy != held.proxy
        alice.unregister(b"listener number1")
        alice.register(b"listener number3", protocol=UDP)


@pytest.mark.parametrize(("size", "most"), [(10, 100), (20000, 10)])
@pytest.mark.parametrize("way", ["to peers", "from peers", "across"])
def test_a_token_has_so_many_datagrams_and_octets_a_second_relayed(
    narrow: Broker, size: int, most: int, way: str
) -> None:
    with greeted(narrow, ALICE) as alice, greeted(narrow, BOB) as bob, peer() as other:
        port, held = listening(alice)
        second, reply = listening(alice)
        bobs, bobs_reply = listening(bob)
        sink = {"to peers": other, "from peers": port.sock, "across": second.sock}[way]
        target = other.getsockname() if way == "to peers" else reply.proxy.address
        with port, second, bobs:
            began = time.monotonic()
            for _ in range(10 * most):
                if way == "from peers":
                    other.sendto(bytes(size), held.proxy.address)
                else:
                    port.send(bytes(size), target)
            says(bobs, other, bobs_reply.proxy)  # another token's are not held up
            sink.settimeout(0.1)
            came = 0
            try:
                while sink.recv(65536):
                    came += 1
            except TimeoutError:
                pass
            # What a second holds at the beginning, what came in since, and one batch too many.
            assert most / 2 <= came <= most * (2 + time.monotonic() - began) + 64
            assert came < 9 * most
            wait_until(lambda: relays_again(port, other))


def relays_again(port: Port, other: socket.socket) -> bool:
    """Whether a datagram gets through now; what came before is passed over."""
    port.send(b"again", other.getsockname())
    other.settimeout(0.1)
    try:
        while other.recv(65536) != b"again":
            pass
    except TimeoutError:
        return False
    return True


def test_parts_without_their_others_take_little_memory(broker: Broker, alice: Client) -> None:
    with peer() as other:
        ports = [listening(alice) for _ in range(120)]
        before = resident(broker)
        for number in range(16):
            for port, _ in ports:
                port.raw(datagrams.parts(other.getsockname(), number)[0] + bytes(60000))
                port.send(b"done", other.getsockname())  # so that no queue overflows
                assert other.recv(100) == b"done"
        # All of them would be 115 MB.
        assert resident(broker) - before < 50_000_000
        whole = os.urandom(65507)
        ports[0][0].send(whole, other.getsockname())
        assert other.recv(65536) == whole
        for port, _ in ports:
            port.sock.close()


def resident(broker: Broker) -> int:
    """Octets of memory that a broker has."""
    pages = Path(f"/proc/{broker.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_a_flood_of_datagrams_leaves_commands_alone(broker: Broker, alice: Client) -> None:
    """They have queues of their own: what one sends does not push out what others ask."""
    port, _ = listening(alice)
    with port, peer() as sink, udp_to(broker.address) as asker:
        for _ in range(20):
            for _ in range(1000):
                port.send(bytes(1000), sink.getsockname())
            # Sent once only: nothing may get lost.
            asker.send(alice.request(Command.HELLO, Hello(bytes(16))))
        for _ in range(20):
            assert parse(asker.recv(2048)).status == Status.SUCCESS


def test_the_command_port_is_in_use_for_another_broker(broker: Broker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(OSError) as refused:
            sock.bind(("", broker.address[1]))
        assert refused.value.errno == errno.EADDRINUSE

"""The real brokerd on loopback: bad input, faults, limits, and what must not be harmed by them."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import HEADER_SIZE, Kind, build, message_of, parse
from gcbpatch.wire.messages import Command, Connect, ConnectReply, Endpoint, Hello

from .broker_client import (
    HANG_S,
    ROOT,
    Broker,
    Client,
    Refused,
    loopback_host,
    read_all,
    read_frame,
)

LISTENER = b"listener number1"
OTHER = b"listener number2"
TOKENS = "alice alices-token\nbob bobs-token-2\n"
ALICE, BOB = Key(b"alices-token", "alice"), Key(b"bobs-token-2", "bob")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """A broker with tokens."""
    (tmp_path / "tokens").write_text(TOKENS)
    broker = Broker(tmp_path, "--token-file", str(tmp_path / "tokens"))
    yield broker
    broker.kill()


def greeted(broker: Broker, key: Key | None = None, client: bytes = b"") -> Client:
    made = Client(broker.address, key, client)
    made.hello()
    return made


def udp_to(broker: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(broker)
    sock.settimeout(HANG_S)
    return sock


def parse_connect(answer: bytes) -> bytes:
    """Return the name of the rendezvous in an answer to CONNECT."""
    message = message_of(parse(answer))
    assert isinstance(message, ConnectReply)
    return message.rendezvous


def refusal(function: object, *args: object, **named: object) -> Status:
    """Call something that must be refused, return with what."""
    with pytest.raises(Refused) as refused:
        function(*args, **named)  # type: ignore[operator]
    return refused.value.status


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other end to close; with something unread that is a reset."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def wait_until(true: object) -> None:
    """Ask until the answer is yes."""
    until = time.monotonic() + HANG_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


# --- datagrams

GARBAGE = [
    b"",
    b"G",
    b"GB",
    os.urandom(HEADER_SIZE - 1),
    b"XX" + bytes(HEADER_SIZE),
    b"\xff" * 1400,
    build(Kind.REPLY, Command.CALL, 1),
    build(Kind.REPLY, Command.HELLO, 1)[:-1] + b"\x01",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_what_cannot_be_read_is_not_answered(broker: Broker, garbage: bytes) -> None:
    hello = build(Kind.REQUEST, Command.HELLO, 7, Hello(bytes(16)))
    with udp_to(broker.address) as sock:
        sock.send(garbage)
        sock.send(garbage)
        sock.send(hello)
        # Answers come in order: a first one to the HELLO means none to the garbage.
        assert parse(sock.recv(2048)).transaction == 7
        port = sock.getsockname()[1]
    assert broker.log().count(f"127.0.0.1:{port}: ") <= 1
    if garbage and garbage[3:4] != b"\x02":
        assert f"127.0.0.1:{port}: " in broker.log()


def changed(frame: bytes, offset: int, value: int) -> bytes:
    return frame[:offset] + bytes([value]) + frame[offset + 1 :]


HELLO = build(Kind.REQUEST, Command.HELLO, 5, Hello(bytes(16)))
BAD = {
    "another version": (changed(HELLO, 2, 9), Status.UNSUPPORTED),
    "no kind": (changed(HELLO, 3, 7), Status.MALFORMED),
    "truncated": (HELLO[:-1], Status.MALFORMED),
    "longer than it says": (HELLO + b"x", Status.MALFORMED),
    "a body that is none": (build(Kind.REQUEST, Command.HELLO, 5), Status.MALFORMED),
    "an unknown command": (build(Kind.REQUEST, 99, 5), Status.UNSUPPORTED),
    "a command of the other daemon": (build(Kind.REQUEST, Command.QUERY, 5), Status.UNSUPPORTED),
    "a JOIN as a datagram": (build(Kind.REQUEST, Command.JOIN, 5), Status.UNSUPPORTED),
    "a HELLO without padding": (
        build(Kind.REQUEST, Command.HELLO, 5, Hello(bytes(16), b"")),
        Status.MALFORMED,
    ),
    "a wrong cookie": (
        build(Kind.REQUEST, Command.CONNECT, 5,
              Connect(bytes(16), bytes(8), Endpoint("10.0.0.1", 1), 6, [], "")),
        Status.STALE_EPOCH,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_bare_status_not_larger_than_they_are(
    broker: Broker, case: str
) -> None:
    datagram, status = BAD[case]
    with udp_to(broker.address) as sock:
        for _ in range(2):
            sock.send(datagram)
            answer = sock.recv(2048)
            frame = parse(answer)
            assert (frame.kind, frame.transaction, frame.status) == (Kind.REPLY, 5, status)
            assert len(answer) == HEADER_SIZE <= len(datagram)
        line = f"127.0.0.1:{sock.getsockname()[1]}: "
    assert broker.log().count(line) == (0 if status is Status.STALE_EPOCH else 1)


def test_a_hello_is_never_answered_with_more_than_it_said(guarded: Broker) -> None:
    for key in (ALICE, None):
        for padding in (0, 16, 32, 64, 256):
            request = build(
                Kind.REQUEST, Command.HELLO, padding, Hello(bytes(16), bytes(padding)),
                key_id=key.key_id if key else 0,
            )
            request = key.seal(request) if key else request
            with udp_to(guarded.address) as sock:
                sock.send(request)
                assert len(sock.recv(2048)) <= len(request)


def test_the_same_datagram_gets_the_same_bytes_and_one_call(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        asked = alice.request(Command.REGISTER, alice.register_request())
        registered = alice.exchange(asked)
        assert alice.exchange(asked) == registered
        proxy = parse(registered)
        assert proxy.status == Status.SUCCESS
        target = alice.register(LISTENER).proxy
        connect = bob.request(
            Command.CONNECT, Connect(bob.client, bob.cookie, target, 6, [], "")
        )
        first = bob.exchange(connect)
        assert [bob.exchange(connect) for _ in range(5)] == [first] * 5
        # Of the calls that come, the first is the first connect's, the next the second's.
        meetings = [parse_connect(first), bob.connect(target).rendezvous]
        assert [alice.next_call().rendezvous for _ in meetings] == meetings
        assert len(alice.called) == 2


# --- tokens


def test_tokens_are_asked_for(guarded: Broker) -> None:
    assert "no tokens" not in guarded.log()
    with Client(guarded.address) as stranger:
        assert refusal(stranger.hello) is Status.NOT_AUTHORIZED
        assert refusal(stranger.hello) is Status.NOT_AUTHORIZED
        line = f"127.0.0.1:{stranger.sock.getsockname()[1]}: no token where one is needed"
    with Client(guarded.address, Key(b"a wrong token")) as stranger:
        assert refusal(stranger.hello) is Status.NOT_AUTHORIZED
        port = stranger.sock.getsockname()[1]
        wrong = f"127.0.0.1:{port}: a wrong token"
    assert guarded.log().count(line) == 1
    assert guarded.log().count(wrong) == 1


def test_a_listener_belongs_to_its_token(guarded: Broker) -> None:
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB, alice.client) as mallory:
        proxy = alice.register(LISTENER).proxy
        assert refusal(mallory.register, LISTENER) is Status.NOT_AUTHORIZED
        assert refusal(mallory.refresh, LISTENER) is Status.NOT_AUTHORIZED
        assert refusal(mallory.unregister, LISTENER) is Status.NOT_AUTHORIZED
        assert alice.register(LISTENER).proxy == proxy


def test_a_relay_between_two_tokens(guarded: Broker) -> None:
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        call = alice.next_call()
        with Client(guarded.address) as stranger:
            assert refusal(stranger.join, call) is Status.NOT_AUTHORIZED
        half = bob.start_join(meeting)
        with alice.join(call) as listener, bob.finish_join(half) as connector:
            connector.sendall(b"hello")
            assert listener.recv(5, socket.MSG_WAITALL) == b"hello"


def test_tokens_are_reread_on_sighup(guarded: Broker, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("carol carols-token\n")
    guarded.process.send_signal(signal.SIGHUP)
    with Client(guarded.address, Key(b"carols-token")) as carol:

        def accepted() -> bool:
            try:
                carol.hello()
            except Refused:
                return False
            return True

        wait_until(accepted)
        (tmp_path / "tokens").write_text("")
        guarded.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "settings not reread" in guarded.log())
        carol.hello()
    with Client(guarded.address, ALICE) as alice:
        assert refusal(alice.hello) is Status.NOT_AUTHORIZED


def test_a_broker_without_tokens_says_so(broker: Broker) -> None:
    assert "no tokens are configured" in broker.log()


# --- relayed halves


def test_a_bad_join_harms_nothing(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        call = alice.next_call()
        for name, secret, status in (
            (call.rendezvous, bytes(16), Status.NOT_AUTHORIZED),
            (bytes(8), call.secret, Status.UNKNOWN),
        ):
            for listening in (True, False):
                with socket.create_connection(broker.address, HANG_S) as sock:
                    sock.sendall(alice.join_frame(name, secret, listening) + b"and more")
                    assert read_frame(sock).status == status
                    assert read_all(sock) == b""
                    assert f"127.0.0.1:{sock.getsockname()[1]}: JOIN" in broker.log()
        half = bob.start_join(meeting)
        with alice.join(call) as listener, bob.finish_join(half) as connector:
            connector.sendall(b"unharmed")
            assert listener.recv(8, socket.MSG_WAITALL) == b"unharmed"
            assert refusal(alice.join, call) is Status.UNKNOWN
            assert refusal(bob.join, meeting) is Status.UNKNOWN


def test_a_side_is_used_once(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        half = bob.start_join(meeting)
        # Two JOINs of one side: whichever is first is the one; the other is refused.
        second = bob.start_join(meeting)
        replies = []
        for sock in (half, second):
            sock.setblocking(False)
        wait_until(lambda: _any_reply((half, second), replies))
        assert [frame.status for frame in replies] == [Status.UNKNOWN]


def _any_reply(socks: tuple[socket.socket, ...], replies: list) -> bool:
    for sock in socks:
        try:
            data = sock.recv(HEADER_SIZE)
        except BlockingIOError:
            continue
        if data:
            replies.append(parse(data))
    return bool(replies)


FIRST_FRAMES = {
    "garbage": (os.urandom(8) + b"\xff" * 100, None),
    "another version": (changed(HELLO, 2, 9), Status.UNSUPPORTED),
    "too large": (HELLO[:6] + b"\xff\xff" + HELLO[8:], Status.MALFORMED),
    "a HELLO": (HELLO, Status.UNSUPPORTED),
    "a JOIN that is none": (build(Kind.REQUEST, Command.JOIN, 5, Hello(bytes(16))),
                            Status.MALFORMED),
}


@pytest.mark.parametrize("case", FIRST_FRAMES)
def test_bad_first_frames_are_refused(broker: Broker, case: str) -> None:
    data, status = FIRST_FRAMES[case]
    with socket.create_connection(broker.address, HANG_S) as sock:
        sock.sendall(data)
        if status is not None:
            assert read_frame(sock).status == status
        assert read_all(sock) == b""
        assert f"127.0.0.1:{sock.getsockname()[1]}: " in broker.log()


def test_connections_that_say_nothing_do_not_keep_others_out(broker: Broker) -> None:
    idle = [socket.create_connection(broker.address, HANG_S) for _ in range(1100)]
    for sock in idle[::2]:
        sock.sendall(HELLO[:7])
    # The oldest had to go.
    assert is_closed(idle[0])
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        half = bob.start_join(meeting)
        with alice.join(alice.next_call()) as listener, bob.finish_join(half) as connector:
            connector.sendall(b"through")
            assert listener.recv(7, socket.MSG_WAITALL) == b"through"
    # And in the end all of them: they are read to their end of stream.
    for sock in idle:
        with sock:
            assert is_closed(sock)


@pytest.mark.parametrize("answer", [Status.NO_RESOURCES, Status.UNKNOWN])
def test_a_refused_call_is_told_to_the_connector(broker: Broker, answer: Status) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        proxy = alice.register(LISTENER).proxy
        alice.call_status = answer
        for early in (True, False):
            meeting = bob.connect(proxy)
            if early:
                half = bob.start_join(meeting)
                alice.next_call()
            else:
                alice.next_call()
                half = bob.start_join(meeting)
            assert refusal(bob.finish_join, half) is answer


def test_an_ordinary_connection_is_reset_when_the_listener_refuses(broker: Broker) -> None:
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        alice.call_status = Status.NO_RESOURCES
        with (
            # The reset may come so early that connect itself reports it.
            pytest.raises(ConnectionResetError),
            socket.create_connection(proxy.address, HANG_S) as sock,
        ):
            sock.recv(1)


def test_connections_to_a_listener_that_is_dead_are_not_kept_waiting(broker: Broker) -> None:
    with greeted(broker) as bob:
        alice = greeted(broker)
        proxy = alice.register(LISTENER).proxy
        alice.close()
        half = bob.start_join(bob.connect(proxy))
        with (
            # The reset may come so early that connect itself reports it.
            pytest.raises(ConnectionResetError),
            socket.create_connection(proxy.address, HANG_S) as sock,
        ):
            sock.recv(1)
        assert refusal(bob.finish_join, half) is Status.UNKNOWN


def test_a_half_that_never_gets_its_other_is_told_so(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        bob.connect(alice.register(LISTENER).proxy)
        assert refusal(alice.join, alice.next_call()) is Status.UNKNOWN


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_half_that_vanished_is_noticed(broker: Broker, end: str) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        proxy = alice.register(LISTENER).proxy
        meeting = bob.connect(proxy)
        call = alice.next_call()
        half = bob.start_join(meeting, behind=b"go")
        if end == "reset":
            half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Its bytes must be there before it goes, or a reset may overtake the JOIN.
        bob.hello()
        half.close()
        assert refusal(alice.join, call) is Status.UNKNOWN


def test_an_ordinary_connection_that_was_reset_is_noticed(broker: Broker) -> None:
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        sock = socket.create_connection(proxy.address, HANG_S)
        call = alice.next_call()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        assert refusal(alice.join, call) is Status.UNKNOWN


# --- lifetimes, restarts, limits


def test_a_killed_brokers_clients_get_their_addresses_back(tmp_path: Path) -> None:
    first = Broker(tmp_path)
    try:
        with greeted(first) as alice:
            before = alice.hello()
            held = alice.register(LISTENER)
            wished = alice.register(OTHER, wished=23456)
            first.kill()
            again = Broker(tmp_path, host=first.host, port=first.address[1])
            try:
                # Its old cookie is worth nothing now.
                assert refusal(alice.refresh, LISTENER) is Status.STALE_EPOCH
                assert alice.hello().epoch != before.epoch
                _strangers_get_neither(again, held, wished)
                claims = {"proxy": held.proxy, "claim": held.claim}
                assert alice.register(LISTENER, **claims).proxy == held.proxy
                claims = {"proxy": wished.proxy, "claim": wished.claim}
                assert alice.register(OTHER, **claims).proxy == wished.proxy
                with socket.create_connection(held.proxy.address, HANG_S):
                    assert alice.next_call().listener == LISTENER
            finally:
                again.kill()
    finally:
        first.kill()


def _strangers_get_neither(broker: Broker, *held: object) -> None:
    with greeted(broker) as mallory:
        for reply in held:
            proxy, claim = reply.proxy, reply.claim  # type: ignore[attr-defined]
            wish = mallory.register(os.urandom(16), wished=proxy.port)
            assert wish.proxy != proxy
            theft = mallory.register(os.urandom(16), proxy=proxy, claim=claim)
            assert theft.proxy != proxy


def test_what_is_not_refreshed_is_gone(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "--lifetime", "2")
    try:
        with greeted(broker) as alice:
            kept, gone = alice.register(LISTENER), alice.register(OTHER)
            assert (kept.lifetime, gone.lifetime) == (2, 2)

            def is_gone() -> bool:
                assert alice.refresh(LISTENER).lost == []
                try:
                    socket.create_connection(gone.proxy.address, HANG_S).close()
                except ConnectionRefusedError:
                    return True
                return False

            wait_until(is_gone)
            assert alice.refresh(OTHER).lost == [OTHER]
            socket.create_connection(kept.proxy.address, HANG_S).close()
    finally:
        broker.kill()


def test_exhausted_ports_are_said_to_be(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "--proxy-ports", "20000-20002")
    try:
        with greeted(broker) as alice:
            names = [bytes([n]) * 16 for n in range(3)]
            ports = {alice.register(name).proxy.port for name in names}
            assert ports == {20000, 20001, 20002}
            assert refusal(alice.register, LISTENER) is Status.NO_RESOURCES
            alice.unregister(names[0])
            assert alice.register(LISTENER).proxy.port in ports
    finally:
        broker.kill()


def test_a_token_may_take_only_its_share(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKENS)
    (tmp_path / "config.toml").write_text(
        f"token_file = '{tmp_path / 'tokens'}'\n"
        "[limits]\nproxies = 3\ntoken_proxies = 2\ntoken_half_open = 1\n"
    )
    broker = Broker(tmp_path, "--config", str(tmp_path / "config.toml"))
    try:
        with greeted(broker, ALICE) as alice, greeted(broker, BOB) as bob:
            target = alice.register(LISTENER).proxy
            alice.register(OTHER)
            assert refusal(alice.register) is Status.QUOTA_EXCEEDED
            bob.register(LISTENER)
            assert refusal(bob.register) is Status.NO_RESOURCES
            bob.connect(target)
            assert refusal(bob.connect, target) is Status.QUOTA_EXCEEDED
            alice.unregister(OTHER)
            bob.register(OTHER)
    finally:
        broker.kill()


def test_a_flood_of_commands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[limits]\ncommands = 5\n")
    broker = Broker(tmp_path, "--config", str(tmp_path / "config.toml"))
    try:
        with greeted(broker) as alice:
            asked = [
                alice.request(Command.REGISTER, alice.register_request()) for _ in range(60)
            ]
            statuses = [parse(alice.exchange(request)).status for request in asked]
            assert Status.NO_RESOURCES in statuses
            assert statuses[0] == Status.SUCCESS
    finally:
        broker.kill()


def test_relays_and_their_descriptors_are_given_back(broker: Broker) -> None:
    descriptors = Path(f"/proc/{broker.process.pid}/fd")
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        before = len(list(descriptors.iterdir()))
        for round_ in range(20):
            with socket.create_connection(proxy.address, HANG_S) as connector:
                with alice.join(alice.next_call()) as listener:
                    connector.sendall(bytes(200_000 * (round_ % 2)))
                    connector.shutdown(socket.SHUT_WR)
                    assert len(read_all(listener)) == 200_000 * (round_ % 2)
                assert read_all(connector) == b""
        # One pipe may be kept for the next.
        wait_until(lambda: len(list(descriptors.iterdir())) <= before + 2)


# --- the command line

BAD_USAGE = {
    "an unknown flag": (["--wings", "2"], "--wings"),
    "a port that is none": (["--port", "banana"], "--port"),
    "a port too high": (["--port", "70000"], "--port"),
    "a range that is none": (["--proxy-ports", "9-1"], "--proxy-ports"),
    "a name for an address": (["--address", "example.org"], "--address"),
    "the wildcard for an address": (["--address", "0.0.0.0"], "--address"),
    "a lifetime of nothing": (["--lifetime", "0"], "--lifetime"),
    "no level": (["--log", "LOUD"], "--log"),
    "no token file": (["--token-file", "/nowhere/tokens"], "/nowhere/tokens"),
    "no config file": (["--config", "/nowhere/config"], "/nowhere/config"),
    "no place for the key": (["--key-file", "/proc/nowhere/key"], "--key-file"),
}


def complaint(*flags: str) -> str:
    """Run brokerd, which must refuse to; return its one line."""
    result = subprocess.run(
        [sys.executable, "-m", "brokerd", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False,
    )
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_said_in_one_line(case: str, tmp_path: Path) -> None:
    flags, said = BAD_USAGE[case]
    key = [] if "--key-file" in flags else ["--key-file", str(tmp_path / "key")]
    assert said in complaint("--port", "0", *key, *flags)


BAD_FILES = {
    "not TOML": ("port", "not TOML"),
    "an unknown key": ("prot = 1", "prot"),
    "a text for a number": ("port = '1'", "port"),
    "a limit that is none": ("[limits]\nwings = 2", "wings"),
    "a limit of nothing": ("[limits]\nrelays = 0", "relays"),
    "limits that are no table": ("limits = 3", "limits"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_said_in_one_line(case: str, tmp_path: Path) -> None:
    text, said = BAD_FILES[case]
    (tmp_path / "config.toml").write_text(text)
    line = complaint("--config", str(tmp_path / "config.toml"), "--key-file", str(tmp_path / "key"))
    assert said in line and "config.toml" in line


def test_a_port_in_use_is_said_in_one_line(broker: Broker, tmp_path: Path) -> None:
    port = str(broker.address[1])
    line = complaint("--address", broker.host, "--port", port, "--key-file", str(tmp_path / "key"))
    assert port in line and "in use" in line


@pytest.mark.parametrize("text, mode", [("damaged", 0o600), ("0" * 64, 0o644)])
def test_a_key_file_that_is_none_is_not_replaced(tmp_path: Path, text: str, mode: int) -> None:
    key = tmp_path / "key"
    key.write_text(text)
    key.chmod(mode)
    assert str(key) in complaint("--port", "0", "--key-file", str(key))
    assert key.read_text() == text


def test_the_key_file_is_made_for_its_owner_alone(broker: Broker) -> None:
    key = broker.directory / "claims.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in broker.directory.iterdir() if "claims" in p.name] == ["claims.key"]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("address = '127.0.0.9'\nlifetime = 7\n")
    broker = Broker(tmp_path, "--config", str(tmp_path / "config.toml"), host=loopback_host())
    try:
        with greeted(broker) as alice:
            reply = alice.register(LISTENER)
        assert (reply.proxy.host, reply.lifetime) == (broker.host, 7)
    finally:
        broker.kill()


def test_two_brokers_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    host = loopback_host()
    brokers: list[Broker] = []
    threads = [
        threading.Thread(target=lambda: brokers.append(Broker(tmp_path, host=host)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    try:
        one, other = brokers
        with greeted(one) as here, greeted(other, client=here.client) as there:
            held = here.register(LISTENER)
            here.unregister(LISTENER)
            got = there.register(LISTENER, proxy=held.proxy, claim=held.claim)
            assert got.proxy == held.proxy
    finally:
        for broker in brokers:
            broker.kill()


def test_a_join_that_comes_byte_by_byte_is_a_join(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        half = bob.start_join(meeting)
        call = alice.next_call()
        frame = alice.join_frame(call.rendezvous, call.secret, listening=True)
        with socket.create_connection(broker.address, HANG_S) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in frame + b"x":
                listener.send(bytes([byte]))
            assert read_frame(listener).status == Status.SUCCESS
            assert bob.finish_join(half).recv(1) == b"x"

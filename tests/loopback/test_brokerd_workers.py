"""A broker with workers: everything as without, more of it, and a worker that dies."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.errors import Status
from gcbpatch.wire.messages import Endpoint

from .broker_client import HANG_S, Broker, Client
from .broker_ground import LISTENER, OTHER, greeted, is_closed, refusal, wait_until
from .flow_client import listening, peer

# The same must hold as for a broker alone; they take the fixtures of this module.
from .test_brokerd import (  # noqa: F401
    bob,
    ordinary_pair,
    test_a_reset_is_passed_on_as_a_reset,
    test_a_slow_reader_slows_its_writer,
    test_a_wish_is_granted_where_free,
    test_bytes_and_half_close_arrive_both_ways,
    test_bytes_right_behind_join_belong_to_the_stream,
    test_it_ends_cleanly_and_at_once_with_connections_open,
    test_many_connections_at_once,
    test_registering_again_gives_the_same_address,
    test_the_answer_before_a_reset_arrives_before_the_reset,
    test_what_an_ordinary_connector_sends_early_is_kept,
)

WORKERS = 2
FEW = 128
"""Descriptors of one process in the test of their sum."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path, "--workers", str(WORKERS))
    yield broker
    broker.kill()


@pytest.fixture
def alice(broker: Broker) -> Iterator[Client]:
    with greeted(broker) as client:
        yield client


def workers_of(broker: Broker) -> list[int]:
    """Return the processes that a broker has started, oldest first."""
    pid = broker.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, children.split()))


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def say(source: socket.socket, sink: socket.socket, data: bytes) -> None:
    """Send a little, and see it arrive."""
    source.sendall(data)
    assert sink.recv(len(data), socket.MSG_WAITALL) == data


def test_relays_are_spread(broker: Broker, alice: Client) -> None:
    before = [descriptors_of(pid) for pid in workers_of(broker)]
    mine = descriptors_of(broker.process.pid)
    proxy = alice.register(LISTENER).proxy
    pairs = [ordinary_pair(alice, proxy) for _ in range(10)]

    def more() -> list[int]:
        held = map(descriptors_of, workers_of(broker))
        return sorted(now - then for now, then in zip(held, before, strict=True))

    wait_until(lambda: more() == [10, 11])  # of two sockets each, and the proxy socket
    wait_until(lambda: descriptors_of(broker.process.pid) == mine)
    for one, other in pairs:
        say(one, other, b"there")
        say(other, one, b"and back")
        one.close()
        other.close()
    wait_until(lambda: more() == [0, 1])


def test_proxy_sockets_are_spread(broker: Broker, alice: Client) -> None:
    before = [descriptors_of(pid) for pid in workers_of(broker)]
    mine = descriptors_of(broker.process.pid)
    names = [os.urandom(16) for _ in range(20)]
    for name in names:
        alice.register(name)
    wait_until(
        lambda: [descriptors_of(pid) for pid in workers_of(broker)] == [n + 10 for n in before]
    )
    assert descriptors_of(broker.process.pid) == mine
    for name in names:
        alice.unregister(name)
    wait_until(lambda: [descriptors_of(pid) for pid in workers_of(broker)] == before)


def test_an_address_that_was_given_back_can_be_had_again_at_once(alice: Client) -> None:
    port = alice.register(LISTENER).proxy.port
    for _ in range(50):
        alice.unregister(LISTENER)
        proxy = alice.register(LISTENER, wished=port).proxy
        assert proxy.port == port
        for one in ordinary_pair(alice, proxy):
            one.close()


def test_who_unregistered_is_refused_after_a_moment(alice: Client) -> None:
    proxy = alice.register(LISTENER).proxy
    pair = ordinary_pair(alice, proxy)
    alice.unregister(LISTENER)

    def refused() -> bool:
        try:
            socket.create_connection(proxy.address, HANG_S).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused)
    say(*pair, b"established ones live on")
    assert alice.calls.empty()  # nobody was called for those that came in between
    for one in pair:
        one.close()


def test_descriptors_add_up(tmp_path: Path) -> None:
    limited = ("sh", "-c", f'ulimit -n {FEW}; exec "$@"', "sh")
    broker = Broker(tmp_path, "--workers", "3", prefix=limited)
    try:
        with greeted(broker) as alice:
            proxy = alice.register(LISTENER).proxy
            pairs = [ordinary_pair(alice, proxy) for _ in range(90)]
            assert 2 * len(pairs) > FEW  # more than one process could have
            for one, other in pairs:
                say(one, other, b"there")
            for _ in range(10):  # more than there is room for: reset, and nobody is harmed
                with socket.create_connection(proxy.address, HANG_S):
                    alice.start_join(alice.next_call()).close()
                    say(*pairs[0], b"still")
            for one, other in pairs:
                one.close()
                other.close()
            wait_until(lambda: sum(map(descriptors_of, workers_of(broker))) < FEW)
            for one in ordinary_pair(alice, proxy):
                one.close()
    finally:
        broker.kill()


def test_limits_in_all_stay_limits_in_all(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("workers = 2\n[limits]\nproxies = 3\nrelays = 3\n")
    broker = Broker(tmp_path, "--config", str(tmp_path / "config.toml"))
    try:
        with greeted(broker) as alice:
            proxy = alice.register(LISTENER).proxy
            for _ in range(2):
                alice.register(os.urandom(16))
            assert refusal(alice.register, OTHER) is Status.NO_RESOURCES
            pairs = [ordinary_pair(alice, proxy) for _ in range(3)]
            assert not _can_relay(alice, proxy)
            for one in pairs.pop():
                one.close()
            wait_until(lambda: _can_relay(alice, proxy))
            for one, other in pairs:
                one.close()
                other.close()
    finally:
        broker.kill()


def _can_relay(client: Client, proxy: Endpoint) -> bool:
    """Return whether the listener is called for another connection, or that is reset."""
    try:
        with socket.create_connection(proxy.address, HANG_S) as sock:
            sock.settimeout(0.05)
            while client.calls.empty():
                with contextlib.suppress(TimeoutError):
                    return sock.recv(1) != b""
    except ConnectionResetError:
        return False
    client.calls.get_nowait()
    return True


def test_a_killed_worker_is_replaced_and_no_listener_loses_its_address(
    broker: Broker, alice: Client
) -> None:
    names = [bytes([n]) * 16 for n in range(6)]
    proxies = [alice.register(name).proxy for name in names]
    pairs = [ordinary_pair(alice, proxies[0]) for _ in range(2)]  # one with each worker
    wait_until(lambda: len(workers_of(broker)) == WORKERS)
    killed = workers_of(broker)[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(workers_of(broker)) == WORKERS and killed not in workers_of(broker))
    for name, proxy in zip(names, proxies, strict=True):
        assert alice.refresh(name).lost == []
        for one in _connected(alice, proxy):
            one.close()
    alive = [pair for pair in pairs if _lives(*pair)]
    assert len(alive) == 1
    for one, other in pairs:
        one.close()
        other.close()


def _connected(client: Client, proxy: Endpoint) -> tuple[socket.socket, socket.socket]:
    """As ordinary_pair, once the proxy socket is open again."""
    while True:
        try:
            return ordinary_pair(client, proxy)
        except ConnectionRefusedError:
            continue


def _lives(one: socket.socket, other: socket.socket) -> bool:
    try:
        one.sendall(b"?")
        return other.recv(1) == b"?"
    except OSError:
        return False


def test_workers_end_with_a_broker_that_is_killed(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "--workers", "2")
    try:
        with greeted(broker) as alice:
            held = alice.register(LISTENER)
            one, other = ordinary_pair(alice, held.proxy)
            workers = workers_of(broker)
            broker.kill()
            wait_until(lambda: all(map(is_gone, workers)))
            assert is_closed(one) and is_closed(other)
            again = Broker(tmp_path, "--workers", "2", host=broker.host, port=broker.address[1])
            try:
                alice.hello()
                claims = {"proxy": held.proxy, "claim": held.claim}
                assert alice.register(LISTENER, **claims).proxy == held.proxy
                for sock in (one, other, *ordinary_pair(alice, held.proxy)):
                    sock.close()
            finally:
                again.kill()
    finally:
        broker.kill()


def test_a_signal_to_the_whole_group_ends_it_cleanly(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "--workers", "2")
    try:
        workers = workers_of(broker)
        for pid in (*workers, broker.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert broker.process.wait(HANG_S) == 0
        assert all(map(is_gone, workers))
    finally:
        broker.kill()
    assert "worker" not in broker.log()


def test_a_wrong_number_is_named() -> None:
    command = [sys.executable, "-m", "brokerd", "--address", "127.0.0.1", "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 2
    assert done.stderr == "brokerd: --workers: 0 is not right; a number from 1 to 256 would be\n"


def holders_of(broker: Broker, port: int) -> set[int]:
    """The processes of a broker that hold a UDP socket on a port."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{one[9]}]" for one in lines if int(one[1].split(":")[1], 16) == port}
    assert sockets
    return {
        pid
        for pid in (broker.process.pid, *workers_of(broker))
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if entry.is_symlink() and os.readlink(entry) in sockets
    }


def test_datagrams_stay_with_the_broker_and_no_workers_death_ends_them(
    broker: Broker, alice: Client
) -> None:
    port, reply = listening(alice)
    with port, peer() as other:
        for number in range(3):
            data = b"hello %d" % number
            other.sendto(data, reply.proxy.address)
            assert port.receive() == (data, other.getsockname())
            port.send(data[::-1], other.getsockname())
            assert other.recvfrom(100) == (data[::-1], reply.proxy.address)
            assert holders_of(broker, reply.proxy.port) == {broker.process.pid}
            oldest = workers_of(broker)[0]
            os.kill(oldest, signal.SIGKILL)
            wait_until(functools.partial(is_gone, oldest))
            # Young workers are not replaced at once.
            wait_until(lambda: len([w for w in workers_of(broker) if not is_gone(w)]) == WORKERS)

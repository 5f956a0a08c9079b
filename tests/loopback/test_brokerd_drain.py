"""SIGUSR1: a broker sends its listeners elsewhere, lets its relays run out, and ends with 0."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import Address, format_address
from gcbpatch.errors import Status

from .broker_client import HANG_S, Broker, loopback_host
from .broker_ground import LISTENER, OTHER, greeted, refusal, wait_until
from .conversation import Program

MOMENT = 1.0
"""Seconds, several looks of the broker at whether it may end."""

LISTENS = """
    import socket, sys
    listener = socket.create_server(("", 0))
    while (word := input()) != "end":
        if word == "name":
            print("%s:%s" % listener.getsockname(), flush=True)
        if word == "accept":
            sock, _ = listener.accept()
        if word == "echo":
            sock.sendall(sock.recv(100))
"""


@pytest.fixture(params=["1", "2"], ids=["alone", "workers"])
def brokers(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Broker]]:
    """Two brokers, by their hosts."""
    made = {}
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        broker = Broker(folder, "--workers", request.param, "--log", "INFO", host=loopback_host())
        made[broker.host] = broker
    yield made
    for broker in made.values():
        broker.kill()


def drain(broker: Broker) -> None:
    """Send SIGUSR1, and see it heard."""
    broker.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "draining" in broker.log())


def name_of(program: Program) -> Address:
    program.say("name")
    return program.name()


def echoed(program: Program, sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    program.say("echo")
    return sock.recv(len(data), socket.MSG_WAITALL)


def accepted(program: Program, name: Address) -> socket.socket:
    sock = socket.create_connection(name, HANG_S)
    program.say("accept")
    return sock


def test_a_listener_moves_and_what_is_relayed_goes_on_to_its_end(
    brokers: dict[str, Broker], tmp_path: Path
) -> None:
    both = ",".join(format_address(broker.address) for broker in brokers.values())
    log = tmp_path / "log"
    settings = {"GCB_BROKER": both, "GCB_LIFETIME": "3"}
    with Program(LISTENS, next(iter(brokers.values())), log, **settings) as program:
        before = name_of(program)
        (new,) = set(brokers) - {before[0]}
        old = brokers[before[0]]
        with accepted(program, before) as under_way:
            assert echoed(program, under_way, b"before") == b"before"
            drain(old)
            wait_until(lambda: name_of(program)[0] == new)
            wait_until(lambda: "unregistered" in old.log())
            with pytest.raises(subprocess.TimeoutExpired):
                old.process.wait(MOMENT)
            assert echoed(program, under_way, b"after") == b"after"
        with accepted(program, name_of(program)) as sock:
            assert echoed(program, sock, b"at the other") == b"at the other"
            assert old.process.wait(HANG_S) == 0
            assert "drained: 0 listeners have stayed" in old.log()
            assert echoed(program, sock, b"alone") == b"alone"
        program.say("end")


def test_who_has_nowhere_to_go_stays_and_is_waited_for_no_longer_than_a_lifetime(
    tmp_path: Path,
) -> None:
    broker = Broker(tmp_path, "--lifetime", "3")
    try:
        with greeted(broker) as alice:
            held = alice.register(LISTENER)
            assert not alice.refresh(LISTENER).leave
            drain(broker)
            broker.process.send_signal(signal.SIGUSR1)
            assert alice.refresh(LISTENER).leave
            assert alice.hello().free == 0
            assert refusal(alice.register, OTHER) is Status.NO_RESOURCES
            assert alice.register(LISTENER).proxy == held.proxy
            outside = socket.create_connection(held.proxy.address, HANG_S)
            with outside, alice.join(alice.next_call()) as inside:
                outside.sendall(b"still served")
                assert inside.recv(12, socket.MSG_WAITALL) == b"still served"
            assert broker.process.wait(HANG_S) == 0
        assert broker.log().count("draining:") == 1
        assert broker.log().count("drained:") == 1
    finally:
        broker.kill()


def test_a_listener_that_leaves_lets_it_end_at_once(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "--lifetime", "3600")
    try:
        with greeted(broker) as alice:
            alice.register(LISTENER)
            drain(broker)
            assert alice.refresh(LISTENER).leave
            alice.unregister(LISTENER)
            assert broker.process.wait(HANG_S) == 0
    finally:
        broker.kill()


def test_sigterm_ends_a_draining_broker_at_once(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "--lifetime", "3600")
    try:
        with greeted(broker) as alice:
            alice.register(LISTENER)
            drain(broker)
            assert broker.stop() == 0
            assert "drained" not in broker.log()
    finally:
        broker.kill()

"""The real brokerd on loopback: lifetimes, restarts, limits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from gcbpatch.errors import Status
from gcbpatch.wire.codec import parse
from gcbpatch.wire.messages import Command

from .broker_client import (
    HANG_S,
    Broker,
    read_all,
)
from .broker_ground import (
    ALICE,
    BOB,
    LISTENER,
    OTHER,
    TOKENS,
    greeted,
    refusal,
    wait_until,
)


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

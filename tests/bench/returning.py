"""Clients that all return at once, when their broker was killed and started again.

Each is an agent's real life at a broker, with its socket, heart and retransmission; only the
programs are missing. Prints times and asserts only that all got their proxy addresses back.
`python -m tests.bench.returning [CLIENTS]`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from gcbpatch.addresses import V4, Address
from gcbpatch.agent.broker import Broker as Life
from gcbpatch.agent.listeners import Listener
from gcbpatch.agent.registrants import Registrant
from gcbpatch.config import ClientConfig
from gcbpatch.errors import Status
from gcbpatch.wire.messages import TCP, Call, Command, Message
from tests.loopback.broker_client import HANG_S, Broker

CLIENTS = 1000


@dataclass
class Socket:
    """What a broker has to know of a listening socket."""

    listener: bytes = field(default_factory=lambda: os.urandom(16))
    protocol: int = TCP
    bound: Address = ("127.0.0.1", 1)
    wished: int = 0
    nonce: bytes = b"a nonce."
    proxy: Address | None = None
    claim: bytes = b""
    how: str = ""
    error: int = 0
    reason: str = ""
    relay: Address | None = None
    nudge_target: Address = ("127.0.0.1", 1)
    family: int = V4


class Returning:
    """One client with one listener; notes when it was registered last, and how long asking took."""

    def __init__(self, broker: Address, config: ClientConfig) -> None:
        self.socket = Socket()
        self.registered = float("-inf")
        self.took: list[tuple[float, float]] = []
        client = os.urandom(16)
        self.life = Life(broker, client, config, self, 1, _no_call, _stays)
        self._ask = self.life.control.ask
        self.life.control.ask = self._timed  # type: ignore[method-assign]

    def get(self, listener: bytes) -> Registrant | None:
        return self.socket if listener == self.socket.listener else None

    def check(self) -> None:
        """Its socket lives as long as it does."""

    async def _timed(self, command: Command, make: object, patience: float) -> Message:
        began = time.monotonic()
        reply = await self._ask(command, make, patience)  # type: ignore[arg-type]
        now = time.monotonic()
        self.took.append((began, now))
        if command is Command.REGISTER:
            self.registered = now
        return reply


def _no_call(_: Life, __: Listener, ___: Call) -> Status:
    return Status.UNKNOWN


async def _stays(_: Life, __: list[Registrant]) -> None:
    """There is nowhere else to go."""


async def all_registered(clients: list[Returning], since: float) -> None:
    """Wait until the last of them was registered after that moment."""
    async with asyncio.timeout(HANG_S):
        while any(one.registered < since for one in clients):
            await asyncio.sleep(0.01)


def started_again(broker: Broker) -> tuple[Broker, float]:
    """Start a broker that was killed; return the new one, and when it was ready."""
    again = Broker(broker.directory, host=broker.host, port=broker.address[1])
    return again, time.monotonic()


async def measure(folder: Path, count: int, pause: float) -> str:
    """Kill a broker, start it again after so many seconds, and see its clients return."""
    broker = Broker(folder)
    config = ClientConfig(brokers=(broker.address,), register="always")
    clients = [Returning(broker.address, config) for _ in range(count)]
    try:
        for one in clients:
            assert await one.life.register(one.socket)
        names = [one.socket.proxy for one in clients]
        broker.kill()
        killed = time.monotonic()
        await asyncio.sleep(pause)
        broker, ready = await asyncio.to_thread(started_again, broker)
        await all_registered(clients, killed)
        assert names == [one.socket.proxy for one in clients]
        back = sorted(one.registered - ready for one in clients)
        took = [end - max(began, ready) for one in clients for began, end in one.took]
        return (
            f"down {ready - killed:4.1f} s   half are back after {statistics.median(back):5.2f} s, "
            f"all after {back[-1]:5.2f} s   longest command {max(took):5.2f} s"
        )
    finally:
        for one in clients:
            one.life.close()
        broker.kill()


def main() -> None:
    """Away for a moment, so that each notices at his next heartbeat; and away for all of those."""
    logging.getLogger("gcbpatch.agent").setLevel(logging.ERROR)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else CLIENTS
    for pause in (0.0, 15.0):
        with tempfile.TemporaryDirectory() as folder:
            print(asyncio.run(measure(Path(folder), count, pause)), flush=True)


if __name__ == "__main__":
    main()

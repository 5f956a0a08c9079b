"""An agent that delivers by order: the real door, desk and listeners.

`deliverer.py DOOR` takes the place of the agent behind that door (settings come from the
environment, as an agent's do). Commands on standard input, each answered by nanoseconds for one
connection: `kernel HOST PORT N` connects N times to an ordinary listener, `brokered N` delivers N
connections that are already there to the one listener at the door. Each is over when the program
has said a byte on it.
"""

import asyncio
import os
import socket
import struct
import sys
import time

from gcbpatch.agent import door
from gcbpatch.agent.desk import Desk
from gcbpatch.agent.main import Doorkeeper
from gcbpatch.config import client_config

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER by which a close leaves nothing in TIME_WAIT: else the ports are used up soon."""


async def kernel(address: tuple[str, int], times: int) -> int:
    """Connect, one after the other, and wait each time for the byte."""
    loop = asyncio.get_running_loop()
    took = 0
    for _ in range(times):
        began = time.perf_counter_ns()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            assert await loop.sock_recv(sock, 1) == b"x"
            took += time.perf_counter_ns() - began
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return took


async def brokered(desk: Desk, times: int) -> int:
    """Deliver, one after the other; making the connection itself is not counted."""
    took = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(times):
            took += await _deliver(desk, listener)
    return took


async def _deliver(desk: Desk, listener: socket.socket) -> int:
    (one,) = desk.listeners
    with socket.create_connection(listener.getsockname()) as near:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far, peer = listener.accept()
        began = time.perf_counter_ns()
        async with one.delivery.place() as place:
            assert one.delivery.deliver(far, peer, place)
        assert await asyncio.get_running_loop().sock_recv(near, 1) == b"x"
        return time.perf_counter_ns() - began


async def obey(desk: Desk) -> None:
    """Read commands to the end."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *words = line.split()
        times = int(words[-1])
        if command == "kernel":
            took = await kernel((words[0], int(words[1])), times)
        else:
            took = await brokered(desk, times)
        print(took / times, flush=True)


async def main() -> None:
    """Be the agent of whoever comes to the door."""
    listening = door.bind(sys.argv[1])
    assert listening is not None, "somebody holds the door already"
    config = client_config(os.environ)
    desk = Desk(config, os.urandom(16))
    await desk.brokers.find()
    keeper = Doorkeeper(socket.socket(fileno=listening.detach()), desk)
    print("ready", flush=True)
    await obey(desk)
    keeper.close()
    await desk.close()


if __name__ == "__main__":
    asyncio.run(main())

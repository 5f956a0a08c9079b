"""The connector's side: all paths at once, the best connection that is ready is taken.

On the one that it takes it says GO, and on no other: the listener's side hands over that
one. It must never wait without bound for a better path than the one it has.
"""

from __future__ import annotations

import asyncio
import socket

from ..wire.messages import ConnectReply, PathKind
from . import opening, paths
from .attempts import CONNECT_SECONDS, Attempt, Attempts, attempts
from .broker import Broker
from .opening import Meeting
from .reception import Reception


async def race(
    broker: Broker, reception: Reception, arranged: ConnectReply
) -> tuple[PathKind, socket.socket]:
    """Return the best connection and its kind, with GO said on it.

    Raises what the relay failed with when all have failed.
    """
    meeting = Meeting.of(arranged)
    async with reception.expect(meeting, listening=True) as arrivals, attempts() as running:
        for path in paths.dialled(meeting.paths, paths.DIALLED_BY_CONNECTOR):
            relayed = path.kind is PathKind.RELAYED
            step = opening.join(broker, meeting) if relayed else opening.open_at(path, meeting)
            running.add(path.kind, step)
        if paths.expects_open(meeting.paths, frozenset({PathKind.REVERSE})):
            running.add(PathKind.REVERSE, arrivals.get())
        winner = await _choose(running)
        kind = running.pop(winner)
        sock = winner.result()
    await opening.or_close(sock, asyncio.get_running_loop().sock_sendall(sock, meeting.go))
    return kind, sock


async def _choose(running: Attempts) -> Attempt:
    """Wait for the best attempt, as paths.grace says; raises when none succeeds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline = began + CONNECT_SECONDS
    while True:
        best, pending = running.best, running.pending
        if best is not None and paths.nothing_better(running[best], (running[a] for a in pending)):
            return best
        if best is not None:
            deadline = min(deadline, loop.time() + paths.grace(loop.time() - began))
        if not pending or loop.time() >= deadline:
            return best or running.failed
        await running.progress(deadline)

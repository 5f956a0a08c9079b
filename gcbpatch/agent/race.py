"""The connector's side: all paths at once, the best connection that is ready is taken.

On the one that it takes it says GO, and on no other: the listener's side hands over that
one. It must never wait without bound for a better path than the one it has.
"""

from __future__ import annotations

import asyncio
import socket

from ..wire.messages import PathKind
from . import opening, paths, streams
from .attempts import CONNECT_SECONDS, Attempt, Attempts, attempts
from .broker import Broker
from .meeting import Meeting
from .punch import Hole
from .reception import Reception


async def race(
    broker: Broker, reception: Reception, meeting: Meeting, dialled: opening.Ahead
) -> tuple[PathKind, socket.socket]:
    """Return the best connection and its kind, with GO said on it.

    ``dialled`` is what was begun before this was arranged. Raises what the relay failed with
    when all have failed.
    """
    hole = Hole(dialled.nonce, meeting.early, dialled.source) if meeting.punches else None
    async with reception.expect(meeting, listening=True) as arrivals, attempts() as running:
        for path in paths.dialled(meeting.paths, paths.DIALLED_BY_CONNECTOR):
            relayed = path.kind is PathKind.RELAYED
            join = opening.join(broker, meeting, hole, dialled) if relayed else None
            running.add(path.kind, join or opening.open_at(path, meeting, dialled))
        if hole is not None:
            running.add(PathKind.PUNCHED, hole.punch(meeting))
        if paths.expects_open(meeting.paths, frozenset({PathKind.REVERSE})):
            running.add(PathKind.REVERSE, arrivals.get())
        winner = await _choose(running)
        kind = running.pop(winner)
        sock = winner.result()
    await opening.or_close(sock, asyncio.get_running_loop().sock_sendall(sock, meeting.go))
    return kind, streams.unshare(sock)


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
            punching = PathKind.PUNCHED in (running[a] for a in pending)
            deadline = min(deadline, loop.time() + paths.grace(loop.time() - began, punching))
        if not pending or loop.time() >= deadline:
            return best or running.failed
        await running.progress(deadline)

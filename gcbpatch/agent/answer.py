"""The listener's side of a call: its half of every path, and the one connection that counts.

The connector chooses; what it says GO on is handed over. It must never give a program a
connection on which the other side has not proved the rendezvous' secret.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire.messages import Call, Path, PathKind
from . import opening, paths, streams
from .attempts import CONNECT_SECONDS, Attempt, Attempts, attempts
from .broker import Broker
from .halves import Half
from .meeting import Meeting
from .punch import Hole
from .reception import Reception

LATE_GO_SECONDS = 2.0
"""How long GO may come after the connector has left the relay for a better path."""

Arrivals = asyncio.Queue[socket.socket]


async def answer(
    broker: Broker, reception: Reception, call: Call
) -> tuple[PathKind, socket.socket]:
    """Return the connection that the program shall get, and its kind."""
    meeting = Meeting.of(call)
    async with opening.waiting(broker, call.half) as half:
        if not call.commit:
            sock = await opening.join(broker, meeting, None, half)
            return PathKind.RELAYED, streams.unshare(sock)
        return await _best(broker, reception, meeting, half)


async def _best(
    broker: Broker, reception: Reception, meeting: Meeting, half: Half | None
) -> tuple[PathKind, socket.socket]:
    async with reception.expect(meeting, listening=False) as arrivals, attempts() as running:
        hole = _hole(meeting, half)
        if hole is not None:
            running.add(PathKind.PUNCHED, _with_go(hole.punch(meeting), meeting))
        for path in paths.dialled(meeting.paths, paths.DIALLED_BY_LISTENER):
            relayed = path.kind is PathKind.RELAYED
            join = opening.join(broker, meeting, hole, half) if relayed else None
            running.add(path.kind, _with_go(join or _reverse(path, meeting), meeting))
        if paths.expects_open(meeting.paths, paths.OPENED_BY_CONNECTOR):
            running.add(PathKind.DIRECT, _arrival_with_go(arrivals, meeting))
        winner = await _first(running)
        kind = running.pop(winner)
        return kind, streams.unshare(winner.result())


def _hole(meeting: Meeting, half: Half | None) -> Hole | None:
    """What was foretold holds for the connection that it was foretold for."""
    if not meeting.punches:
        return None
    if half is None or half.nonce != meeting.half:
        return Hole()
    return Hole(half.nonce, meeting.early, half.source)


async def _reverse(path: Path, meeting: Meeting) -> socket.socket:
    """Dial the connector; one that dials us by a better path at the same time comes first."""
    if paths.expects_open(meeting.paths, frozenset({PathKind.LOCAL})):
        await asyncio.sleep(paths.HEAD_START)
    return await opening.open_at(path, meeting)


async def _with_go(step: Coroutine[Any, Any, socket.socket], meeting: Meeting) -> socket.socket:
    sock = await step
    said = await opening.or_close(sock, streams.ready_bytes(sock, meeting.go))
    if not said:
        sock.close()
        raise RemoteProtocolError(Status.MALFORMED, "something else than GO")
    return sock


async def _arrival_with_go(arrivals: Arrivals, meeting: Meeting) -> socket.socket:
    """Of all connections that were opened to us, the one on which the connector says GO."""
    async with attempts() as waiting:
        getter: Attempt | None = None
        while True:
            getter = getter or waiting.add(PathKind.DIRECT, arrivals.get())
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [a for a in waiting if a.done() and a is not getter]:
                del waiting[attempt]
                if attempt.exception() is None:
                    return attempt.result()
            if getter.done():
                del waiting[getter]
                waiting.add(PathKind.DIRECT, _with_go(_given(getter.result()), meeting))
                getter = None


async def _given(sock: socket.socket) -> socket.socket:
    return sock


def _is_over(attempt: Attempt) -> bool:
    """Whether the broker has said that nobody waits there: chosen otherwise, or withdrawn."""
    if not attempt.done() or attempt.cancelled():
        return False
    error = attempt.exception()
    return isinstance(error, RefusedError) and error.status is Status.UNKNOWN


async def _first(running: Attempts) -> Attempt:
    """Wait for the first attempt that succeeds; raises when none does."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_SECONDS
    while True:
        best, pending = running.best, running.pending
        if best is not None:
            return best
        if not pending or loop.time() >= deadline:
            return running.failed
        if any(map(_is_over, running)):
            deadline = min(deadline, loop.time() + LATE_GO_SECONDS)
        await running.progress(deadline)

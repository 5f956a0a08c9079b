"""Joins two connections in the agent: for programs that are not patched and hold a nudge.

Bytes, ends of stream and resets go across in both directions. It must never be in the way of
a patched program, which gets the connection itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from . import streams

CHUNK = 65536
LEAST_LOOK_SECONDS = 0.002
MOST_LOOK_SECONDS = 0.1


async def is_served(
    nudge: socket.socket, sock: socket.socket, unread: Callable[[], int | None]
) -> bool:
    """Return whether who keeps ``nudge`` has spoken on it or read from it what ``sock`` says.

    False when it was closed before: it was no client of his, and nothing is lost of ``sock``,
    whose bytes are only looked at until then. ``unread`` tells how many he has not read.
    True also when ``sock`` has ended without a word.
    """
    shown = await _show(nudge, sock)
    if shown is None:
        return True
    pause = LEAST_LOOK_SECONDS
    while not await _is_readable_within(nudge, pause):
        left = unread() if shown else None
        if left is not None and left < shown:
            break
        pause = min(2 * pause, MOST_LOOK_SECONDS)
    else:
        try:
            if not nudge.recv(1, socket.MSG_PEEK):
                return False
        except OSError:
            return False
    if shown:
        sock.recv(shown)
    return True


async def _show(nudge: socket.socket, sock: socket.socket) -> int | None:
    """Send what comes first, and return its octets; 0 if the nudge's end spoke before.

    None when nothing will come.
    """
    waits = [asyncio.ensure_future(streams.readable(one)) for one in (nudge, sock)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        spoken = waits[0].done()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    if spoken:
        return 0
    try:
        data = sock.recv(CHUNK, socket.MSG_PEEK)
    except OSError:
        return None
    if not data:
        return None
    try:
        return nudge.send(data)
    except OSError:
        return 0  # closed in this moment


async def _is_readable_within(sock: socket.socket, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await streams.readable(sock)
    except TimeoutError:
        return False
    return True


async def bridge(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until both directions have ended; a reset ends both at once.

    The sockets stay the caller's to close.
    """
    ways = [asyncio.ensure_future(_carry(*pair)) for pair in ((one, other), (other, one))]
    try:
        await asyncio.gather(*ways)
    except OSError:
        for sock in (one, other):
            streams.linger_not(sock)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        await loop.sock_sendall(target, data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)  # it may have been reset: the other way will tell

"""Joins two connections in the agent: for programs that are not patched and hold a nudge.

Bytes, ends of stream and resets go across in both directions. It must never be in the way of
a patched program, which gets the connection itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from . import streams

CHUNK = 65536


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

"""Several ways tried at the same time, of which one connection is wanted.

Attempts are tasks that end in a connection. It must never lose one: what is not taken out
is withdrawn, and closed if it was ready already.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from ..wire.messages import PathKind
from . import paths

CONNECT_SECONDS = 20.0
"""As long as a broker keeps a rendezvous."""

Attempt = asyncio.Task[socket.socket]


class Attempts(dict[Attempt, PathKind]):
    """Attempts, and which kind of path each of them is."""

    def add(self, kind: PathKind, step: Coroutine[Any, Any, socket.socket]) -> Attempt:
        """Start one more."""
        attempt = asyncio.ensure_future(step)
        self[attempt] = kind
        return attempt

    @property
    def pending(self) -> list[Attempt]:
        """Those that are still under way."""
        return [attempt for attempt in self if not attempt.done()]

    @property
    def best(self) -> Attempt | None:
        """The best of those that are ready."""
        ready = [a for a in self if a.done() and not a.cancelled() and a.exception() is None]
        return min(ready, key=lambda a: paths.RANK[self[a]], default=None)

    @property
    def failed(self) -> Attempt:
        """The relay's, which should always work and has failed; TimeoutError if it has not."""
        for attempt, kind in self.items():
            if kind is PathKind.RELAYED and attempt.done():
                return attempt
        raise TimeoutError("no path between the two was ready in time")

    async def progress(self, deadline: float) -> None:
        """Wait until another one is done, or until ``deadline`` of the loop's time."""
        timeout = deadline - asyncio.get_running_loop().time()
        await asyncio.wait(self.pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


@contextlib.asynccontextmanager
async def attempts() -> AsyncIterator[Attempts]:
    """An empty set of attempts; those that are still in it at the end are withdrawn."""
    some = Attempts()
    try:
        yield some
    finally:
        for attempt in some:
            attempt.cancel()
        for result in await asyncio.gather(*some, return_exceptions=True):
            if isinstance(result, socket.socket):
                result.close()

"""Heartbeats: something done again and again, as often as the server's grant demands.

A beat that fails must never be the last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("gcbpatch.agent")

BEATS_PER_LIFETIME = 3
"""So that one may get lost and the next still comes in time."""
MOST_SECONDS = 25.0
"""A NAT on the way forgets a silent UDP flow after 30 s, where RFC 4787 is not kept."""


class Heart:
    """Calls ``beat`` three times a lifetime, and every 25 s, until it returns False.

    ``lifetime`` is in seconds; what a server grants can only shorten it.
    """

    def __init__(self, lifetime: float, beat: Callable[[], Awaitable[bool]]) -> None:
        self._lifetime = lifetime
        self._beat = beat
        self._sooner = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat, unless it does already."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def granted(self, lifetime: float) -> None:
        """A server has granted this: beat accordingly, from now on."""
        if lifetime < self._lifetime:
            self._lifetime = max(lifetime, 1.0)
            self._sooner.set()

    def stop(self) -> None:
        """Beat no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        going_on = True
        while going_on:
            await self._pause()
            try:
                going_on = await self._beat()
            except Exception:
                # A fault of ours in one beat: told in full, and the next one is tried.
                log.exception("a heartbeat failed")
        self._task = None

    async def _pause(self) -> None:
        """Sleep until the next beat; begin again when the pause became shorter meanwhile."""
        while True:
            self._sooner.clear()
            try:
                async with asyncio.timeout(
                    min(self._lifetime / BEATS_PER_LIFETIME, MOST_SECONDS)
                ):
                    await self._sooner.wait()
            except TimeoutError:
                return

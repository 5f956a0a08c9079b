"""Heartbeats: something done again and again, as often as the server's grant demands.

A beat that fails must never be the last one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

log = logging.getLogger("gcbpatch.agent")

BEATS_PER_LIFETIME = 3
"""So that one may get lost and the next still comes in time."""
MOST_SECONDS = 25.0
"""A NAT on the way forgets a silent UDP flow after 30 s, where RFC 4787 is not kept."""


RETRY_SECONDS = 1.0
"""The pause after a beat that was not answered, give or take a half: a server that comes back
is found soon, and not by all its clients at once."""
JITTER = 0.2
"""Every other pause is shorter by up to this part, so that clients do not beat in step."""


def pause(lifetime: float, failed: bool, drawn: float) -> float:
    """Return the seconds until the next beat; ``drawn`` is a number from 0 to 1."""
    seconds = min(lifetime / BEATS_PER_LIFETIME, MOST_SECONDS)
    if failed:
        return min(seconds, RETRY_SECONDS * (1.5 - drawn))
    return seconds * (1.0 - JITTER * drawn)


class Heart:
    """Calls ``beat`` three times a lifetime, and every 25 s, until it returns False.

    ``lifetime`` is in seconds; what a server grants can only shorten it. ``dice`` gives
    numbers from 0 to 1.
    """

    def __init__(
        self,
        lifetime: float,
        beat: Callable[[], Awaitable[bool]],
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._lifetime = lifetime
        self._beat = beat
        self._dice = dice
        self._failed = False
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

    @property
    def lifetime(self) -> float:
        """Seconds that a server keeps what nobody refreshes."""
        return self._lifetime

    def soon(self) -> None:
        """The last beat was not answered, or another reason not to wait: the next comes soon."""
        self._failed = True
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
            self._failed = False
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
                async with asyncio.timeout(pause(self._lifetime, self._failed, self._dice())):
                    await self._sooner.wait()
            except TimeoutError:
                return

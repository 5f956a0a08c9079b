"""Steps of the agent that run beside whoever began them, and are finished before it ends.

It must never swallow what a step raises: asyncio logs what nobody has asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Tasks:
    """Tasks that are kept alive until they are done."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def run(self, step: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Begin a step."""
        task = asyncio.ensure_future(step)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self, seconds: float) -> None:
        """Wait until all are done, ``seconds`` at most."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

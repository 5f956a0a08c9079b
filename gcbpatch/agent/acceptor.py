"""Accepting, for all listening sockets of the agent.

Running out of descriptors must never turn into a busy loop or a flood of log lines: the
kernel keeps who waits, and accepting is tried again a little later.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger("gcbpatch.agent")

BATCH = 64
PAUSE_SECONDS = 0.5


class Acceptor:
    """Hands every connection of ``listening``, made non-blocking, to ``accepted``."""

    def __init__(
        self, listening: socket.socket, accepted: Callable[[socket.socket, Any], None]
    ) -> None:
        listening.setblocking(False)
        self.socket = listening
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._watch()

    def _watch(self) -> None:
        self._resume = None
        self._loop.add_reader(self.socket, self._readable)

    def _readable(self) -> None:
        for _ in range(BATCH):
            try:
                sock, address = self.socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.warning("cannot accept for now: %s", error.strerror)
                self._loop.remove_reader(self.socket)
                self._resume = self._loop.call_later(PAUSE_SECONDS, self._watch)
                return
            sock.setblocking(False)
            self._accepted(sock, address)

    def close(self) -> None:
        """Accept no more."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self.socket)
        self.socket.close()

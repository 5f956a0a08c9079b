"""The agent process: serves its door until the last process and the last listener are gone.

Started by door.spawn() with the listening door as descriptor 3 and its settings in the
environment. It must never write to the program's terminal: what it has to tell goes to
GCB_LOG_FILE.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket

from ..config import ClientConfig, client_config
from ..logs import FILE_VARIABLE, log_into
from ..tree import CLIENT_VARIABLE
from . import door
from .acceptor import Acceptor
from .desk import Desk
from .streams import readable

log = logging.getLogger("gcbpatch.agent")

DOOR_FD = 3
LINGER_SECONDS = 3.0
"""How long an agent without a program waits for the next: exec and spawn leave such gaps."""


class Doorkeeper:
    """Accepts processes at the door and answers what they ask."""

    def __init__(self, listening: socket.socket, desk: Desk) -> None:
        self._desk = desk
        self._open: set[asyncio.Task[None]] = set()
        self._attached: set[socket.socket] = set()
        self._gone = asyncio.Event()
        desk.listeners.on_idle = self._gone.set
        desk.datagrams.on_idle = self._gone.set
        desk.brokers.on_news = self._tell_news
        self._door = Acceptor(listening, self._accepted)

    def _accepted(self, conn: socket.socket, _: object) -> None:
        task = asyncio.ensure_future(self._serve(conn))
        self._open.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a request at the door failed", exc_info=task.exception())
        self._gone.set()

    async def until_deserted(self) -> None:
        """Return when nobody has been at the door, and nothing listened, for a while."""
        while True:
            self._gone.clear()
            if self._open or self._desk.busy:
                await self._wait(60.0)
                continue
            if not await self._wait(LINGER_SECONDS) and not self._open:
                return

    async def _wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            self._desk.registrants.check()
            return False
        return True

    async def _serve(self, conn: socket.socket) -> None:
        with conn:
            try:
                door.check_peer(conn)
                while await self._serve_one(conn):
                    pass
            except (OSError, door.DoorError) as error:
                log.info("door: %s", error)
            finally:
                self._attached.discard(conn)

    async def _serve_one(self, conn: socket.socket) -> bool:
        await readable(conn)
        asked, fds = door.receive_question(conn)
        if asked is None:
            return False
        if isinstance(asked, door.Attach):
            door.close_all(fds)
            conn.send(door.WELCOME, socket.MSG_NOSIGNAL)
            self._attached.add(conn)
            return True
        answering = asyncio.ensure_future(self._answer(asked, fds))
        leaving = asyncio.ensure_future(readable(conn))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        # Looked at once: withdrawing waits, and the answer may be there by then.
        answered = answering.done()
        await _withdraw(leaving)
        if answered:
            _hand_over(conn, *answering.result())
        elif isinstance(asked, door.Listen):
            answering.add_done_callback(_discard)
        else:
            await _withdraw(answering)
        return answered

    async def _answer(
        self, asked: door.DoorMessage, fds: list[int]
    ) -> tuple[door.DoorMessage, tuple[int, ...]]:
        """Return the answer and descriptors of ours that go along with it."""
        if isinstance(asked, door.Listen):
            if len(fds) != 2:
                door.close_all(fds)
                raise door.DoorError(f"Listen came with {len(fds)} descriptors; two are right")
            take, put = (socket.socket(fileno=fd) for fd in fds)
            return await self._desk.listen(asked, take, put)
        if isinstance(asked, door.Bind | door.Hold | door.Vacate):
            return await self._desk.datagram(asked, fds)
        door.close_all(fds)
        if isinstance(asked, door.Adopt):
            return self._desk.adopt(asked.cookie)
        if isinstance(asked, door.Find):
            return self._desk.find(asked.listener), ()
        if isinstance(asked, door.Ready):
            return self._desk.ready(asked), ()
        if isinstance(asked, door.Forget):
            self._desk.listeners.forget(asked.listener, asked.cookie)
            return door.Listening(None, reason="forgotten"), ()
        if isinstance(asked, door.Dial):
            answer, sock = await self._desk.dial(asked)
            return answer, () if sock is None else (sock,)
        return await self._desk.world(), ()

    def _tell_news(self) -> None:
        """Have every process ask for its names again."""
        for conn in self._attached:
            # One that does not look for long has older news to find, or is about to leave.
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                conn.send(door.NEWS, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Nobody else comes in."""
        self._door.close()


def _discard(task: asyncio.Task[tuple[door.DoorMessage, tuple[int, ...]]]) -> None:
    """Who asked has gone meanwhile: what would have come along is for nobody."""
    if task.cancelled():
        return
    if task.exception() is None:
        door.close_all(list(task.result()[1]))
    else:
        log.error("a request that was given up failed", exc_info=task.exception())


async def _withdraw(task: asyncio.Task[object]) -> None:
    task.cancel()
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(result, tuple):
        door.close_all(list(result[1]))


def _hand_over(conn: _socket.socket, message: door.DoorMessage, fds: tuple[int, ...]) -> None:
    try:
        door.send(conn, message, fds)
    finally:
        door.close_all(list(fds))


async def serve(listening: socket.socket, config: ClientConfig) -> None:
    """Serve until deserted or told to end."""
    client = bytes.fromhex(os.environ.get(CLIENT_VARIABLE, "")) or os.urandom(16)
    desk = Desk(config, client)
    await desk.brokers.find()
    keeper = Doorkeeper(listening, desk)
    ending = asyncio.ensure_future(keeper.until_deserted())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.cancel)
    try:
        await ending
    except asyncio.CancelledError:
        log.info("told to end")
    keeper.close()
    await desk.close()


def main() -> None:
    """Entry of the process that door.spawn() starts."""
    os.closerange(DOOR_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    config = client_config(os.environ)
    logging.getLogger().setLevel(config.log)
    # The program warns of a file that cannot be opened; nobody would see a warning of ours.
    log_into(logging.getLogger(), os.environ.get(FILE_VARIABLE) or os.devnull, "agent")
    _raise_descriptor_limit()
    asyncio.run(serve(socket.socket(fileno=DOOR_FD), config))


def _raise_descriptor_limit() -> None:
    """Take what may be had: the program's soft limit is meant for the program."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

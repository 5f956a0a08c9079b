"""The program's end of the door: find or start the agent, and ask it, without blocking the hub.

A process attaches itself once (again after a fork); every question has a connection of its
own, so that closing it withdraws the question. It must never be used from a signal handler
or an at-fork hook.
"""

from __future__ import annotations

import _socket
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent._hub_local import get_hub_if_exists
from gevent.socket import wait_read

from ..config import ClientConfig, to_environ
from ..tree import CLIENT_VARIABLE
from .later import AgentGone, door
from .table import close_if, inode_of, is_still

log = logging.getLogger("gcbpatch")

START_TRIES = 50
START_PAUSE = 0.01
ASK_TRIES = 10
STILLBORN = 2
"""Agents started one after the other that ended without a word: then there can be none."""
HOPELESS_SECONDS = 10.0
"""How long it is taken as known that no agent can be started."""
ANSWER_MARGIN = 5.0
"""Seconds that the agent may take beyond the patience it has with brokers."""


class Link:
    """How this process reaches its agent. ``name`` is the door's; children inherit it."""

    def __init__(self, config: ClientConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.on_gone: Callable[[], None] = _nothing
        """Called in a greenlet of its own when the agent of this process has died."""
        self._attached: tuple[int, _socket.socket, int] | None = None
        self.on_fork: Callable[[], None] = _nothing
        """Called in a greenlet of its own when the loop of a forked child runs."""
        self.on_news: Callable[[], None] = _nothing
        """Called in a greenlet of its own when names may have changed."""
        self._watcher: Any = None
        self._fork_watcher: Any = None
        self._welcomed = False
        self._edition = 0
        self._stillborn = 0
        self._hopeless_until = 0.0
        self._warned = False

    def warn_once(self, text: str, *details: object) -> None:
        """Tell the user, once in this process, that the program goes on as if unpatched."""
        if not self._warned:
            self._warned = True
            log.warning(text + "; going on as if unpatched", *details)

    def ask(self, message: door.DoorMessage, fds: tuple[int, ...] = ()) -> Any:
        """Return the answer to a message that brings no descriptor back.

        Other greenlets run meanwhile. Raises AgentGone.
        """
        answer, back = self.ask_for_descriptors(message, fds)
        door.close_all(back)
        return answer

    def ask_for_descriptors(
        self, message: door.DoorMessage, fds: tuple[int, ...] = ()
    ) -> tuple[Any, list[int]]:
        """Return the answer and the descriptors that came along. Raises AgentGone."""
        limit = 3 * self.config.patience + ANSWER_MARGIN
        # An agent that has decided to end, or was killed, takes questions along with it, and
        # its door is open until the kernel has closed it: ask the next.
        for _ in range(ASK_TRIES):
            answer = self._ask_once(message, fds, limit)
            if answer is not None:
                return answer
            gevent.sleep(START_PAUSE)
        raise AgentGone("the agent went away")

    def _ask_once(
        self, message: door.DoorMessage, fds: tuple[int, ...], limit: float
    ) -> tuple[door.DoorMessage, list[int]] | None:
        conn = self.begin(message, fds)
        try:
            answer, back = _answer_within(conn, limit)
        except ConnectionResetError:
            return None
        except TimeoutError:
            raise  # not ours: the program waits for its connect no longer
        except (OSError, door.DoorError) as error:
            raise AgentGone(f"the agent did not answer: {error}") from error
        finally:
            conn.close()
        return None if answer is None else (answer, back)

    def begin(self, message: door.DoorMessage, fds: tuple[int, ...] = ()) -> _socket.socket:
        """Ask, and return the connection on which the answer will come. Raises AgentGone."""
        self._attach()
        return self._say(message, fds)

    def _say(self, message: door.DoorMessage, fds: tuple[int, ...] = ()) -> _socket.socket:
        for _ in range(ASK_TRIES):
            conn = self._connect()
            try:
                door.send(conn, message, fds)
                return conn
            except (BrokenPipeError, ConnectionResetError):
                conn.close()
                gevent.sleep(START_PAUSE)  # killed, and the kernel is about to close its door
            except OSError as error:
                conn.close()
                raise AgentGone(f"the agent cannot be asked: {error}") from error
        raise AgentGone("the agent went away")

    def _attach(self) -> None:
        """Stay connected as long as this process lives, so that the agent does, too."""
        if self._is_attached():
            return
        conn = self._say(door.Attach(os.getpid()))
        if self._is_attached():
            conn.close()  # another greenlet was quicker while the agent was started
            return
        self._welcomed = False
        self._attached = os.getpid(), conn, inode_of(conn.fileno())
        self._watch(conn.fileno())

    def edition(self) -> tuple[int, int]:
        """Return what changes whenever listeners may have got other names from the agent.

        So it does in a forked child, which has not heard the news that its parent has.
        """
        if self._attached is not None:
            pid, conn, inode = self._attached
            if pid == os.getpid():
                self._is_open(conn, inode)
        return os.getpid(), self._edition

    def is_in_use(self) -> bool:
        """Return whether this process has asked its agent anything yet."""
        return self._attached is not None

    def _is_attached(self) -> bool:
        """Whether this process has a connection to a living agent; lets go of any other."""
        if self._attached is None:
            return False
        pid, conn, inode = self._attached
        if pid == os.getpid() and self._is_open(conn, inode):
            return True
        self._let_go(conn, inode)
        if pid == os.getpid():
            gevent.spawn(self.on_gone)
        return False

    def _watch(self, number: int) -> None:
        """Notice the agent's end while the program waits for something else.

        Watchers that do not count: a program that waits in vain still learns of it.
        """
        loop = gevent.get_hub().loop
        self._watcher = loop.io(number, 1, ref=False)
        self._watcher.start(self._readable)
        if self._fork_watcher is None or self._fork_watcher.loop is not loop:
            self._fork_watcher = loop.fork(ref=False)
            self._fork_watcher.start(self._forked)

    def _unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None

    def before_fork(self) -> None:
        """Let the loop forget our number: a child may close what it has not opened.

        libev ends the process when a forked loop finds a watched number closed.
        """
        if self._watcher is not None and self._is_here(self._watcher):
            self._watcher.stop()

    def after_fork_in_parent(self) -> None:
        """Watch again, unless the program has closed our descriptor."""
        if self._watcher is None or self._attached is None:
            return
        if not self._is_here(self._watcher):
            return
        _, conn, inode = self._attached
        if is_still(conn, inode):
            self._watcher.start(self._readable)

    @staticmethod
    def _is_here(watcher: Any) -> bool:
        """Whether the watcher is of this thread's loop: no other may be touched from here."""
        hub = get_hub_if_exists()
        return hub is not None and watcher.loop is hub.loop

    def _forked(self) -> None:
        """The loop runs again, in a forked child: its parent may end before the agent does."""
        gevent.spawn(self.on_fork)

    def _readable(self) -> None:
        """Its welcome, its news, or its end."""
        if self._attached is None:
            return
        pid, conn, inode = self._attached
        if pid != os.getpid():
            # The news here are our parent's; this process gets a connection of its own.
            self._unwatch()
            return
        before = self._edition
        if not self._is_open(conn, inode):
            self._let_go(conn, inode)
            gevent.spawn(self.on_gone)
        elif self._edition != before:
            gevent.spawn(self.on_news)

    def _let_go(self, conn: _socket.socket, inode: int) -> None:
        self._unwatch()
        close_if(conn, inode)
        self._attached = None

    def _is_open(self, conn: _socket.socket, inode: int) -> bool:
        """Return whether this is still our connection, and the agent's end of it is open."""
        if not is_still(conn, inode):
            return False
        while True:
            try:
                said = conn.recv(len(door.WELCOME))
            except BlockingIOError:
                return True
            except OSError:
                said = b""
            self._count(said == b"")
            if not said:
                return False
            self._edition += said == door.NEWS

    def _count(self, ended: bool) -> None:
        """Learn from an agent that has ended, or from one that has said its welcome."""
        if not ended:
            self._welcomed, self._stillborn = True, 0
        elif not self._welcomed:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                self._hopeless_until = time.monotonic() + HOPELESS_SECONDS

    def leave(self) -> None:
        """Let the agent go: this process asks nothing any more, unless it does."""
        if self._attached is not None:
            _, conn, inode = self._attached
            self._let_go(conn, inode)
        if self._fork_watcher is not None:
            self._fork_watcher.stop()
            self._fork_watcher = None

    def _connect(self) -> _socket.socket:
        for _ in range(START_TRIES):
            try:
                return door.connect(self.name)
            except (ConnectionRefusedError, BlockingIOError):
                self._start()
            except (OSError, door.DoorError) as error:
                raise AgentGone(f"the agent's door cannot be used: {error}") from error
        raise AgentGone("the agent's door stays closed")

    def _start(self) -> None:
        """Start the agent if its name is free; otherwise let the one who does get on."""
        if time.monotonic() < self._hopeless_until:
            raise AgentGone("none can be started")
        listening = door.bind(self.name)
        if listening is None:
            gevent.sleep(START_PAUSE)
            return
        try:
            door.spawn(listening, agent_environ(self.config))
        except OSError as error:
            self._hopeless_until = time.monotonic() + HOPELESS_SECONDS
            raise AgentGone(f"it cannot be started: {error}") from error
        finally:
            listening.close()


def _answer_within(
    conn: _socket.socket, seconds: float
) -> tuple[door.DoorMessage | None, list[int]]:
    """Wait for an answer; that a number is readable may be news of who had it before.

    Raises AgentGone when there is none in time; TimeoutError is of the program's own timeout.
    """
    silence = AgentGone("the agent did not answer in time")
    deadline = time.monotonic() + seconds
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        wait_read(conn.fileno(), timeout=left, timeout_exc=silence)
        try:
            return door.receive_answer(conn)
        except BlockingIOError:
            continue


def _nothing() -> None:
    """Nobody has listeners to tell a new agent of."""


def agent_environ(config: ClientConfig) -> dict[str, str]:
    """Return the whole environment of an agent."""
    kept = (CLIENT_VARIABLE, "GCB_LOG_FILE", "LANG", "LC_ALL", "TZ")
    return {k: os.environ[k] for k in kept if k in os.environ} | to_environ(config)

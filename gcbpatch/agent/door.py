"""The door between programs and their agent: messages and descriptors over AF_UNIX SEQPACKET.

Both sides import this room. A door is an abstract socket that the starter binds and the
agent inherits, so whoever comes before the agent is up waits in its queue and is not
refused; binding the name is also the lock that lets one starter win. One connection
carries one request at a time, and closing it withdraws the request. This room must never
import gevent or asyncio: waiting is the caller's business.
"""

from __future__ import annotations

import _socket
import array
import errno
import fcntl
import os
import posix
import signal
import socket
import struct
import sys
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from ..addresses import V4
from ..errors import GcbError
from ..wire.messages import Endpoint as Endpoint
from ..wire.messages import Family, Id, Short

_T = TypeVar("_T")

MAX_MESSAGE = 8192
MAX_ARRIVAL = 256
START_SECONDS = 5.0
"""How long an interpreter may take until it has started; a tenth of a second is usual."""
WELCOME = b"+"
"""What an agent says on a process's own connection when it has seen it."""
NEWS = b"*"
"""What it says there when listeners have other addresses than before: ask again."""
_PEERCRED = struct.Struct("iII")
_MAX_FDS = 4
_FD_SIZE = array.array("i").itemsize
# Plain numbers, worked out once: arithmetic of enumerations costs as much as a system call.
_POP_FLAGS = int(socket.MSG_CMSG_CLOEXEC) | int(socket.MSG_DONTWAIT)
_PUSH_FLAGS = int(socket.MSG_NOSIGNAL) | int(socket.MSG_DONTWAIT)
_ONE_FD = socket.CMSG_SPACE(_FD_SIZE)


class DoorMessage(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Base of what passes the door."""


class Attach(DoorMessage, frozen=True):
    """A process is here; it stays as long as this connection is open. WELCOME comes back."""

    pid: int


Backlog = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Listen(DoorMessage, frozen=True):
    """Make a listener known; comes with both ends of its queue: where to take, where to put.

    ``cookie`` is the socket's SO_COOKIE, by which the kernel tells of its end. ``listens``
    is False while the program has only bound it and asked for its name.
    ``family`` is that of the addresses which it can show (addresses). Sent again with
    ``proxy`` and ``claim`` after the agent was restarted. If other sockets
    share the port, the answer names their listener, and comes with the ends of its queue.
    """

    listener: Id
    cookie: int
    bound: Endpoint
    wished: Annotated[int, Meta(ge=0, le=65535)]
    listens: bool
    backlog: Backlog
    proxy: Endpoint | None = None
    claim: bytes = b""
    family: Family = V4


class Adopt(DoorMessage, frozen=True):
    """Ask for the listener with this SO_COOKIE, inherited from a program that is no more.

    The answer comes with both ends of its queue, or says that it is not known.
    """

    cookie: int


class Ready(DoorMessage, frozen=True):
    """A listener that is known listens now, or with another backlog; answered like Find."""

    listener: Id
    cookie: int
    backlog: Backlog


class Forget(DoorMessage, frozen=True):
    """A socket that was only bound is used for something else: it is no listener."""

    listener: Id
    cookie: int


class Find(DoorMessage, frozen=True):
    """Ask what has become of a listener whose registration was not there in time."""

    listener: Id


class Dial(DoorMessage, frozen=True):
    """Make a connection to ``target`` by the best path there is.

    ``port`` is the one that the program has bound, by which the listener shall know it;
    ``broker`` the command port of that host, if it has said that it is one.
    """

    target: Endpoint
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    broker: Annotated[int, Meta(ge=0, le=65535)] = 0


class Bind(DoorMessage, frozen=True):
    """Make a UDP port known; the fields are Listen's. Answered by Bound."""

    listener: Id
    cookie: int
    bound: Endpoint
    wished: Annotated[int, Meta(ge=0, le=65535)]
    family: Family = V4


class Hold(DoorMessage, frozen=True):
    """Comes with the sibling of a port that Bind got a relay for; answered by Bound.

    The kernel gives the sibling what begins with ``magic``, and nothing else. With the answer
    comes the port's page of ways past the relay (wire.waypage).
    """

    listener: Id
    magic: Short


class Vacate(DoorMessage, frozen=True):
    """A UDP port is busy: let go of those whose sockets are gone. Answered by Bound."""


class AskWorld(DoorMessage, frozen=True):
    """Ask which hosts are brokers and which are public addresses of our gateway."""


class Listening(DoorMessage, frozen=True):
    """The answer to Listen and Find. ``public`` is None while nothing is registered.

    ``how`` is ``gcb`` or ``dpf``; ``error`` is an errno when the broker refused.
    """

    public: Endpoint | None
    claim: bytes = b""
    how: str = ""
    error: int = 0
    reason: str = ""
    listener: Id | None = None


class Bound(DoorMessage, frozen=True):
    """The answer to Bind and Hold. ``public`` is None where the port stays the kernel's.

    ``relay`` is where framed datagrams come from, None where there are none; ``hosts`` are
    those whose ports may be proxy addresses; ``error`` is an errno when one was refused.
    ``held`` tells that the agent has a sibling already; the page comes along then.
    """

    public: Endpoint | None
    relay: Endpoint | None = None
    hosts: list[str] = msgspec.field(default_factory=list)
    how: str = ""
    error: int = 0
    reason: str = ""
    held: bool = False


class Dialled(DoorMessage, frozen=True):
    """The answer to Dial: a descriptor comes along unless ``error`` or ``kernel`` is set.

    ``kernel`` is where the program's own socket should connect in the ordinary way;
    ``port`` is the one by which the listener knows the connector.
    """

    path: str = ""
    error: int = 0
    reason: str = ""
    kernel: Endpoint | None = None
    milliseconds: float = 0.0
    port: int = 0


class World(DoorMessage, frozen=True):
    """Hosts whose ports may be proxy addresses, and public hosts of our gateway."""

    brokers: list[str]
    publics: list[str]


class Arrival(msgspec.Struct, array_like=True, frozen=True):
    """Comes with one descriptor through a listener's queue; ``nudge`` is the nudge's port."""

    nudge: int
    peer: Endpoint


_ASKED = msgspec.msgpack.Decoder(
    Attach | Listen | Adopt | Ready | Forget | Find | Dial | AskWorld | Bind | Hold | Vacate
)
_ANSWERED = msgspec.msgpack.Decoder(Listening | Dialled | World | Bound)
_ARRIVED = msgspec.msgpack.Decoder(Arrival)
_ENCODE = msgspec.msgpack.Encoder().encode


class DoorError(GcbError):
    """The other side of the door is not ours, or speaks something else."""


def bind(name: str) -> _socket.socket | None:
    """Return the listening door; None when somebody else holds the name."""
    door = _socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        door.bind("\0" + name)
    except OSError:
        door.close()
        return None
    door.listen(256)
    return door


def connect(name: str) -> _socket.socket:
    """Return a connection to the agent.

    Raises ConnectionRefusedError when there is none, BlockingIOError when its queue is
    full, and DoorError when the name is held by another user.
    """
    conn = _socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        conn.setblocking(False)
        conn.connect("\0" + name)
        check_peer(conn)
    except (OSError, DoorError):
        conn.close()
        raise
    return conn


def check_peer(conn: _socket.socket) -> None:
    """Raise DoorError unless the other side runs as our user (SO_PEERCRED)."""
    raw = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(raw)
    if uid != os.getuid():
        raise DoorError(f"the door is held by uid {uid}, not by uid {os.getuid()}")


def send(conn: _socket.socket, message: DoorMessage, fds: tuple[int, ...] = ()) -> None:
    """Send one message; raises OSError when the other side is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    conn.sendmsg([_ENCODE(message)], rights, socket.MSG_NOSIGNAL)


def receive_question(conn: _socket.socket) -> tuple[DoorMessage | None, list[int]]:
    """Agent side: the next message and its descriptors; (None, []) when the peer is gone."""
    return _receive(conn, _ASKED)


def receive_answer(conn: _socket.socket) -> tuple[DoorMessage | None, list[int]]:
    """Program side: as receive_question."""
    return _receive(conn, _ANSWERED)


def _receive(
    conn: _socket.socket, decoder: msgspec.msgpack.Decoder[DoorMessage]
) -> tuple[DoorMessage | None, list[int]]:
    data, ancillary, flags, _ = conn.recvmsg(
        MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
    )
    fds = _fds_of(ancillary)
    if flags & socket.MSG_CTRUNC:
        # The kernel had no number free in this process for what came along, and dropped it.
        close_all(fds)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if not data:
        return None, fds
    return _decode(decoder, data, fds), fds


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes, fds: list[int]) -> _T:
    """Decode what came along with ``fds``, which are closed if it is garbage."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        close_all(fds)
        raise DoorError(f"not a message of this door: {error}") from error


def push(queue: _socket.socket, arrival: Arrival, fd: int) -> int:
    """Put a connection into a listener's queue; raises OSError when it is full or gone.

    Returns the octets of the queue that it takes.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    return queue.sendmsg([_ENCODE(arrival)], rights, _PUSH_FLAGS)


def pop(queue: _socket.socket) -> tuple[int, Arrival] | None:
    """Take the oldest connection out of a queue; None when it is empty. Raises DoorError."""
    try:
        data, ancillary, _, _ = queue.recvmsg(MAX_ARRIVAL, _ONE_FD, _POP_FLAGS)
    except BlockingIOError:
        return None
    fds = _fds_of(ancillary)
    return (fds[0], _decode(_ARRIVED, data, fds)) if fds else None


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    if len(ancillary) == 1 and len(ancillary[0][2]) == _FD_SIZE:
        return [int.from_bytes(ancillary[0][2], sys.byteorder)]  # nobody sends anything but rights
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody takes, now: gevent's os.close would wait for the hub."""
    for fd in fds:
        posix.close(fd)


def spawn(door: _socket.socket, environ: dict[str, str]) -> None:
    """Start the agent behind ``door``: own session, none of our descriptors, not our child.

    The process started here forks once and ends at once, so that no wait() of the program
    ever meets the agent; its word that it has done so is waited for. Raises OSError when no
    process can be started, or when it does not get that far within START_SECONDS.
    """
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    libraries = os.path.dirname(os.path.dirname(os.path.abspath(msgspec.__file__)))
    command = [_interpreter(), "-I", "-S", "-c", _BOOT, home, libraries]
    ours, childs = _socket.socketpair()
    try:
        ours.settimeout(START_SECONDS)  # the kernel's wait, which no patch reaches
        child = _spawn(command, environ, (door.fileno(), childs.fileno()))
        childs.close()
        try:
            word = ours.recv(1)
        except OSError:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _reap(child)
    finally:
        ours.close()
        childs.close()
    if not word:
        raise OSError(f"{command[0]} ended before it was an agent")


_BOOT = """
import os, sys
if os.fork():
    os.write(4, b"+")
    os._exit(0)
sys.path[:0] = sys.argv[1:]
from gcbpatch.agent.main import main
main()
"""


def _interpreter() -> str:
    """Return the Python to run the agent with; a frozen program would only start itself."""
    known = "" if getattr(sys, "frozen", False) else sys.executable
    python = os.environ.get("GCB_AGENT_PYTHON") or known
    if not python:
        raise OSError("no interpreter to run the agent: set GCB_AGENT_PYTHON")
    return python


def _spawn(command: list[str], environ: dict[str, str], given: tuple[int, ...]) -> int:
    """Start a process that has ``given`` from 3 on and nothing else; return its number."""
    opened: list[int] = []
    try:
        opened.append(os.open(os.devnull, os.O_RDWR))
        # A program may have closed its standard descriptors: ours must not be in their place.
        opened += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in given]
        actions = [(os.POSIX_SPAWN_DUP2, opened[0], number) for number in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(opened[1:], 3)]
        return os.posix_spawn(
            command[0], command, environ, file_actions=actions, setsid=True, setsigmask=[]
        )
    finally:
        close_all(opened)


def _reap(child: int) -> None:
    try:
        # Not os.waitpid: gevent's would keep the result for the program's next wait().
        posix.waitpid(child, 0)
    except ChildProcessError:
        # SIGCHLD is ignored, or a wait() of the program's was quicker: reaped either way.
        return

"""Trying the paths: the connector's race, and the listener's side of it.

Both sides walk the same list. The connector takes the best connection that is ready and
says GO on it; the listener's side hands over the one on which GO comes. It must never give
a program a connection on which the other side has not proved the rendezvous' secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire import auth
from ..wire.codec import Kind, build
from ..wire.messages import Call, Command, ConnectReply, Go, Join, Open, OpenReply, Path, PathKind
from . import paths, streams
from .broker import Broker
from .reception import Reception

CONNECT_SECONDS = 20.0
"""As long as a broker keeps a rendezvous."""

LATE_GO_SECONDS = 2.0
"""How long GO may come after the connector has left the relay for a better path."""

Attempt = asyncio.Task[socket.socket]
Arrivals = asyncio.Queue[socket.socket]
FAILURES = (OSError, RefusedError, RemoteProtocolError, TimeoutError)


def go_frame(rendezvous: bytes) -> bytes:
    """The frame after which the program's bytes follow."""
    return build(Kind.REQUEST, Command.GO, 0, Go(rendezvous))


async def join(broker: Broker, rendezvous: bytes, secret: bytes, listening: bool) -> socket.socket:
    """Dial the relay and wait until it has the other half."""
    sock = await streams.dial(broker.relay)
    label = "join listener" if listening else "join connector"
    message = Join(rendezvous, listening, auth.proof(secret, label, rendezvous))
    await _or_close(sock, streams.ask(sock, Command.JOIN, message, broker.key))
    return sock


async def open_at(path: Path, rendezvous: bytes, secret: bytes, listening: bool) -> socket.socket:
    """Dial another agent's port at the first of the path's addresses that takes us."""
    problem: Exception = ConnectionRefusedError("the path names no address")
    for endpoint in path.addresses:
        try:
            return await _open(endpoint.address, rendezvous, secret, listening)
        except FAILURES as error:
            problem = error
    raise problem


async def _open(
    address: tuple[str, int], rendezvous: bytes, secret: bytes, listening: bool
) -> socket.socket:
    sock = await streams.dial(address)
    message = Open(rendezvous, listening, auth.proof(secret, "open dialler", rendezvous))
    reply = await _or_close(sock, streams.ask(sock, Command.OPEN, message, None))
    if not isinstance(reply, OpenReply) or not auth.check_proof(
        secret, "open acceptor", rendezvous, reply.proof
    ):
        sock.close()
        raise RemoteProtocolError(Status.NOT_AUTHORIZED, "who answered has no right token")
    return sock


def _dial(
    path: Path, broker: Broker, rendezvous: bytes, secret: bytes, *, listening: bool
) -> Coroutine[Any, Any, socket.socket]:
    """The step that makes this side's connection for one path."""
    if path.kind is PathKind.RELAYED:
        return join(broker, rendezvous, secret, listening)
    return open_at(path, rendezvous, secret, listening)


async def _or_close(sock: socket.socket, step: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await step
    except BaseException:
        sock.close()
        raise


async def race(
    broker: Broker, reception: Reception, arranged: ConnectReply
) -> tuple[PathKind, socket.socket]:
    """Connector: return the best connection and its kind, with GO said on it.

    Raises what the best path failed with when all have failed.
    """
    name, secret = arranged.rendezvous, arranged.secret
    async with reception.expect(name, secret, listening=True) as arrivals, _attempts() as attempts:
        for path in paths.dialled(arranged.paths, paths.DIALLED_BY_CONNECTOR):
            step = _dial(path, broker, name, secret, listening=False)
            attempts[asyncio.ensure_future(step)] = path.kind
        if paths.expects_open(arranged.paths, frozenset({PathKind.REVERSE})):
            attempts[asyncio.ensure_future(arrivals.get())] = PathKind.REVERSE
        winner = await _choose(attempts)
        kind = attempts.pop(winner)
        sock = winner.result()
    await asyncio.get_running_loop().sock_sendall(sock, go_frame(name))
    return kind, sock


@contextlib.asynccontextmanager
async def _attempts() -> AsyncIterator[dict[Attempt, PathKind]]:
    """A dict of attempts; those that are still in it at the end are withdrawn."""
    attempts: dict[Attempt, PathKind] = {}
    try:
        yield attempts
    finally:
        for attempt in attempts:
            attempt.cancel()
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(result, socket.socket):
                result.close()


async def _choose(attempts: dict[Attempt, PathKind]) -> Attempt:
    """Wait for the best attempt, as paths.grace says; raises when none succeeds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline = began + CONNECT_SECONDS
    best: Attempt | None = None
    while True:
        pending = {a for a in attempts if not a.done()}
        best = _best_of(attempts)
        if best is not None and paths.nothing_better(
            attempts[best], (attempts[a] for a in pending)
        ):
            return best
        if best is not None:
            deadline = min(deadline, loop.time() + paths.grace(loop.time() - began))
        if not pending or loop.time() >= deadline:
            return best or _failed(attempts)
        await asyncio.wait(
            pending, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED
        )


def _best_of(attempts: dict[Attempt, PathKind]) -> Attempt | None:
    good = [a for a in attempts if a.done() and not a.cancelled() and a.exception() is None]
    return min(good, key=lambda a: paths.RANK[attempts[a]], default=None)


def _failed(attempts: dict[Attempt, PathKind]) -> Attempt:
    """Raise what the relay, which should always work, failed with; else a time-out."""
    for attempt, kind in attempts.items():
        if kind is PathKind.RELAYED and attempt.done():
            return attempt
    raise TimeoutError("no path to the listener was ready in time")


async def answer(
    broker: Broker, reception: Reception, call: Call
) -> tuple[PathKind, socket.socket]:
    """Listener's side: return the connection that the program shall get."""
    if not call.commit:
        return PathKind.RELAYED, await join(broker, call.rendezvous, call.secret, True)
    name, secret = call.rendezvous, call.secret
    async with reception.expect(name, secret, listening=False) as arrivals, _attempts() as attempts:
        for path in paths.dialled(call.paths, paths.DIALLED_BY_LISTENER):
            step = _dial(path, broker, name, secret, listening=True)
            attempts[asyncio.ensure_future(_wait_go(step, name))] = path.kind
        if paths.expects_open(call.paths, paths.OPENED_BY_CONNECTOR):
            attempts[asyncio.ensure_future(_arrival_with_go(arrivals, name))] = PathKind.DIRECT
        winner = await _first(attempts)
        kind = attempts.pop(winner)
        return kind, winner.result()


async def _wait_go(step: Coroutine[Any, Any, socket.socket], rendezvous: bytes) -> socket.socket:
    sock = await step
    said = await _or_close(sock, streams.ready_bytes(sock, go_frame(rendezvous)))
    if not said:
        sock.close()
        raise RemoteProtocolError(Status.MALFORMED, "something else than GO")
    return sock


async def _arrival_with_go(arrivals: Arrivals, rendezvous: bytes) -> socket.socket:
    """Of all connections that were opened to us, the one on which the connector says GO."""
    async with _attempts() as waiting:
        getter: Attempt | None = None
        while True:
            if getter is None:
                getter = asyncio.ensure_future(arrivals.get())
                waiting[getter] = PathKind.DIRECT
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [a for a in waiting if a.done() and a is not getter]:
                del waiting[attempt]
                if attempt.exception() is None:
                    return attempt.result()
            if getter.done():
                del waiting[getter]
                step = _wait_go(_given(getter.result()), rendezvous)
                waiting[asyncio.ensure_future(step)] = PathKind.DIRECT
                getter = None


async def _given(sock: socket.socket) -> socket.socket:
    return sock


def _is_over(attempt: Attempt) -> bool:
    """Whether the broker has said that nobody waits there: chosen otherwise, or withdrawn."""
    if not attempt.done() or attempt.cancelled():
        return False
    error = attempt.exception()
    return isinstance(error, RefusedError) and error.status is Status.UNKNOWN


async def _first(attempts: dict[Attempt, PathKind]) -> Attempt:
    """Wait for the first attempt that succeeds; raises when none does."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_SECONDS
    while True:
        best = _best_of(attempts)
        if best is not None:
            return best
        pending = [a for a in attempts if not a.done()]
        if not pending or loop.time() >= deadline:
            return _failed(attempts)
        if any(map(_is_over, attempts)):
            deadline = min(deadline, loop.time() + LATE_GO_SECONDS)
        await asyncio.wait(
            pending, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED
        )

"""How a UDP socket gets its proxy address: at bind(), or with its descriptor.

Only sockets that a program binds itself are registered. One whose broker or gateway knows no
UDP stays what the kernel made of it, without a word. This room must never fail a bind() that
the kernel has done for want of an agent.
"""

from __future__ import annotations

import _socket
import errno
import functools
import logging
import os
import socket
from typing import Any

from ..addresses import ANY, V4, V6, Address, is_multicast, shown
from ..wire import datagrams
from . import demux
from .datagram import Datagram
from .demux import Label
from .flow import Flow
from .later import AgentGone, door
from .layer import LAYER, wants_identity
from .link import Link
from .raw import Raw
from .table import Names, cookie_of
from .target import family_of
from .ways import WayPage

log = logging.getLogger("gcbpatch")

_base = _socket.socket


def bind(sock: Raw, address: Any) -> None:
    """Bind and register; raises what bind() of a plain socket does."""
    try:
        _base.bind(sock, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _vacate():
            raise
        _base.bind(sock, address)
    if LAYER.link is not None and sock._state is None and _may_register(LAYER.link, sock):
        _register(LAYER.link, sock)


def found(sock: Raw) -> None:
    """A socket object was made for a descriptor: it may be registered already."""
    if sock._state is None and sock.family in (socket.AF_INET, socket.AF_INET6):
        label = demux.label_of(sock)
        if label is not None:
            _adopt(sock, label, frozenset())
    elif type(sock._state) is Flow:
        sock.__class__ = Datagram
        sock._state.sockets.add(sock)


def _again(flow: Flow) -> None:
    """The agent is another one: register the port with it, and share it again."""
    sock = next((sock for sock in flow.sockets if sock.fileno() >= 0), None)
    if sock is not None and LAYER.link is not None:
        _share_again(LAYER.link, sock, flow)


def _share_again(link: Link, sock: _socket.socket, flow: Flow) -> None:
    label, bound = flow.label, _base.getsockname(sock)
    flow.edition = link.edition()
    asked = door.Bind(
        label.listener,
        cookie_of(sock),
        door.Endpoint.of(bound),
        label.public[1],
        V6 if flow.form.v6 else V4,
    )
    try:
        answer, fds = link.ask_for_descriptors(asked)
        _take_page(flow, fds)
        if answer.public is not None and not answer.held:
            _move(sock, flow, answer)
            answer = _hold(link, sock, flow)
        if answer.public is None:
            log.info("UDP port %d is not registered again: %s", bound[1], answer.reason)
        else:
            _move(sock, flow, answer)
    except (AgentGone, OSError) as error:
        log.info("UDP port %d is not registered again: %s", bound[1], error)


def _move(sock: _socket.socket, flow: Flow, answer: door.Bound) -> None:
    """Let a port have the address and the relay that the agent tells, or its own and none."""
    assert answer.public is not None
    before, now = flow.label.public, answer.public.address
    flow.moved(sock, now, answer.relay.address if answer.relay is not None else demux.NOWHERE)
    if now != before:
        LAYER.renamed(before, None if flow.is_own else now)


def _vacate() -> bool:
    """Have the agent let go of ports whose sockets are gone; False if there is no agent."""
    link = LAYER.link
    try:
        if link is None:
            return False
        door.connect(link.name).close()
        link.ask(door.Vacate())
    except AgentGone:
        return False
    except (OSError, door.DoorError):
        return False
    return True


def _register(link: Link, sock: Raw) -> None:
    bound = _base.getsockname(sock)
    listener = os.urandom(16)
    try:
        family = V6 if sock.family == socket.AF_INET6 else V4
        asked = door.Bind(listener, cookie_of(sock), door.Endpoint.of(bound), bound[1], family)
        answer: door.Bound = link.ask(asked)
    except AgentGone as error:
        link.warn_once("no agent: %s", error)
        return
    if answer.error:
        reason = f"{os.strerror(answer.error)} ({answer.reason})"
        raise OSError(answer.error, reason)
    if answer.public is None:
        log.info("UDP port %d stays the kernel's: %s", bound[1], answer.reason)
    elif answer.relay is None:
        _name(link, sock, answer.public.address)
    else:
        magic = datagrams.magic_of(os.urandom(datagrams.MAGIC_SIZE))
        label = Label(magic, listener, answer.public.address, answer.relay.address)
        _relay(link, sock, label, frozenset(answer.hosts))


def _name(link: Link, sock: Raw, public: Address) -> None:
    """A mapping of the gateway: nothing but the name is ours."""
    if link.config.identity != "local":
        sock._state = Names(shown(public, sock.family == socket.AF_INET6), None)
        LAYER.table.put(sock, sock._state)
        sock._note_host(link, public[0])


def _relay(link: Link, sock: Raw, label: Label, hosts: frozenset[str]) -> None:
    demux.attach(sock, label)
    _adopt(sock, label, hosts)
    try:
        answer = _hold(link, sock, sock._state)
        problem = "" if answer.public is not None else answer.reason or "no reason given"
        if answer.public is not None:
            _move(sock, sock._state, answer)
    except (AgentGone, OSError) as error:
        problem = str(error)
    if problem:
        log.info("UDP port %d stays the kernel's: %s", _base.getsockname(sock)[1], problem)
        _give_up(sock)


def _hold(link: Link, sock: _socket.socket, flow: Flow) -> door.Bound:
    """Give the agent a sibling, get the page of ways; return the agent's answer.

    Raises AgentGone and OSError.
    """
    label = flow.label
    sibling = demux.sibling_of(sock, label.magic)
    try:
        asked = door.Hold(label.listener, label.magic)
        answer, fds = link.ask_for_descriptors(asked, (sibling.fileno(),))
    finally:
        sibling.close()
    _take_page(flow, fds)
    assert isinstance(answer, door.Bound)
    return answer


def _take_page(flow: Flow, fds: list[int]) -> None:
    """Map the page that came along, if one did. Raises OSError."""
    try:
        flow.ways = WayPage(fds[0]) if fds else flow.ways
    finally:
        door.close_all(fds)


def _adopt(sock: Raw, label: Label, hosts: frozenset[str]) -> None:
    link = LAYER.link
    ports = frozenset(port for _, port in link.config.brokers) if link else frozenset()
    sock._state = Flow(label, hosts, ports)
    sock._state.sockets.add(sock)
    sock._state.edition = link.edition() if link is not None else None
    sock._state.again = functools.partial(_again, sock._state)
    sock.__class__ = Datagram
    LAYER.table.put(sock, sock._state)
    if link is not None and not sock._state.is_own:
        sock._note_host(link, label.public[0])


def _give_up(sock: Raw) -> None:
    demux.detach(sock)
    LAYER.table.drop(cookie_of(sock))
    sock._state = None
    sock.__class__ = Raw


def _is_of_its_family(sock: Raw) -> bool:
    """Whether its own addresses are of its family, and mean something beyond one link."""
    own = V6 if sock.family == socket.AF_INET6 else V4
    return family_of(sock) in (own, ANY)


def _may_register(link: Link, sock: Raw) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if sock.proto not in (0, socket.IPPROTO_UDP) or not _is_of_its_family(sock):
        return False
    host, port = _base.getsockname(sock)[:2]
    if not port or not wants_identity(link, host) or is_multicast(host):
        return False
    if _base.getsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT):
        return False  # the port is to be shared
    return not demux.has_filter(sock)  # or the program has one of its own

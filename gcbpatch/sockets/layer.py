"""What all sockets of this process share: configuration, tables, and what a fork means to them.

It must never look at a single socket's calls: that is for the room of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..addresses import Address, is_loopback
from ..routefile import RouteFile
from ..routes import Routes, Way
from .connector import Connector
from .gate import Gate
from .known import Known
from .later import Later
from .link import Link
from .listener import Listener
from .options import Options
from .table import Names, Table, Twins

NO_ROUTES = Routes()


def _everything(_address: Any) -> bool:
    """Where nothing is configured all connects are the kernel's."""
    return True


class Layer:
    """The patch's state in this process: set once by patching, read by every socket."""

    def __init__(self) -> None:
        self.table = Table()
        self.twins = Twins()
        self.accepted = -1
        """The descriptor that came last out of an accept()."""
        self.named: dict[int, tuple[Names, Options]] = {}
        """What accept() knows of the descriptors that are to become sockets next."""
        self.link: Link | None = None
        self.connector: Connector | None = None
        self.known = Known(NO_ROUTES)
        self.holds: Callable[[Any], bool] = _everything
        """Whether connects to an address are known to be the kernel's."""
        self.gate: Gate | None = None
        """Where there are routes that may deny."""
        self.hosts: set[str] = set()
        """Hosts of our listeners' public addresses."""
        self.guard_sending: Callable[[bool], None] = _nothing
        """Has datagrams pass the gate, or not any more; the room of Raw sets it."""
        self.ports: Any = None
        """What registers UDP sockets: the room above this one, loaded with the first of them."""

    def configure(self, link: Link | None, routes: Routes | RouteFile = NO_ROUTES) -> None:
        """Begin to work for ``link``, or not at all with None, by ``routes``."""
        self.gate = Gate(routes) if routes.denies else None
        self.guard_sending(self.gate is not None)
        self.link = link
        self.known = Known(routes)
        self.connector = Connector(link, self.known) if link is not None else None
        is_plain = link is None and self.gate is None
        self.holds = _everything if is_plain else self.known.holds
        self.ports = Later("gcbpatch.sockets.ports") if link is not None else None
        if link is not None:
            # A forked child is there for the listeners, too, should its parent end; the agent
            # that they were registered with may be gone already.
            link.on_gone = link.on_fork = self.listen_again
            link.on_news = self.look_again

    def before_fork(self) -> None:
        """Called by os.fork()."""
        if self.link is not None:
            self.link.before_fork()

    def after_fork_in_parent(self) -> None:
        """Called by os.fork()."""
        if self.link is not None:
            self.link.after_fork_in_parent()

    def listen_again(self) -> None:
        """An agent learns of every listener and port that is left here, if it does not know."""
        self.table.prune()
        for state in self.table.states():
            if hasattr(state, "again"):
                state.again()

    def look_again(self) -> None:
        """The agent has news: listeners may have other names, and brokers other hosts."""
        if self.connector is not None:
            self.connector.expire()
        self.table.prune()
        for state in self.table.states():
            if isinstance(state, Listener):
                before = state.public
                if state.identity() is not None and state.public != before:
                    self.renamed(before, state.foreign)
            elif hasattr(state, "again"):
                state.again()

    def renamed(self, before: Address | None, now: Address | None) -> None:
        """A listener has another address than before; its old host may be nobody's now."""
        if now is not None and not is_loopback(now[0]):
            self.hosts.add(now[0])
        if before is not None and not any(_stands_at(s, before[0]) for s in self.table.states()):
            self.hosts.discard(before[0])

    def leave(self) -> None:
        """Begin to work for nobody: the program is no longer patched."""
        if self.link is not None:
            self.link.leave()
        self.configure(None)
        self.hosts.clear()


def _nothing(_wanted: bool) -> None:
    """There are no sockets of ours yet."""


def _stands_at(state: Any, host: str) -> bool:
    """Whether a listener, or a port with its label, has a public address at ``host``."""
    public = getattr(getattr(state, "label", state), "public", None)
    return public is not None and public[0] == host


LAYER = Layer()
# They cannot be taken back, and do nothing without a link.
os.register_at_fork(before=LAYER.before_fork, after_in_parent=LAYER.after_fork_in_parent)


def wants_identity(link: Link, host: str) -> bool:
    """Whether a socket bound to ``host`` gets a public address: not loopback, unless routed."""
    way = link.config.routes.way_at(host)
    if way is not None:
        return way in (Way.GCB, Way.DPF)
    wanted = link.config.gateway is not None or link.config.register != "never"
    return wanted and not is_loopback(host)

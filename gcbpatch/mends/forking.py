"""os.fork(): in a child only the thread that forked goes on, as fork(2) has it.

Under gevent threads are greenlets, and a forked child has them all: one that waits for a
connection goes on there, too, when it comes, and takes bytes or connections that are its
parent's. Here they are left where they stand. Greenlets that a program makes of gevent itself
are not touched: it knows what it does.

It must never unwind what it leaves behind: a `finally` would close what is the parent's.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

from .journal import Journal


class _Hook:
    """What at-fork hooks, which stay for ever, look at."""

    registered = False
    on = False
    alone = True
    """Whether the process had one thread when it forked."""


_behind: list[Any] = []
"""Whoever is left behind, and what keeps a loop from ending: kept from being collected."""


def mend(hub_module: ModuleType, journal: Journal) -> None:
    """Have every fork leave the other threads' greenlets behind; where gevent makes threads."""
    from gevent import monkey

    if not monkey.is_object_patched("_thread", "start_new_thread"):
        return
    journal.set(_Hook, "on", True)
    if not _Hook.registered:
        _Hook.registered = True
        os.register_at_fork(before=_before, after_in_child=_in_child)


def _before() -> None:
    _Hook.alone = threading.active_count() == 1


def _in_child() -> None:
    from gevent._hub_local import get_hub_if_exists

    hub = get_hub_if_exists() if _Hook.on and not _Hook.alone else None
    if hub is not None:
        _leave_behind(hub)


def _leave_behind(hub: Any) -> None:
    """Leave all threads but this; nothing is left if this is no thread's greenlet."""
    from gevent import getcurrent

    current = getcurrent()
    main = hub.parent
    if current is not main and not _is_thread(current):
        return
    objects = gc.get_objects()
    others = [one for one in (main, *objects) if one is not current and _is_thread(one, main)]
    _behind.extend(others)
    _stop(objects, {id(one) for one in others})
    if current is not main:
        _end_with(current, hub)


def _is_thread(one: Any, main: Any = None) -> bool:
    """Whether this is the greenlet of a thread that lives."""
    from gevent import Greenlet

    if not issubclass(type(one), Greenlet):
        return one is main and main is not None
    runs = getattr(one, "_run", None)
    return isinstance(getattr(runs, "__self__", None), threading.Thread) and not one.dead


def _stop(objects: Iterable[Any], others: set[int]) -> None:
    """Stop what would wake any of the others: what they wait for, and what has come already."""
    from gevent.libev.corecext import callback, watcher

    kinds = _waited_for()
    events = {
        id(one) for one in objects if issubclass(type(one), kinds) and _unlink(one, others)
    }
    for one in objects:
        if not issubclass(type(one), (watcher, callback)) or one.callback is None:
            continue
        if _wakes(one.callback, one.args or (), others, events):
            one.stop()


def _waited_for() -> tuple[type, ...]:
    """The classes of events, locks and queues."""
    from gevent._abstract_linkable import AbstractLinkable

    queues = sys.modules.get("gevent.queue")
    names = ("Queue", "SimpleQueue", "Channel") if queues else ()
    return AbstractLinkable, *(getattr(queues, name) for name in names)


def _unlink(event: Any, others: set[int]) -> bool:
    """Take the others from those who wait for one of these; whether there were any."""
    found = False
    for links in gc.get_referents(event):
        if type(links) in (list, deque):
            mine = [link for link in links if not _leads_to(link, others)]
            if len(mine) < len(links):
                found = True
                links.clear()
                links.extend(mine)
    return found


def _wakes(call: Any, args: tuple[Any, ...], others: set[int], events: set[int]) -> bool:
    """Whether a watcher's callback ends with one of the others, by an event or without."""
    from gevent.timeout import Timeout

    owner = _owner(call)
    if isinstance(owner, Timeout):
        return bool(args) and id(args[0]) in others
    waited = (getattr(owner, name, None) for name in ("event", "_ready"))
    return _leads_to(call, others) or any(id(one) in events for one in waited)


def _leads_to(call: Any, others: set[int]) -> bool:
    """Whether this is the switch of one of the others, or a waiter that stands for it.

    Nothing else is asked anything: it may be what the program has put into a queue.
    """
    from gevent._waiter import Waiter

    owner = call if type(call) is Waiter else _owner(call)
    return id(owner.greenlet if type(owner) is Waiter else owner) in others


def _owner(call: Any) -> Any:
    """The object that a method, or a function inside of one, belongs to; None for others."""
    if type(call) in (MethodType, BuiltinMethodType):
        return call.__self__
    names = call.__code__.co_freevars if type(call) is FunctionType else ()
    return call.__closure__[names.index("self")].cell_contents if "self" in names else None


def _end_with(current: Any, hub: Any) -> None:
    """Have the process live as long as its only thread, and not a moment longer."""
    alive = hub.loop.async_()
    alive.start(_nothing)
    _behind.append(alive)
    current.link(lambda _: os._exit(0))


def _nothing() -> None:
    """A loop in which nobody waits for anything would end in the main thread's greenlet."""

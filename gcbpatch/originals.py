"""gevent's monkey-patching with a record of what it changed, so that it can be taken back.

gevent keeps originals only of names that it replaced; locks, the main thread and classes it
changes in place. So everything that it may touch is looked at before and after. It must never
change anything that gevent did not.
"""

from __future__ import annotations

import _socket
import logging
import os
import sys
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

from .mends.journal import Journal

_MISSING = object()

MODULES = (
    *("_thread", "_threading_local", "concurrent.futures.thread", "logging", "os", "queue"),
    *("select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time"),
)
"""The modules that gevent's patch_all changes; held to in tests/loopback/test_patching_undo.py."""


def patch(journal: Journal, flags: dict[str, bool]) -> dict[int, tuple[Any, Any]]:
    """Call gevent.monkey.patch_all, and note how to undo it in ``journal``.

    Returns which public function or class was replaced by which, by the id of the old one.
    """
    from gevent import monkey

    _load()
    places = _places()
    before = {id(place): dict(vars(place)) for place in places}
    saved = {name: dict(items) for name, items in monkey.saved.items()}
    threads = _Threads()
    _without_second_hooks(lambda: monkey.patch_all(**flags))
    journal.add(lambda: _put_saved(monkey.saved, saved))
    journal.add(threads.put_back)
    journal.add(_silence_fork_hooks)
    replaced: dict[int, tuple[Any, Any]] = {}
    for place in places:
        _note(journal, place, before[id(place)], replaced)
    # Who has taken the kernel's own socket class wants that one.
    replaced.pop(id(_socket.socket), None)
    return replaced


def _load() -> None:
    """Have loaded what gevent loads while it patches, or it would be new and not changed."""
    import concurrent.futures.thread  # noqa: F401

    import gevent.queue
    import gevent.select
    import gevent.selectors
    import gevent.signal
    import gevent.ssl
    import gevent.subprocess
    import gevent.threading  # noqa: F401


def _places() -> list[Any]:
    """The modules, and classes in them, whose attributes gevent sets."""
    import selectors

    found: list[Any] = [sys.modules[name] for name in MODULES if name in sys.modules]
    return [*found, selectors.SelectSelector, selectors.PollSelector]


def _note(
    journal: Journal, place: Any, before: dict[str, Any], replaced: dict[int, tuple[Any, Any]]
) -> None:
    after = vars(place)
    for name in {*before, *after}:
        old, new = before.get(name, _MISSING), after.get(name, _MISSING)
        if old is not new:
            journal.add(_undo(place, name, old, new))
            # A private name may stand for something else: threading._CRLock becomes None.
            if callable(old) and callable(new) and not name.startswith("_"):
                replaced[id(old)] = old, new


def _undo(place: Any, name: str, old: Any, new: Any) -> Callable[[], None]:
    def undo() -> None:
        # What the program has set itself in the meantime is the program's.
        if vars(place).get(name, _MISSING) is not new:
            return
        if old is _MISSING:
            delattr(place, name)
        else:
            setattr(place, name, old)

    return undo


def _put_saved(saved: dict[str, Any], before: dict[str, Any]) -> None:
    saved.clear()
    saved.update(before)


class _Threads:
    """The threads and their locks as they were: gevent changes these objects in place."""

    def __init__(self) -> None:
        self._main = threading.main_thread()
        self._attributes = {thread: dict(vars(thread)) for thread in threading.enumerate()}
        self._active = dict(threading._active)  # type: ignore[attr-defined]
        handlers = (reference() for reference in logging._handlerList)  # type: ignore[attr-defined]
        self._locks = {h: h.lock for h in handlers if h is not None}

    def put_back(self) -> None:
        """Make threads and handlers of logging what they were; after the modules."""
        active = threading._active  # type: ignore[attr-defined]
        active.clear()
        for ident, thread in self._active.items():
            if thread is self._main or thread.is_alive():
                active[ident] = thread
        for thread, attributes in self._attributes.items():
            self._restore(thread, attributes)
        threading._dangling.add(self._main)  # type: ignore[attr-defined]
        for reference in logging._handlerList:  # type: ignore[attr-defined]
            self._unlock(reference())

    def _restore(self, thread: threading.Thread, attributes: dict[str, Any]) -> None:
        """Only what gevent sets: a thread's name, for one, may be new."""
        names = ("_ident", "_tstate_lock", "_handle", "_os_thread_handle", "_after_fork", "join")
        mine = vars(thread)
        for name in (*names, "_greenlet", "_gevent_real_tstate_lock", "_Thread__ident"):
            if name in attributes:
                mine[name] = attributes[name]
            else:
                mine.pop(name, None)

    def _unlock(self, handler: logging.Handler | None) -> None:
        if handler is None:
            return
        if handler in self._locks:
            handler.lock = self._locks[handler]
        else:
            handler.createLock()


def _hooks() -> tuple[FunctionType, ...]:
    from gevent.threading import _ForkHooks

    return _ForkHooks.before_fork_in_parent, _ForkHooks.after_fork_in_child


def _nothing(self: object) -> None:
    """What a silenced hook does."""


_fork_hooks: list[Any] = []
"""The code of gevent's hooks while they are silenced."""


def _silence_fork_hooks() -> None:
    """Hooks of os.register_at_fork stay for ever: gevent's are made to do nothing."""
    hooks = _hooks()
    if not _fork_hooks:
        _fork_hooks.extend(hook.__code__ for hook in hooks)
    for hook in hooks:
        hook.__code__ = _nothing.__code__


def _without_second_hooks(patch_all: Callable[[], object]) -> None:
    """Patch; where gevent's hooks are there from the last time, wake them instead."""
    if not _fork_hooks:
        patch_all()
        return
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: None
    try:
        patch_all()
    finally:
        os.register_at_fork = register
    for hook, code in zip(_hooks(), _fork_hooks, strict=True):
        hook.__code__ = code
    _fork_hooks.clear()

"""Puts a program on DPF and GCB: gevent's patches, with our layer under its sockets.

It must never run at import, and never patch a daemon or an agent.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

from . import early, mends, originals
from .config import ROUTES_TEXT, ClientConfig, client_config, to_environ
from .logs import FILE_VARIABLE, log_into
from .mends import children
from .mends.journal import Journal
from .tree import AGENT_VARIABLE, CLIENT_VARIABLE, new_name

log = logging.getLogger("gcbpatch")

TESTED_GEVENT = "26.9"


@dataclass
class _State:
    """What this process was last patched with, and how to take all of it back."""

    settings: ClientConfig | None = None
    flags: dict[str, bool] | None = None
    journal: Journal = field(default_factory=Journal)
    replaced: early.Replaced = field(default_factory=dict)


_state = _State()


def patch_all(
    broker: str | list[str] | None = None,
    dpf: str | None = None,
    token: str | None = None,
    routes: str | list[str] | None = None,
    config: str | None = None,
    **gevent_flags: bool,
) -> None:
    """Patch this program; what is not given comes from the environment and GCB_CONFIG.

    ``broker`` and ``dpf`` are ``host[:port]``, ``token`` the token itself, ``routes`` a
    routing table's file or a list of routes (see gcbpatch.routes), ``config`` a TOML
    file; the other keywords are gevent.monkey.patch_all's. Raises ConfigError when a setting
    is wrong, before anything is changed.

    It belongs in the first line. Later, names that modules have imported already are bound
    again; open sockets, running threads and classes derived from patched ones stay as they
    are, which one warning says. Called again with nothing new it does nothing; with other
    settings, sockets made from then on use these, and listeners keep their broker; with
    other gevent flags, what was patched stays so and the rest is added, as gevent does and
    warns. The same holds after a gevent.monkey.patch_all() of somebody else's. Without
    gevent's threads (``thread=False``) every native thread waits in a hub of its own; without
    its sockets (``socket=False``) nothing is brokered, which a warning says. In a thread that
    is not the main thread it works, with gevent's warning that the main thread cannot be
    joined.
    """
    settings = client_config(
        os.environ, broker=broker, dpf=dpf, token=token, routes=routes, config=config
    )
    settings.check()
    if _state.flags != gevent_flags:
        _patch_gevent(gevent_flags)
    if _state.settings != settings:
        _configure(settings)
    _state.settings, _state.flags = settings, gevent_flags
    _tell_children(settings, gevent_flags)


def unpatch_all() -> None:
    """Take back everything that patch_all did; meant for tests. Without it, do nothing.

    Modules and their classes, the environment, logging, the main thread and names that were
    bound again are what they were before; patch_all() works again afterwards. What exists
    stays what it is: sockets, locks and queues made under the patch are gevent's, threads
    started under it run only while something waits in gevent's hub, and so do classes derived
    from patched ones. gevent's hub and its modules stay loaded, and at-fork hooks registered,
    though silent. A child forked or spawned under the patch stays patched.
    """
    _state.journal.roll_back()
    early.bind_back(_state.replaced)
    _state.replaced = {}
    _state.settings = _state.flags = None
    children.HOW.clear()


def reach_subprocesses() -> None:
    """Have Python subprocesses patched, too, by a sitecustomize that they find first.

    Those started with -I, -E or -S, or without our environment, are not reached.
    """
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reach")
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != folder]
    _set_environ({"PYTHONPATH": os.pathsep.join([folder, *paths])})


def _patch_gevent(flags: dict[str, bool]) -> None:
    before = early.Before()
    first = _state.flags is None
    _hook_sockets(flags)
    replaced = originals.patch(_state.journal, flags)
    if first:
        functions = vars(os).copy()
        mends.install(_state.journal)
        replaced = early.mended(replaced, functions, vars(os))
    _state.replaced |= replaced
    early.bind_again(replaced, _state.journal)
    before.warn(replaced)


def _hook_sockets(flags: dict[str, bool]) -> None:
    """Put our layer under gevent's sockets, before anything makes one."""
    import gevent

    if not gevent.__version__.startswith(TESTED_GEVENT + "."):
        log.warning("gevent %s is not among the tested %s.*", gevent.__version__, TESTED_GEVENT)
    import gevent.socket

    if flags.get("ssl", True):
        import gevent.ssl

    from .sockets.raw import Raw

    tls: Any = sys.modules.get("gevent.ssl")
    if tls is not None and not issubclass(tls._contextawaresock, Raw):
        _state.journal.set(tls, "_contextawaresock", _on_top_of(Raw, tls._contextawaresock))
    if gevent.socket.socket._gevent_sock_class is not Raw:
        _state.journal.set(gevent.socket.socket, "_gevent_sock_class", Raw)


def _on_top_of(base: Any, cls: type) -> type:
    """Make ``cls`` anew with another base: gevent.ssl is imported before we hook in."""
    own: dict[str, Any] = {
        name: value for name, value in vars(cls).items() if name not in ("__weakref__", "_sslsock")
    }

    def __init__(self: Any, family: int, type: int, proto: int, fileno: Any, wref: Any) -> None:
        base.__init__(self, family, type, proto, fileno)
        self._sslsock = wref

    own["__init__"] = __init__
    return type(cls.__name__, (base,), own)


def _configure(settings: ClientConfig) -> None:
    """Give the layer its agent, and children the same settings and the same agent."""
    from .sockets.layer import LAYER
    from .sockets.link import Link

    _keep_logger()
    _log_to(os.environ.get(FILE_VARIABLE, ""), settings.log)
    _state.journal.add(LAYER.leave)
    if not settings.active:
        LAYER.configure(None, settings.routes)
        return
    _warn_of_plain_sockets()
    _set_environ(dict(to_environ(settings)))
    _set_environ({"GCB_ROUTES": None})  # its text goes to children: a file may be gone by then
    tree = os.environ.get(AGENT_VARIABLE) or new_name()
    client = os.environ.get(CLIENT_VARIABLE) or os.urandom(16).hex()
    _set_environ({AGENT_VARIABLE: tree, CLIENT_VARIABLE: client})
    LAYER.configure(Link(settings, f"{tree}.{_mark_of(settings)}"), settings.routes)


def _warn_of_plain_sockets() -> None:
    from gevent import monkey

    if not monkey.is_module_patched("socket"):
        log.warning("patch_all(socket=False): sockets stay the kernel's, nothing is brokered")


def _set_environ(variables: dict[str, str | None]) -> None:
    """Set variables, or take those away that are None; the journal has what they were."""
    before = {name: os.environ.get(name) for name in variables}
    _put_environ(variables)
    _state.journal.add(lambda: _put_environ(before))


def _put_environ(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _keep_logger() -> None:
    """Have the journal put our logger back to what it is now."""
    logger = logging.getLogger("gcbpatch")
    level, handlers = logger.level, list(logger.handlers)

    def put_back() -> None:
        logger.setLevel(level)
        for handler in logger.handlers[:]:
            if handler not in handlers:
                logger.removeHandler(handler)
                handler.close()

    _state.journal.add(put_back)


def _tell_children(settings: ClientConfig, flags: dict[str, bool]) -> None:
    """Children of multiprocessing get what this process has, whatever their environment is."""
    environ = to_environ(settings)
    for name in (AGENT_VARIABLE, CLIENT_VARIABLE, FILE_VARIABLE):
        if name in os.environ:
            environ[name] = os.environ[name]
    children.HOW.update(environ=environ, flags=flags)


def come_up(how: dict[str, Any]) -> None:
    """In a child of multiprocessing: patch it as its parent is, before its program is loaded."""
    os.environ.update(how["environ"])
    patch_all(**how["flags"])


def _mark_of(settings: ClientConfig) -> str:
    """Tell settings apart: a child that was given others needs an agent of its own.

    The mark is part of a name that every user of the machine can see, so the token, which
    could be guessed from it, stays out.
    """
    told = to_environ(replace(settings, token=""))
    if settings.routes.name:
        told[ROUTES_TEXT] = settings.routes.name
    text = repr(sorted(told.items()))
    return f"{zlib.crc32(text.encode()):08x}"


def _log_to(path: str, level: str) -> None:
    """Log into a file where one is named; else the program's own logging decides."""
    logger = logging.getLogger("gcbpatch")
    logger.setLevel(level)
    if not path or logger.handlers:
        return
    # Children and the agent mean the same file, wherever they are.
    _set_environ({FILE_VARIABLE: os.path.abspath(path)})
    problem = log_into(logger, path, "program")
    if problem is not None:
        log.warning("%s=%s: cannot be written: %s", FILE_VARIABLE, path, problem.strerror)

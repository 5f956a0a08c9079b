"""Puts a program on DPF and GCB: gevent's patches, with our layer under its sockets.

It must never run at import, and never patch a daemon or an agent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import replace
from typing import Any

from . import mends
from .agent import door
from .config import ClientConfig, client_config, to_environ
from .mends import children
from .mends.journal import Journal

log = logging.getLogger("gcbpatch")

TESTED_GEVENT = "26.9"

_patched: list[ClientConfig] = []
_journal = Journal()


def patch_all(
    broker: str | list[str] | None = None,
    dpf: str | None = None,
    token: str | None = None,
    config: str | None = None,
    **gevent_flags: bool,
) -> None:
    """Patch this program; what is not given comes from the environment and GCB_CONFIG.

    ``broker`` and ``dpf`` are ``host[:port]``, ``token`` the token itself, ``config`` a TOML
    file; the other keywords are gevent.monkey.patch_all's. Called again with nothing new it
    does nothing. Raises ConfigError when a setting is wrong.
    """
    settings = client_config(os.environ, broker=broker, dpf=dpf, token=token, config=config)
    if _patched and _patched[-1] == settings:
        return
    _hook_sockets()
    from gevent import monkey

    monkey.patch_all(**gevent_flags)
    _configure(settings)
    if not _patched:
        mends.install(_journal)
    _patched.append(settings)
    _tell_children(settings, gevent_flags)


def _tell_children(settings: ClientConfig, gevent_flags: dict[str, bool]) -> None:
    """Children of multiprocessing get what this process has, whatever their environment is."""
    environ = to_environ(settings)
    if door.AGENT_VARIABLE in os.environ:
        environ[door.AGENT_VARIABLE] = os.environ[door.AGENT_VARIABLE]
    children.HOW.update(environ=environ, flags=gevent_flags)


def come_up(how: dict[str, Any]) -> None:
    """In a child of multiprocessing: patch it as its parent is, before its program is loaded."""
    os.environ.update(how["environ"])
    patch_all(**how["flags"])


def _hook_sockets() -> None:
    """Put our layer under gevent's sockets, before anything makes one."""
    import gevent

    if not gevent.__version__.startswith(TESTED_GEVENT + "."):
        log.warning("gevent %s is not among the tested %s.*", gevent.__version__, TESTED_GEVENT)
    import gevent.socket

    from .sockets.raw import Raw

    gevent.socket.socket._gevent_sock_class = Raw
    tls: Any = sys.modules.get("gevent.ssl")
    if tls is not None and not issubclass(tls._contextawaresock, Raw):
        tls._contextawaresock = _on_top_of(Raw, tls._contextawaresock)


def _on_top_of(base: Any, cls: type) -> type:
    """Make ``cls`` anew with another base: gevent.ssl was imported before us."""
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
    from .sockets.link import Link
    from .sockets.raw import LAYER

    _log_to(os.environ.get("GCB_LOG_FILE", ""), settings.log)
    if not settings.active:
        LAYER.configure(None)
        return
    settings.key()
    os.environ.update(to_environ(settings))
    tree = os.environ.setdefault(door.AGENT_VARIABLE, door.new_name())
    LAYER.configure(Link(settings, f"{tree}.{_mark_of(settings)}"))


def _mark_of(settings: ClientConfig) -> str:
    """Tell settings apart: a child that was given others needs an agent of its own.

    The mark is part of a name that every user of the machine can see, so the token, which
    could be guessed from it, stays out.
    """
    text = repr(sorted(to_environ(replace(settings, token="")).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _log_to(path: str, level: str) -> None:
    """Log into a file where one is named; else the program's own logging decides."""
    logger = logging.getLogger("gcbpatch")
    logger.setLevel(level)
    if path and not logger.handlers:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s program[%(process)d] %(message)s"))
        logger.addHandler(handler)

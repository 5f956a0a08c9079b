"""Which of CPython's own tests are run: modules, classes, and what is left out, with reasons.

It must never leave out an id because it fails: that is for the excuses, which are judged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKER = "tests.stdlib.worker"

ASYNCIO = (
    "base_events",
    "buffered_proto",
    "events",
    "selector_events",
    "sendfile",
    "server",
    "sock_lowlevel",
    "ssl",
    "sslproto",
    "streams",
    "unix_events",
)
PLAIN = (
    "socket",
    "ssl",
    "select",
    "selectors",
    "poll",
    "socketserver",
    "httpservers",
    "xmlrpc",
    "ftplib",
    "poplib",
    "imaplib",
    "urllib2_localnet",
)
MULTIPROCESSING = tuple(
    f"tests.stdlib.multiprocessing_{method}" for method in ("fork", "spawn", "forkserver")
)
MODULES = (
    *(f"test.test_{name}" for name in PLAIN),
    *(f"test.test_asyncio.test_{name}" for name in ASYNCIO),
    *MULTIPROCESSING,
)

# Of the multiprocessing tests only what talks over connections; locks and pools are no sockets.
_TALKING = re.compile(
    r"(With[A-Z][a-z]+)?Test(Connection|Listener|ListenerClient|Poll|PollEintr|Queue|SimpleQueue"
    r"|PicklingConnections|MyManager|RemoteManager|ManagerRestart|SyncManagerTypes|Wait"
    r"|InvalidHandle|InvalidFamily)$"
)

LEFT_OUT = {
    r"test_ssl\.NetworkedTests\.": "connects to hosts of the Internet",
    r"test_imaplib\.Remote": "connects to hosts of the Internet",
    r"test_socket\.GeneralModuleTests\.test_(idna|getnameinfo)$": "asks name servers outside",
    r"test_socket\..*VSOCK": "not IP, and testStream hangs where there is no virtual machine",
    r"test_(sendfile|events)\.SelectEventLoopTests\.": "the same tests as PollEventLoopTests; "
    "select() under asyncio is seen in test_sock_lowlevel",
    r"_(spawn|forkserver)\.TestSyncManagerTypes\.": "proxies of lists, locks and pools: that a "
    "manager started so can be talked to is seen in MyManager and ManagerRestart",
    r"_forkserver\.\w+TestQueue\.": "pipes and locks; seen in the tests for fork and spawn",
}
"""Pattern of ids to why nobody runs them, plain or patched."""

_NEVER_WAITS = (
    "its loop has a selector that is a mock and never waits, so no greenlet runs that it waits "
    "for; with one that yields the test passes"
)
HANGING = {
    r"BaseSelectorEventLoopTests\.test_sock_connect_resolve_using_socket_params$": _NEVER_WAITS,
    r"BaseEventLoopTests\.test_(check_thread|asyncgen_finalization_by_gc_in_other_thread)$":
    _NEVER_WAITS,
    r"TestRemoteManager\.test_remote$": "as MENDED; but it ends with time.sleep, which xmlrpc "
    "is not to take: it takes all that has a __dict__, as gevent's sleep, a function, has",
    r"test_ssl\.ThreadedTests\.test_nonblocking_send$": "it sends until send() raises "
    "SSLWantWriteError: that of gevent.ssl returns 0 instead, on purpose, and so for ever",
    r"test_socketserver\.SocketWriterTest\.test_write$": "it gives pthread_kill() what get_ident() "
    "returns, a greenlet's address under gevent: the C library may wait for a lock in that memory",
}
"""Ids that hang under gevent, so that nothing can be worse, and why; traced with --all. What is
not worse but good under our mends is in MENDED."""

MENDED = (
    r"test_poll\.PollTests\.test_poll_unit_tests$",
    r"test_asyncio\.test_events\.PollEventLoopTests\.test_read_pipe$",
    r"WithProcessesTestQueue\.test_task_done$",
    r"WithManagerTestMyManager\.test_mymanager",
    r"TestManagerRestart\.test_rapid_restart$",
    r"WithProcessesTestPicklingConnections\.test_access$",
    r"_fork\.WithProcessesTestPicklingConnections\.test_pickling$",
    r"WithProcessesTestListenerClient\.test_issue14725$",
    r"WithProcessesTestQueue\.test_queue_feeder_donot_stop_onexc$",
)
"""Ids at which gevent hangs, where multiprocessing's connections wait or where os.close() is put
off (the first two), and our mends do not: gevent is not asked, the patched modes must be good."""

_left_out = [re.compile(pattern) for pattern in LEFT_OUT]
_hanging = [re.compile(pattern) for pattern in HANGING]
_mended = re.compile("|".join(MENDED))


def class_of(test: str) -> tuple[str, str]:
    """Return the module and the class of an id."""
    path = test.rpartition(".")[0]
    module = max((m for m in MODULES if path.startswith(m + ".")), key=len)
    return module, path[len(module) + 1 :]


def is_wanted(test: str, hanging: bool = False) -> bool:
    """Whether an id belongs to the suite; with ``hanging`` also what hangs under gevent."""
    module, cls = class_of(test)
    if module in MULTIPROCESSING and not _TALKING.match(cls):
        return False
    patterns = _left_out if hanging else _left_out + _hanging
    return not any(pattern.search(test) for pattern in patterns)


def is_mended(test: str) -> bool:
    """Whether an id hangs under gevent and is good under our mends."""
    return _mended.search(test) is not None


def missing() -> str:
    """Return why the suite cannot be run by this interpreter; empty if it can."""
    for name in ("test.test_socket", "test._test_multiprocessing"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return (
                f"{sys.executable} has no {name}: Debian has it in libpython3-testsuite, "
                "other distributions in a package of a similar name"
            )
    return ""


def environment(mode: str = "plain", **more: str) -> dict[str, str]:
    """The environment of a worker: ours, without settings of ours but those that are given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCB_", "DPF_", "PYTEST_"))}
    return kept | {"PYTHONPATH": str(ROOT), "STDLIB_MODE": mode} | more


def classes(
    modules: tuple[str, ...] = MODULES, hanging: bool = False
) -> dict[tuple[str, str], list[str]]:
    """Return the wanted ids by module and class, as a plain interpreter lists them."""
    done = subprocess.run(
        [sys.executable, "-m", WORKER, "--list", *modules],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[tuple[str, str], list[str]] = {}
    for ids in json.loads(done.stdout).values():
        for test in ids if isinstance(ids, list) else ():
            if is_wanted(test, hanging):
                found.setdefault(class_of(test), []).append(test)
    return found

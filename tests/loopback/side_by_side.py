"""One program, run twice: on plain gevent, and with every connection brokered. Both must tell
the same.

A program is a piece of text. It finds `say(...)`, `error_of(call, ...)`, `listening(...)` and
`held(listener)` ready, and prints with `say` what it saw; numbers that differ from run to run
(ports, descriptors) it must not print.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from gcbpatch.addresses import format_address

from .broker_client import Broker

ROOT = Path(__file__).resolve().parents[2]
HANG_LIMIT = 120.0

PRELUDE = """
import contextlib, errno, os, re, signal, struct, sys
BROKERED = "GCB_BROKER" in os.environ
if "UNPATCHED" not in os.environ:
    import gcbpatch; gcbpatch.patch_all(**eval(f"dict({os.environ.get('PATCH', '')})"))
import select, selectors, socket, threading, time
from socket import SOL_SOCKET, SO_ERROR, SO_LINGER

def say(*words):
    print(*words, flush=True)

def error_of(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return f"{type(error).__name__} {errno.errorcode.get(error.errno, error)}"

def listening(host="127.0.0.1", **options):
    listener = socket.create_server((host, 0), **options)
    listener.settimeout(30)
    return listener

# Where nobody listens. A brokered listener that was just closed may be called a little longer.
REFUSING = "127.0.0.1", 1

def pair(listener):
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    return near, far

def agent():
    with open(os.environ["GCB_LOG_FILE"]) as log:
        return int(re.findall(r"agent\\[(\\d+)\\]", log.read())[-1])

@contextlib.contextmanager
def held():
    '''An address to which a connect stays under way until the end of this context.

    Yields the listener; then connects are established and wait to be accepted.
    '''
    listener = listening(backlog=0 if not BROKERED else 5)
    if BROKERED:
        os.kill(agent(), signal.SIGSTOP)
        try:
            yield listener
        finally:
            os.kill(agent(), signal.SIGCONT)
    else:
        filling = socket.create_connection(listener.getsockname())
        yield listener
        listener.accept()[0].close()
        filling.close()

def starting(address, sock=None):
    sock = sock or socket.socket()
    sock.setblocking(False)
    said = sock.connect_ex(address)
    assert said == errno.EINPROGRESS, said
    return sock

def writable(sock, seconds=30):
    return bool(select.select([], [sock], [], seconds)[1])
"""


def told(program: str, **environ: str) -> str:
    """Run a program to its good end and return what it said."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCB_", "DPF_"))}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
        env=kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def brokered(program: str, broker: Broker, log: Path, **environ: str) -> str:
    """Run a program with all of loopback brokered under the addresses of the kernel."""
    routes = log.with_name("routes")
    routes.write_text("127.0.0.0/8 gcb\n")
    settings = {
        "GCB_BROKER": format_address(broker.address),
        "GCB_ROUTES": str(routes),
        "GCB_IDENTITY": "local",
        "GCB_LOG": "INFO",
        "GCB_LOG_FILE": str(log),
    }
    try:
        return told(program, **(settings | environ))
    finally:
        _go_on(log)


def _go_on(log: Path) -> None:
    """Let agents end that a program held and could not let go, because it failed."""
    for pid in re.findall(r"agent\[(\d+)\]", log.read_text() if log.exists() else ""):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGCONT)


def same(program: str, broker: Broker, log: Path) -> str:
    """Assert that a program says the same on plain gevent and brokered; return what."""
    said = brokered(program, broker, log)
    assert "] accepted " in log.read_text(), "no connection went through the broker"
    usual = told(program)
    assert said == usual, "\n".join(difflib.ndiff(usual.splitlines(), said.splitlines()))
    assert said
    return said

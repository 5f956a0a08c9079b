"""What the tests of UDP share: the broker's process, and how small programs begin."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .broker_client import Broker, loopback_host
from .test_patched import HANG_LIMIT, ROOT, clean_environment

# Programs speak with ordinary sockets (`Plain`) as the rest of the world, and with their own.
PRELUDE = '''
import gcbpatch; gcbpatch.patch_all()
import errno, os, select, socket, struct, sys, threading, time
from gevent import monkey
Plain = monkey.get_original("socket", "socket")
host, _, port = os.environ["GCB_BROKER"].partition(":")
BROKER = (host, int(port or 0))

def plain(host="127.0.0.1"):
    """An ordinary socket of somebody else."""
    sock = Plain(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(20)
    return sock

def bound():
    """A socket of this program, with a proxy address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    sock.settimeout(20)
    assert sock.getsockname()[0] == BROKER[0], sock.getsockname()
    return sock

def direct(sock):
    """Where the socket is reached without the relay."""
    return ("127.0.0.1", kernel_name(sock)[1])

def kernel_name(sock):
    import _socket
    return _socket.socket.getsockname(sock._sock)

def tell(what):
    """Make the stand-in do something; return its answer."""
    with plain() as sock:
        sock.sendto(b"!" + what.encode(), BROKER)
        return sock.recv(1000).decode()

def raises(error, function, *args):
    try:
        function(*args)
    except error as caught:
        return caught
    raise AssertionError(f"{function} did not raise {error}")
'''


@dataclass(frozen=True)
class Relay:
    """A broker's process; ``log`` is where programs and agents log."""

    process: subprocess.Popen[Any]
    address: str
    log: Path

    def run(self, program: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a small program behind PRELUDE to its end."""
        settings = {"GCB_BROKER": self.address, "GCB_LOG": "INFO", "GCB_LOG_FILE": str(self.log)}
        return subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
            env=clean_environment() | settings | environ,
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT,
            cwd=ROOT,
        )

    def good(self, program: str, **environ: str) -> None:
        """Run a program that must get to its end."""
        done = self.run(textwrap.dedent(program) + "\nprint('good')\n", **environ)
        assert done.stdout == "good\n", done.stderr + done.stdout

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(HANG_LIMIT)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    """A broker on a host of its own."""
    with brokering(tmp_path) as relay:
        yield relay


@contextmanager
def brokering(folder: Path, *flags: str, host: str = "") -> Iterator[Relay]:
    """A broker that is ready."""
    broker = Broker(folder, "--log", "INFO", *flags, host=host)
    try:
        yield Relay(broker.process, "{}:{}".format(*broker.address), folder / "log")
    finally:
        broker.kill()
    assert "Traceback" not in broker.log()


@pytest.fixture
def odd_relay(tmp_path: Path) -> Iterator[Relay]:
    """A stand-in that does what no broker does, when it is told to, on a host of its own."""
    with serving(loopback_host(), tmp_path / "log") as relay:
        yield relay


@contextmanager
def serving(host: str, log: Path) -> Iterator[Relay]:
    """The stand-in, when it is ready."""
    argv = [sys.executable, "-m", "tests.loopback.udp_relay", host]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        try:
            yield Relay(process, ready[1], log)
        finally:
            process.kill()

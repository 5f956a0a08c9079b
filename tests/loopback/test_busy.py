"""A program that computes or sleeps stays reachable: registered, its connections established.

The program is busy for many lifetimes of its registration in each of the ways that keep gevent's
hub from running: a Python loop, a C function that holds the GIL, a sleep that is not gevent's.
What it finds when it comes back is what the kernel would have kept for it.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gcbpatch.addresses import Address, format_address

from .broker_client import HANG_S, Broker
from .broker_ground import wait_until
from .test_patched import ROOT, clean_environment

LIFETIME = 1
"""Seconds, of a registration that nobody renews."""
BUSY_LIFETIMES = 6

WAYS = {
    "a Python loop": "sum(number * number for number in range(10000))",
    "a C function on much data": "sorted(numbers)",
    "a C function that sleeps with the GIL": "ctypes.PyDLL(None).usleep(700_000)",
    "a sleep that is not gevent's": "monkey.get_original('time', 'sleep')(0.7)",
}

LISTENER = """
    import gcbpatch; gcbpatch.patch_all()
    import ctypes, os, random, socket, sys
    from gevent import monkey
    numbers = [random.random() for _ in range(300_000)]
    listener = socket.create_server(("", 0), backlog=32)
    print(*listener.getsockname(), flush=True)
    while not os.path.exists(sys.argv[1]):
        {busy}
    for _ in range(int(open(sys.argv[1]).read())):
        sock, peer = listener.accept()
        print(sock.makefile().readline().strip(), *peer, flush=True)
        sock.sendall(b"heard\\n")
    print("served", flush=True)
"""

CONNECTOR = """
    import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
    import socket, sys
    kept = []
    for line in sys.stdin:
        host, port, word = line.split()
        sock = socket.create_connection((host, int(port)), timeout=30)
        sock.sendall(word.encode() + b"\\n")
        kept.append(sock)
        print("connected", flush=True)
    for sock in kept:
        print(sock.recv(100).decode().strip(), flush=True)
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that forgets whoever does not renew, quickly."""
    broker = Broker(tmp_path, "--lifetime", str(LIFETIME), "--log", "INFO")
    yield broker
    broker.kill()


@contextmanager
def started(broker: Broker, program: str, log: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """Run a patched program beside the test."""
    settings = {"GCB_BROKER": format_address(broker.address), "GCB_LIFETIME": str(LIFETIME)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env=clean_environment() | settings | {"GCB_LOG": "INFO", "GCB_LOG_FILE": str(log)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def delivered(log: Path) -> int:
    """How many connections the agent has put into the program's queue."""
    return log.read_text().count("] accepted ") if log.exists() else 0


class Callers:
    """Connects by turns as anybody would, and as a patched program."""

    def __init__(self, listener: Address, log: Path, patched: subprocess.Popen) -> None:
        self._listener, self._log, self._patched = listener, log, patched
        self._ordinary: list[socket.socket] = []
        self.words: list[str] = []

    def call(self) -> None:
        """One more connection; it is in the listener's queue when this returns."""
        word = f"call-{len(self.words)}"
        if len(self.words) % 2:
            sock = socket.create_connection(self._listener, timeout=HANG_S)
            sock.sendall(f"{word}\n".encode())
            self._ordinary.append(sock)
        else:
            self._patched.stdin.write(f"{self._listener[0]} {self._listener[1]} {word}\n")
            self._patched.stdin.flush()
            assert self._patched.stdout.readline() == "connected\n"
        self.words.append(word)
        wait_until(lambda: delivered(self._log) == len(self.words))

    def answers(self) -> list[str]:
        """What each of them has heard back."""
        self._patched.stdin.close()
        heard = self._patched.stdout.read().split()
        for sock in self._ordinary:
            with sock, sock.makefile() as stream:
                heard.append(stream.readline().strip())
        return heard


@pytest.mark.parametrize("way", WAYS)
def test_a_busy_program_is_called_and_stays_registered(
    broker: Broker, tmp_path: Path, way: str
) -> None:
    log, done = tmp_path / "listener.log", tmp_path / "done"
    program = LISTENER.format(busy=WAYS[way])
    with (
        started(broker, program, log, str(done)) as listener,
        started(broker, CONNECTOR, tmp_path / "connector.log") as connector,
    ):
        host, port = listener.stdout.readline().split()
        callers = Callers((host, int(port)), log, connector)
        for _ in range(4):
            callers.call()
        time.sleep(BUSY_LIFETIMES * LIFETIME)  # this is what it is about
        for _ in range(4):
            callers.call()
        (tmp_path / "ready").write_text(str(len(callers.words)))
        (tmp_path / "ready").rename(done)
        accepted = [line.split() for line in listener.stdout.read().splitlines()]
        assert [line[0] for line in accepted] == [*callers.words, "served"]
        assert callers.answers() == ["heard"] * len(callers.words)
        assert "expired" not in broker.log()
        assert broker.log().count("INFO registered ") == 1, broker.log()

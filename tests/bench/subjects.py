"""The measurements: each sets up the same work without the layer, with it, and without it again.

Real daemons, real programs, all on this machine: connections go to an address of this host's own,
so that no packet leaves it. This room must never decide what is good enough.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .alternate import Round, Trio

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(__file__).resolve().parent
HANG_SECONDS = 30.0
NOWHERE = "198.51.100.9"
"""A broker that nobody asks: an address for documentation."""


class BenchError(Exception):
    """The measurement cannot be made here; the text says why."""


def own_address() -> str:
    """Return an address of this host that is not loopback's; nothing is sent to find it.

    Raises BenchError where there is none: the layer leaves loopback alone.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((NOWHERE, 9))
        except OSError as error:
            raise BenchError(f"no address of this host but loopback: {error.strerror}") from error
        return str(sock.getsockname()[0])


def environment(**more: str) -> dict[str, str]:
    """Our environment without settings of ours, and with the same hashes in all processes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCB_", "DPF_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"} | more


class Process:
    """A program that answers a line with a line."""

    def __init__(self, stack: ExitStack, argv: list[str], **settings: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(**settings),
            text=True,
            cwd=ROOT,
        )
        self._name = argv[0]
        stack.callback(self._end)

    def read(self) -> str:
        """Return the next line; raises BenchError when the program has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended with status {self._process.wait(HANG_SECONDS)}")
        return line.strip()

    def say(self, *words: object) -> None:
        """Write a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def ask(self, *words: object) -> str:
        """Write a command and return the answer."""
        self.say(*words)
        return self.read()

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=HANG_SECONDS)


def broker_at(stack: ExitStack, host: str) -> str:
    """Start a broker on a free port; return its address."""
    directory = stack.enter_context(TemporaryDirectory())
    argv = ["-m", "brokerd", "--address", host, "--port", "0", "--log", "ERROR"]
    daemon = Process(stack, [*argv, "--key-file", f"{directory}/key"])
    return daemon.read().split()[-1]


def worker(stack: ExitStack, kind: str, **settings: str) -> Process:
    """Start the program that is measured; ``kind`` is plain or layer."""
    return Process(stack, [str(BENCH / "worker.py"), kind, own_address()], **settings)


def _asking(process: Process, *words: object) -> Round:
    return lambda: float(process.ask(*words))


def _trio(stack: ExitStack, broker: str, *words: object) -> Trio:
    plain, again = worker(stack, "plain"), worker(stack, "plain")
    layer = worker(stack, "layer", GCB_BROKER=broker)
    return Trio(*(_asking(process, *words) for process in (plain, layer, again)))


@contextmanager
def established(command: str, times: int) -> Iterator[Trio]:
    """Bytes over a connection: an ordinary one, a brokered one, an ordinary one."""
    with ExitStack() as stack:
        yield _trio(stack, broker_at(stack, own_address()), command, times)


@contextmanager
def connecting(times: int) -> Iterator[Trio]:
    """Connects to an ordinary server: without a broker, with one configured, without one.

    The broker is one whose hosts the program has to ask the agent for (once a minute).
    """
    with ExitStack() as stack:
        port = Process(stack, [str(BENCH / "sink.py"), own_address()]).read()
        yield _trio(stack, broker_at(stack, "127.0.0.1"), "connect", times, own_address(), port)


@contextmanager
def accepting(times: int) -> Iterator[Trio]:
    """Accepts by the kernel alone, through queue and nudge, and by the kernel alone."""
    with ExitStack() as stack:
        broker = broker_at(stack, own_address())
        layer = worker(stack, "layer", GCB_BROKER=broker)
        door = layer.ask("door")
        agent = Process(stack, [str(BENCH / "deliverer.py"), door], GCB_BROKER=broker)
        agent.read()
        layer.ask("accept")
        plain, again = (worker(stack, "plain").ask("accept") for _ in range(2))
        yield Trio(
            _asking(agent, "kernel", own_address(), plain, times),
            _asking(agent, "brokered", times),
            _asking(agent, "kernel", own_address(), again, times),
        )


@contextmanager
def starting() -> Iterator[Trio]:
    """Whole runs of a program that does nothing but patch itself.

    All modules are compiled beforehand, as an installation's are: a checkout's are not where
    the environment forbids to write them.
    """

    def run(code: str, **settings: str) -> Round:
        argv = [sys.executable, "-c", code]
        env = environment(PYTHONPYCACHEPREFIX=compiled, **settings)
        env.pop("PYTHONDONTWRITEBYTECODE", None)

        def once() -> float:
            began = time.perf_counter_ns()
            subprocess.run(argv, env=env, cwd=ROOT, check=True)
            return float(time.perf_counter_ns() - began)

        return once

    with TemporaryDirectory() as compiled:
        plain = run("from gevent import monkey; monkey.patch_all()")
        settings = {"GCB_BROKER": NOWHERE, "GCB_TOKEN": "a-token-of-no-broker"}
        layer = run("import gcbpatch; gcbpatch.patch_all()", **settings)
        plain(), layer()
        yield Trio(plain, layer, plain)


def agent_of_a_program_without_brokered_sockets() -> bool:
    """Whether a program that listens on loopback and connects elsewhere gets an agent."""
    with ExitStack() as stack:
        port = Process(stack, [str(BENCH / "sink.py"), own_address()]).read()
        local = Process(stack, [str(BENCH / "sink.py"), "127.0.0.1"]).read()
        program = worker(stack, "layer", GCB_BROKER=NOWHERE)
        program.ask("connect", 10, own_address(), port)
        program.ask("connect", 10, "127.0.0.1", local)
        program.ask("local")
        return program.ask("agent") == "True"

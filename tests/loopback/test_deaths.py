"""An agent or a broker that is killed: what is established goes on, and so do ordinary sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gcbpatch.addresses import Address, format_address

from .broker_client import HANG_S, Broker
from .broker_ground import wait_until
from .test_patched import ROOT, agent_in, clean_environment, wait_end

SERVER = """
    import gcbpatch; gcbpatch.patch_all()
    import socketserver
    class Echo(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(line)
    with socketserver.ThreadingTCPServer(("", 0), Echo) as server:
        server.daemon_threads = True
        kernels = server.socket.fileno()
        import _socket
        plain = _socket.socket(fileno=kernels)
        print(*server.server_address, plain.getsockname()[1], flush=True)
        plain.detach()
        server.serve_forever()
"""

CALLER = """
    import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
    import socket, sys
    socks = []
    for line in sys.stdin:
        command, *words = line.split()
        try:
            if command == "connect":
                socks.append(socket.create_connection((words[0], int(words[1])), timeout=60))
                print("connected", flush=True)
            else:
                sock = socks[int(words[0])]
                sock.sendall(b"word\\n")
                print(sock.recv(100).decode().strip(), flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
"""


class Program:
    """A patched program beside the test."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def read(self) -> str:
        return self.process.stdout.readline().strip()

    def say(self, words: str) -> None:
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def ask(self, words: str) -> str:
        self.say(words)
        return self.read()

    def agent(self) -> int:
        """The number of its first agent."""
        return agent_in(self.log)

    def kill_agent(self) -> None:
        """Kill its first agent, and wait until it is gone."""
        number = self.agent()
        os.kill(number, signal.SIGKILL)
        wait_end(number)


@contextmanager
def started(broker: Broker, program: str, directory: Path, name: str) -> Iterator[Program]:
    """Run a program; at its end nothing but the documented warning may stand on its stderr."""
    log = directory / f"{name}.log"
    settings = {"GCB_BROKER": format_address(broker.address), "GCB_PATIENCE": "1"}
    settings |= {"GCB_LOG": "INFO", "GCB_LOG_FILE": str(log)}
    errors = directory / f"{name}.stderr"
    with errors.open("wb") as stderr, subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=clean_environment() | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield Program(process, log)
            assert process.poll() is None, errors.read_text()
        finally:
            process.kill()
    assert errors.read_text() == ""  # warnings are in the log file, everything else is an error


def serving(server: Program) -> tuple[Address, Address]:
    """The public address of a server, and the kernel's own."""
    host, public, plain = server.read().split()
    return (host, int(public)), ("127.0.0.1", int(plain))


def has_unread_datagram(pid: int) -> bool:
    """Whether something has been sent to a process that does not run."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in links and not fields[4].endswith(":00000000"):
            return True
    return False


def echoed(sock: socket.socket) -> bool:
    """Whether the other end still answers."""
    sock.settimeout(HANG_S)
    sock.sendall(b"word\n")
    return sock.recv(100) == b"word\n"


def called(address: Address) -> socket.socket:
    """An ordinary connection from an unpatched program: this one."""
    return socket.create_connection(address, timeout=HANG_S)


def test_a_server_whose_agent_was_killed_keeps_its_connections(
    broker: Broker, tmp_path: Path
) -> None:
    with (
        started(broker, SERVER, tmp_path, "server") as server,
        started(broker, CALLER, tmp_path, "caller") as caller,
    ):
        public, plain = serving(server)
        assert caller.ask("connect {} {}".format(*public)) == "connected"
        with called(public) as relayed, called(plain) as ordinary:
            assert caller.ask("say 0") == "word"
            assert echoed(relayed) and echoed(ordinary)
            server.kill_agent()
            assert caller.ask("say 0") == "word"
            assert echoed(relayed) and echoed(ordinary)
            with called(plain) as another:
                assert echoed(another)


def test_a_server_whose_agent_dies_while_it_delivers_goes_on(
    broker: Broker, tmp_path: Path
) -> None:
    with started(broker, SERVER, tmp_path, "server") as server:
        public, plain = serving(server)
        callers = [called(public) for _ in range(20)]
        server.kill_agent()  # some are delivered by now, some are not
        for _ in range(5):
            with called(plain) as ordinary:
                assert echoed(ordinary)
        for sock in callers:
            sock.close()


def test_a_connect_whose_agent_dies_is_made_by_the_kernel(broker: Broker, tmp_path: Path) -> None:
    with (
        started(broker, SERVER, tmp_path, "server") as server,
        started(broker, CALLER, tmp_path, "caller") as caller,
    ):
        public, _ = serving(server)
        assert caller.ask("connect {} {}".format(*public)) == "connected"
        os.kill(server.agent(), signal.SIGSTOP)  # from now on nobody answers a call
        try:
            caller.say("connect {} {}".format(*public))
            wait_until(lambda: has_unread_datagram(server.agent()))
            caller.kill_agent()
            assert caller.read() == "connected"  # to the broker, as anybody's connect would be
        finally:
            os.kill(server.agent(), signal.SIGCONT)
        assert caller.ask("say 1") == "word"
        assert caller.ask("say 0") == "word"


def test_a_killed_broker_ends_nothing_that_does_not_need_it(broker: Broker, tmp_path: Path) -> None:
    with (
        started(broker, SERVER, tmp_path, "server") as server,
        started(broker, CALLER, tmp_path, "caller") as caller,
    ):
        public, plain = serving(server)
        assert caller.ask("connect {} {}".format(*public)) == "connected"
        with called(plain) as ordinary:
            broker.kill()
            assert caller.ask("say 0") == "word"
            assert echoed(ordinary)
            with called(plain) as another:
                assert echoed(another)
            assert caller.ask("connect {} {}".format(*public)) == "ConnectionRefusedError"
            assert caller.ask("connect {} {}".format(*plain)) == "connected"

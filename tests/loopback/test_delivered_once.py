"""A brokered connection reaches exactly one process, whoever is suspended or killed meanwhile."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from .broker_client import Broker
from .conversation import Program
from .test_patched import HANG_LIMIT, wait_end

# Stops the process that accepts, once, while it holds a nudge.
STOPS = """
    import os, signal
    from gcbpatch.sockets import listener as room
    taking = room.Listener.accepted
    def stop_once(self, fd, address, *rest):
        if room.is_nudge(fd, address):
            room.Listener.accepted = taking
            print(os.getpid(), flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return taking(self, fd, address, *rest)
    room.Listener.accepted = stop_once
"""


def _stopped(program: Program) -> int:
    """Wait until a process has said that it stops, and has."""
    pid = int(program.line())
    while (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()
    return pid


def test_sockets_that_share_a_port_have_one_name_and_one_queue(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
    import os, socket
    first = socket.socket()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    first.bind(("", 0))
    import _socket
    port = _socket.socket.getsockname(first._sock)[1]
    listeners = [first]
    for _ in range(3):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
        listeners.append(sock)
    for listener in listeners:
        listener.listen()
    assert len({listener.getsockname() for listener in listeners}) == 1
    print("%s:%s" % first.getsockname(), flush=True)
    children = []
    for listener in listeners:
        if not os.fork():
            while True:
                listener.accept()[0].sendall(b"%d" % os.getpid())
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        seen = set()
        for _ in range(60):
            with socket.create_connection(public, HANG_LIMIT) as sock:
                sock.settimeout(HANG_LIMIT)
                seen.add(sock.recv(100))
        assert len(seen) > 1
        agent = program.agents()[0]
        os.kill(agent, signal.SIGKILL)
        wait_end(agent)
        program.wait_for_agent(2)
        for _ in range(10):
            with socket.create_connection(public, HANG_LIMIT) as sock:
                assert sock.recv(100) in seen
        program.kill()


def test_a_port_outlives_one_of_the_sockets_that_share_it(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
    import _socket, socket
    def listening(port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
        sock.listen()
        return sock
    first = listening(0)
    second = listening(_socket.socket.getsockname(first._sock)[1])
    print("%s:%s" % first.getsockname(), flush=True)
    first.close()
    for _ in range(10):
        second.accept()[0].sendall(b"second")
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        for _ in range(10):
            with socket.create_connection(public, HANG_LIMIT) as sock:
                assert sock.recv(100) == b"second"


def test_a_connection_is_not_lost_with_a_sibling_that_is_killed_while_it_accepts(
    broker: Broker, tmp_path: Path
) -> None:
    text = STOPS + """
    import socket, sys
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
    if not os.fork():
        listener.accept()
        os._exit(1)
    sys.stdin.readline()
    room.Listener.accepted = taking
    while True:
        listener.accept()[0].sendall(b"taken")
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        with socket.create_connection(public, HANG_LIMIT) as sock:
            child = _stopped(program)
            program.say()
            os.kill(child, signal.SIGKILL)
            sock.settimeout(HANG_LIMIT)
            assert sock.recv(100) == b"taken"
        program.kill()


def test_a_program_that_is_suspended_while_it_accepts_gets_its_connection(
    broker: Broker, tmp_path: Path
) -> None:
    text = STOPS + """
    import socket
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
    listener.accept()[0].sendall(b"taken")
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        with socket.create_connection(public, HANG_LIMIT) as sock:
            pid = _stopped(program)
            sock.settimeout(2.0)
            with pytest.raises(TimeoutError):  # several looks of the agent's
                sock.recv(100)
            os.kill(pid, signal.SIGCONT)
            sock.settimeout(HANG_LIMIT)
            assert sock.recv(100) == b"taken"
        assert "bridging" not in program.log.read_text()


def test_what_accepts_past_the_patch_is_bridged_when_it_reads(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
    import _socket, socket
    from gevent import monkey
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
    monkey.get_original("select", "select")([listener.fileno()], [], [])
    native = _socket.socket(fileno=_socket.socket(fileno=listener.fileno())._accept()[0])
    native.setblocking(True)
    got = b""
    while not got.endswith(b"r"):
        got += native.recv(100)
    native.sendall(got[::-1])
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        with socket.create_connection(public, HANG_LIMIT) as sock:
            sock.settimeout(1.0)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(HANG_LIMIT)
            sock.sendall(b"drawer")
            assert sock.recv(6, socket.MSG_WAITALL) == b"reward"


def test_clients_see_that_a_program_which_is_not_patched_closes_whatever_it_accepts(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
    import subprocess, socket, sys
    CHILD = '''if True:
        import select, socket, sys
        listener = socket.socket(fileno=int(sys.argv[1]))
        while True:
            select.select([listener], [], [])
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                continue
    '''
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
    number = listener.fileno()
    child = subprocess.Popen([sys.executable, "-I", "-c", CHILD, str(number)], pass_fds=[number])
    listener.close()
    child.wait()
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        with socket.create_connection(public, HANG_LIMIT) as sock:
            sock.settimeout(HANG_LIMIT)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        program.kill()

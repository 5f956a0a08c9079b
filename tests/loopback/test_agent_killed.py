"""A killed agent: the next one goes on with the same listeners, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from .broker_client import Broker
from .conversation import Program
from .test_patched import HANG_LIMIT

LISTENER = """
    import socket
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
"""


def test_a_waiting_listener_gets_a_new_agent_and_keeps_its_address(
    broker: Broker, tmp_path: Path
) -> None:
    text = LISTENER + """
    while True:
        sock, peer = listener.accept()
        word = sock.recv(100)
        sock.sendall(word + b" %s:%d" % (listener.getsockname()[0].encode(), peer[1]))
        if word == b"last":
            break
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        for number, word in enumerate((b"first", b"second", b"last"), 1):
            os.kill(program.wait_for_agent(number), signal.SIGKILL)
            program.wait_for_agent(number + 1)
            with socket.create_connection(public, HANG_LIMIT) as sock:
                port = sock.getsockname()[1]
                sock.sendall(word)
                assert sock.recv(100).decode() == f"{word.decode()} {public[0]}:{port}"


def test_connections_in_the_queue_outlive_the_agent_that_put_them_there(
    broker: Broker, tmp_path: Path
) -> None:
    text = LISTENER + """
    input()
    for _ in range(3):
        sock, peer = listener.accept()
        sock.sendall(sock.recv(100) + b" %d" % peer[1])
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        agent = program.wait_for_agent(1)
        socks = [_connected_and_known(program, public, number) for number in range(3)]
        os.kill(agent, signal.SIGKILL)
        program.say()
        for number, sock in enumerate(socks):
            with sock:
                name = sock.getsockname()[1]
                assert sock.recv(100) == b"number %d %d" % (number, name)


def _connected_and_known(program: Program, public: tuple[str, int], number: int) -> socket.socket:
    """Connect, and wait until the agent has put the connection into the queue."""
    sock = socket.create_connection(public, HANG_LIMIT)
    sock.sendall(b"number %d" % number)
    while program.log.read_text().count("] accepted ") <= number:
        os.sched_yield()
    return sock


def test_forked_children_share_the_queue_before_and_after(broker: Broker, tmp_path: Path) -> None:
    text = LISTENER + """
    import os, sys
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            while True:
                sock, _ = listener.accept()
                sock.sendall(b"%d" % os.getpid())
                if sock.recv(1) == b"q":
                    os._exit(0)
                sock.close()
        children.append(child)
    print("forked", flush=True)
    for child in children:
        os.waitpid(child, 0)
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        assert program.line() == "forked"
        assert len(_pids_of_three(public, b"x")) == 3
        os.kill(program.wait_for_agent(1), signal.SIGKILL)
        program.wait_for_agent(2)
        for _ in range(5):
            assert len(_pids_of_three(public, b"x")) == 3
        assert len(_pids_of_three(public, b"q")) == 3


def _pids_of_three(public: tuple[str, int], last: bytes) -> set[bytes]:
    """Who answers three connections at a time: each child is busy with one."""
    socks = [socket.create_connection(public, HANG_LIMIT) for _ in range(3)]
    pids = {sock.recv(100) for sock in socks}
    for sock in socks:
        sock.sendall(last)
        assert sock.recv(1) == b""
        sock.close()
    return pids


def test_children_that_start_at_once_share_one_agent(broker: Broker, tmp_path: Path) -> None:
    text = """
    import os, socket
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            listener = socket.create_server(("", 0))
            listener.accept()[0].sendall(b"here")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    """
    log = tmp_path / "log"
    with Program(text, broker, log) as program:
        while log_registrations(log) < 8:
            os.sched_yield()
        for line in log.read_text().splitlines():
            if " by gcb" in line:
                host, _, port = line.split()[-3].rpartition(":")
                with socket.create_connection((host, int(port)), HANG_LIMIT) as sock:
                    assert sock.recv(100) == b"here"
        assert len(program.agents()) == 1


def log_registrations(log: Path) -> int:
    """How many listeners were registered, by the log."""
    return log.read_text().count(" by gcb") if log.exists() else 0

"""Listening sockets that go to other programs: patched or not, by exec, fork or subprocess."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .broker_client import Broker
from .conversation import Program
from .test_patched import HANG_LIMIT

MEGABYTE = 1 << 20

# The descriptor is non-blocking in all who share it, as gevent needs it.
ACCEPT = '''
    ACCEPT = """if True:
        import select
        def accept(listener):
            while True:
                select.select([listener], [], [])
                try:
                    return listener.accept()[0]
                except BlockingIOError:
                    continue
    """
'''

SPAWN = """
    import os, socket, subprocess, sys
    listener = socket.create_server(("", 0), backlog=20)
    print("%s:%s" % listener.getsockname(), flush=True)
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", CHILD, str(listener.fileno())], pass_fds=[listener.fileno()]
    )
"""

ECHO = '''
    CHILD = ACCEPT.rstrip() + """\\nif True:
        import socket, sys, threading
        assert "gevent" not in sys.modules
        listener = socket.socket(fileno=int(sys.argv[1]))
        def serve(sock):
            sock.sendall(b"hello")
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.close()
        for _ in range(10):
            threading.Thread(target=serve, args=(accept(listener),)).start()
    """
'''


def test_a_child_that_is_not_patched_gets_brokered_connections_too(
    broker: Broker, tmp_path: Path
) -> None:
    text = ACCEPT + ECHO + SPAWN + """
    listener.close()
    child.wait()
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(_exchange, [public] * 10, range(10)))
        assert program.log.read_text().count("bridging") == 10
    assert program.process.returncode == 0


def _exchange(public: tuple[str, int], seed: int) -> None:
    """A megabyte there and back, and an end of stream both ways."""
    data = random.Random(seed).randbytes(MEGABYTE)
    with socket.create_connection(public, HANG_LIMIT) as sock:
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(1)))
        sender.start()
        got = hashlib.sha256()
        while part := sock.recv(65536):
            got.update(part)
        sender.join()
        assert got.digest() == hashlib.sha256(data).digest()


def test_a_stranger_that_waits_for_its_client_to_speak_is_bridged_as_well(
    broker: Broker, tmp_path: Path
) -> None:
    child = '''
    CHILD = ACCEPT.rstrip() + """\\nif True:
        import socket, sys
        listener = socket.socket(fileno=int(sys.argv[1]))
        sock = accept(listener)
        sock.sendall(sock.recv(100)[::-1])
    """
    '''
    text = ACCEPT + child + SPAWN + "\n    child.wait()\n"
    with (
        Program(text, broker, tmp_path / "log") as program,
        socket.create_connection(program.name(), HANG_LIMIT) as sock,
    ):
        sock.sendall(b"drawer")
        assert sock.recv(100) == b"reward"
        assert sock.recv(100) == b""


def test_a_strangers_reset_reaches_the_connector(broker: Broker, tmp_path: Path) -> None:
    child = '''
    CHILD = ACCEPT.rstrip() + """\\nif True:
        import socket, struct, sys
        listener = socket.socket(fileno=int(sys.argv[1]))
        sock = accept(listener)
        sock.sendall(sock.recv(1))
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    """
    '''
    text = ACCEPT + child + SPAWN + "\n    child.wait()\n"
    with (
        Program(text, broker, tmp_path / "log") as program,
        socket.create_connection(program.name(), HANG_LIMIT) as sock,
    ):
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
        sock.sendall(b"2")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_the_program_after_exec_is_the_same_listener(broker: Broker, tmp_path: Path) -> None:
    text = """
    import os, socket, sys
    AFTER = '''if True:
        import gcbpatch; gcbpatch.patch_all()
        import socket, sys
        listener = socket.socket(fileno=int(sys.argv[1]))
        print("%s:%s" % listener.getsockname(), flush=True)
        sock, peer = listener.accept()
        assert sock.getsockname() == listener.getsockname()
        sock.sendall(b"%s:%d" % (peer[0].encode(), peer[1]))
    '''
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
    os.set_inheritable(listener.fileno(), True)
    os.execv(sys.executable, [sys.executable, "-c", AFTER, str(listener.fileno())])
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        assert program.name() == public
        with socket.create_connection(public, HANG_LIMIT) as sock:
            assert sock.recv(100).decode() == "{}:{}".format(*sock.getsockname())
    assert len(program.agents()) == 1


def test_a_listener_of_a_program_that_knows_nothing_of_us_is_registered_when_used(
    broker: Broker, tmp_path: Path
) -> None:
    with socket.create_server(("", 0)) as listener:
        text = f"""
        import os, socket
        listener = socket.socket(fileno={listener.fileno()})
        print("%s:%s" % listener.getsockname(), flush=True)
        listener.accept()[0].sendall(b"activated")
        """
        os.set_inheritable(listener.fileno(), True)
        with Program(text, broker, tmp_path / "log", pass_all=True) as program:
            public = program.name()
            assert public[0] == broker.address[0]
            with socket.create_connection(public, HANG_LIMIT) as sock:
                assert sock.recv(100) == b"activated"


def test_a_daemon_that_closes_what_it_does_not_know_still_accepts(
    broker: Broker, tmp_path: Path
) -> None:
    text = """
    import os, socket
    listener = socket.create_server(("", 0))
    print("%s:%s" % listener.getsockname(), flush=True)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(3, 256):
        if number != listener.fileno():
            try:
                os.close(number)
            except OSError:
                pass
    from gevent import reinit
    reinit()
    for _ in range(3):
        sock, peer = listener.accept()
        sock.sendall(b"%d" % peer[1])
        sock.close()
    """
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        program.process.wait(HANG_LIMIT)
        for _ in range(3):
            with socket.create_connection(public, HANG_LIMIT) as sock:
                assert sock.recv(100) == b"%d" % sock.getsockname()[1]


def test_patched_and_other_processes_may_accept_side_by_side(
    broker: Broker, tmp_path: Path
) -> None:
    child = '''
    CHILD = ACCEPT.rstrip() + """\\nif True:
        import socket, sys
        listener = socket.socket(fileno=int(sys.argv[1]))
        while True:
            sock = accept(listener)
            sock.sendall(b"stranger")
            sock.recv(1)
            sock.close()
    """
    '''
    text = ACCEPT + child + SPAWN + """
    while True:
        sock = listener.accept()[0]
        sock.sendall(b"patched.")
        sock.recv(1)
        sock.close()
    """
    seen: dict[bytes, int] = {}
    with Program(text, broker, tmp_path / "log") as program:
        public = program.name()
        for _ in range(20):
            socks = [socket.create_connection(public, HANG_LIMIT) for _ in range(2)]
            for sock in socks:
                who = sock.recv(8, socket.MSG_WAITALL)
                seen[who] = seen.get(who, 0) + 1
            for sock in socks:
                sock.close()
        program.kill()
    assert set(seen) == {b"stranger", b"patched."}
    assert sum(seen.values()) == 40

"""Descriptors: none is left open by what has ended, and to have none left breaks nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gcbpatch.addresses import format_address
from gcbpatch.agent import door

from .broker_client import Broker
from .broker_ground import wait_until
from .conversation import Program
from .test_patched import HANG_LIMIT, agent_in, run, wait_end

PROGRAM = """
    import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
    import errno, os, posix, re, resource, socket, time

    def opened(pid="self"):
        return len(os.listdir(f"/proc/{pid}/fd"))

    def until(number, pid):
        limit = time.monotonic() + 60
        while opened(pid) > number:
            assert time.monotonic() < limit, (opened(pid), number)
            time.sleep(0.05)

    def listen():
        with socket.create_server(("", 0)) as listener:
            assert listener.getsockname()[0] == os.environ["GCB_BROKER"].split(":")[0]

    server = socket.create_server(("", 0))
    public = server.getsockname()

    def connect():
        with socket.create_connection(public) as near:
            near.sendall(b"x")
            while True:  # past those whose connector gave up
                far, peer = server.accept()
                with far:
                    if far.recv(10) == b"x":
                        break

    listen()
    connect()
    agent = re.search(r"agent\\[(\\d+)\\]", open(os.environ["GCB_LOG_FILE"]).read()).group(1)
"""


THOUSAND_LIMIT = 250.0
"""Seconds for a thousand connections, which take a quarter of a minute where nothing else runs."""


def outcome(broker: Broker, tmp_path: Path, program: str, limit: float = HANG_LIMIT) -> None:
    """Run a continuation of PROGRAM that says good at its end."""
    done = run(
        PROGRAM + program,
        limit,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(tmp_path / "log"),
    )
    assert done.stdout == "good\n", done.stderr
    warnings = done.stderr.splitlines()
    assert len(warnings) <= 1, done.stderr
    assert all(line.endswith("going on as if unpatched") for line in warnings), done.stderr


@pytest.mark.parametrize("what", ["listen", "connect"])
def test_a_thousand_sockets_leave_nothing_open(broker: Broker, tmp_path: Path, what: str) -> None:
    outcome(
        broker,
        tmp_path,
        f"""
    listen(), connect()
    mine, agents = opened(), opened(agent)
    for _ in range(1000):
        {what}()
    until(mine, "self")
    until(agents, agent)
    print("good")
    """,
        THOUSAND_LIMIT,
    )


def test_nudges_leave_no_port_behind_in_time_wait(broker: Broker, tmp_path: Path) -> None:
    outcome(
        broker,
        tmp_path,
        """
    import _socket
    from gcbpatch.tree import NUDGE_HOST

    def waiting():
        host = socket.inet_aton(NUDGE_HOST)[::-1].hex().upper()
        port = _socket.socket.getsockname(server._sock)[1]
        mine = [line.split()[1:4] for line in open("/proc/net/tcp") if f":{port:04X} " in line]
        return [row for row in mine if row[1].startswith(host + ":") and row[2] == "06"]

    for _ in range(20):
        connect()
    assert "] accepted " in open(os.environ["GCB_LOG_FILE"]).read()
    before = time.monotonic()
    while waiting():
        assert time.monotonic() - before < 10, len(waiting())
        time.sleep(0.1)
    print("good")
    """,
    )


@pytest.mark.parametrize("what", ["listen", "connect"])
def test_a_program_that_runs_out_of_descriptors(broker: Broker, tmp_path: Path, what: str) -> None:
    outcome(
        broker,
        tmp_path,
        f"""
    listen(), connect()
    mine, agents = opened(), opened(agent)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    ended = set()
    for left in range(1, 16):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
        fillers = []
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for number in fillers[-left:]:
            posix.close(number)  # at once: gevent's os.close leaves it to its hub
        try:
            if "{what}" == "listen":
                socket.create_server(("", 0)).close()
            else:
                sock = socket.socket()
                with sock:
                    sock.connect(public)
            ended.add("well")
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            ended.add("EMFILE")
        finally:
            for number in fillers[:-left]:
                posix.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(mine, "self")  # gevent closes in its hub
    listen(), connect()
    until(agents, agent)
    assert ended <= {{"well", "EMFILE"}} and "well" in ended, ended
    print("good")
    """,
    )


def test_who_leaves_before_the_answer_leaves_no_queue_with_the_agent(tmp_path: Path) -> None:
    text = """
    import _socket, socket
    listener = socket.socket()
    listener.bind(("", 0))
    port = _socket.socket.getsockname(listener._sock)[1]
    from gcbpatch.sockets.layer import LAYER
    print(LAYER.link.name, port, flush=True)
    listener.listen()
    print("listening", flush=True)
    input()
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(HANG_LIMIT)
        with Program(
            text, SimpleNamespace(address=silent.getsockname()), tmp_path / "log"
        ) as program:
            name, port = program.line().split()
            silent.recv(2048)  # the agent is registering it, in vain
            with _queue() as ends:
                conn = door.connect(name)
                bound = door.Endpoint.of(("0.0.0.0", int(port)))
                door.send(conn, door.Listen(bytes(16), 1, bound, 0, False, 0), ends)
                conn.close()
            assert program.line() == "listening"
            # It has the queue that both share once, not again for who is gone.
            agent = agent_in(program.log)
            wait_until(lambda: len(_sockets(agent)) == len(set(_sockets(agent))))
            program.say()
    wait_end(agent)  # a socket that is only bound, and gone, keeps no agent


def _sockets(pid: int) -> list[str]:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(entry))
    return [link for link in links if link.startswith("socket:")]


@contextlib.contextmanager
def _queue() -> Iterator[tuple[int, int]]:
    take, put = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with take, put:
        yield take.fileno(), put.fileno()


FIRST = """
    import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
    import os, resource, socket, sys
    assert "gcbpatch.agent.door" not in sys.modules
    datagrams, sock, later = socket.socket(type=socket.SOCK_DGRAM), socket.socket(), socket.socket()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (later.fileno() + 1, hard))
    try:
        while True:
            os.dup(0)  # into the gaps
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "step",
    [
        """
    datagrams.bind(("127.0.0.1", 0))
    assert datagrams.getsockname()[0] == "127.0.0.1"
    """,
        """
    assert sock.connect_ex(("127.0.0.1", 1)) == errno.ECONNREFUSED
    """,
    ],
    ids=["UDP bind", "connect"],
)
def test_what_is_loaded_at_the_first_need_is_not_missed_without_descriptors(
    broker: Broker, tmp_path: Path, step: str
) -> None:
    done = run(
        "    import errno\n"
        + FIRST
        + step
        + """
    assert "gcbpatch.agent.door" not in sys.modules
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    later.bind(("127.0.0.1", 0))
    later.listen()
    assert "gcbpatch.agent.door" in sys.modules
    print("good")
    """,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG_FILE=str(tmp_path / "log"),
    )
    assert done.stdout == "good\n", done.stderr
    assert "cannot be loaded: [Errno 24] Too many open files" in (tmp_path / "log").read_text()
